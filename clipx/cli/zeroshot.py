"""`clipx zeroshot`: one or several models on one or several sets, or on a suite of them."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipx.cli.early import is_alone, require_folder, require_model, require_outputs, require_places
from clipx.cli.model import ModelArgument, WeightsOption
from clipx.cli.output import FiguresFile, require_json, write_json, write_text
from clipx.cli.progress import progress_bar
from clipx.errors import InputError

if TYPE_CHECKING:
    from clipx.data.suite_sets import SetPlace
    from clipx.evaluate.options import EvaluateOptions
    from clipx.evaluate.result_files import ModelName
    from clipx.evaluate.suite import SetResult

_COLUMN = b"model_fullname"  # in the header of CLIP_benchmark's tables
_LONGEST = 65_536  # bytes of a header
Results = list[tuple["ModelName", "SetResult"]]


def zeroshot(
    model: ModelArgument,
    sets: Annotated[
        list[str],
        typer.Argument(
            metavar="[SET]...",
            help="Evaluation sets: folders in CLIP_benchmark's wds_* layout, and others that have labels or captions.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 (typer reads it and never changes it)
    *,
    also: Annotated[
        list[Path], typer.Option("--also", metavar="MODEL", help="A further model, compared on the same sets; repeat.")
    ] = [],  # noqa: B006
    suite: Annotated[
        str | None,
        typer.Option(metavar="FILE|NAME", help="A YAML file of sets and their main figures, or datacomp38."),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder below which the sets of --suite lie.")
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out sets that are not there; the mean is that of the others.")
    ] = False,
    split: Annotated[str, typer.Option(help="Part of the sets that are named: test, val, train.")] = "test",
    json_file: FiguresFile = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a table in CLIP_benchmark's columns.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write DataComp's eval_results.jsonl and CLIP_benchmark's JSON files, set by set."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures or texts per forward pass.")] = 256,
    weights: WeightsOption = None,
    decode: Annotated[
        Literal["pil", "fast"],
        typer.Option(help="How pictures are decoded: as others do it, or sooner and nearly so."),
    ] = "pil",
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|none",
            help="Folder of kept embeddings; default: features/ in clipx's cache.",
            show_default=False,
        ),
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=0, help="Resamples of the pictures for the 95% intervals; 0: no intervals.")
    ] = 1000,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="Also train a linear probe on the embeddings of each set's training part, and measure it."
        ),
    ] = False,
    shots: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Also probes of so many training images per class, e.g. 1,5,16."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Choices of these images, default 3; their mean counts.")
    ] = None,
    knn: Annotated[
        int | None,
        typer.Option(min=1, metavar="K", help="Also classify by the votes of the K nearest training images, e.g. 20."),
    ] = None,
    like: Annotated[
        Literal["clip_benchmark"] | None,
        typer.Option(
            help="Give CLIP_benchmark's figures: every line is a caption of its own, blank and equal ones too, "
            "and of equal scores the first counts."
        ),
    ] = None,
) -> None:
    """Measure zero-shot accuracy, retrieval recall or mean average precision, as each set asks for.

    Pictures are embedded once and kept; ranks under torchrun share the work. With several models or --suite, --json
    holds for every model its sets with `metrics`, `intervals` and `main_metric`, and the `mean` of the main figures.
    """
    require_outputs({"--json": json_file, "--csv": csv_file})
    if csv_file is not None and is_alone():
        _require_table(csv_file)
    require_folder(results, option="--results")
    require_folder(None if cache in (None, "none") else cache, option="--cache")
    models = list(dict.fromkeys([model, *also]))
    for one in models:
        require_model(one)
    places = _places(sets, suite, data_root, split=split)
    of_probe = _shots(shots, probe=probe)
    if seeds is not None and not of_probe:
        raise InputError(f"--seeds {seeds} is for --shots; add it, or leave --seeds out")
    require_places(places, skip_missing=skip_missing, training=probe or knn is not None)
    if results is not None:
        _require_results(results, places, models)
    from clipx.distributed.environment import overrule_environment

    overrule_environment()
    from clipx.evaluate.feature_cache import default_cache
    from clipx.evaluate.options import EvaluateOptions

    folder = None if cache == "none" else Path(cache) if cache else default_cache()
    options = EvaluateOptions(
        batch_size=batch_size,
        like=like,
        cache=folder,
        decode=decode,
        resamples=resamples,
        probe=probe,
        shots=of_probe,
        num_seeds=3 if seeds is None else seeds,
        neighbours=knn,
    )
    found = _evaluate(models, places, options, weights=weights, skip_missing=skip_missing, results=results)
    if found is None:
        return
    from clipx.cli.zeroshot_tables import as_json, print_results
    from clipx.evaluate.result_files import csv_text

    try:  # files first, as a pipe into `head` ends a command that prints; what cannot be written is shown all the same
        if json_file is not None:
            write_json(json_file, as_json(found, as_suite=suite is not None or len(models) > 1))
        if csv_file is not None:
            _write_csv(csv_file, csv_text(found))
    finally:
        print_results(found, suite=_suite_name(suite))


def _shots(text: str | None, *, probe: bool) -> tuple[int, ...]:
    """The numbers of --shots.

    Raises:
        InputError: one is no number above 0, or there is no probe.
    """
    if text is None:
        return ()
    if not probe:
        raise InputError(f"--shots {text} is for --probe; add it, or leave --shots out")
    parts = [part.strip() for part in text.split(",")]
    if wrong := next((part for part in parts if not (part.isascii() and part.isdigit() and int(part[:9]) > 0)), None):
        raise InputError(f"--shots {text}: {wrong!r} is no number of images above 0; give numbers with commas between")
    if "" in parts:
        raise InputError(f"--shots {text}: a number is missing; give numbers with commas between, e.g. 1,5,16")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _suite_name(suite: str | None) -> str | None:
    from clipx.config.suite import load_suite

    return None if suite is None else load_suite(suite).name


def _places(sets: Sequence[str], suite: str | None, data_root: Path | None, *, split: str) -> "list[SetPlace]":
    """The sets that the arguments name; keys are unique.

    Raises:
        InputError: there is none, or --data-root has no suite.
    """
    from clipx.config.suite import load_suite
    from clipx.data.suite_sets import places_of, suite_places

    if not sets and suite is None:
        raise InputError("no evaluation set given: name at least one SET, or a suite of them with --suite")
    if data_root is not None and suite is None:
        raise InputError(f"--data-root {data_root} is for the sets of --suite; name a suite, or leave it out")
    places = [] if suite is None else suite_places(load_suite(suite), data_root)
    names = [path if "://" in path else str(Path(path)) for path in sets]
    return list({place.key: place for place in [*places, *places_of(names, split=split)]}.values())


def _evaluate(
    models: Sequence[Path],
    places: "Sequence[SetPlace]",
    options: "EvaluateOptions",
    *,
    weights: Literal["average", "trained"] | None,
    skip_missing: bool,
    results: Path | None,
) -> Results | None:
    """The figures of every model on every set; on ranks but the first None."""
    from clipx.distributed.collectives import rank
    from clipx.distributed.runtime import join_ranks
    from clipx.evaluate.result_files import ModelName, slug
    from clipx.evaluate.suite import evaluate_sets, present_places
    from clipx.pretrained import load
    from clipx.printable import redact

    found: Results = []
    with join_ranks() as (device, group):
        is_main = rank(group) == 0
        present, missing = present_places(
            places, skip_missing=skip_missing, group=group, training=options.needs_training_part
        )
        for fault in missing.values() if is_main else ():
            typer.echo(f"left out: {fault}", err=True)
        with _told(len(models) * len(present), is_main=is_main) as told:
            for path in models:
                pretrained = load(path, device=device, weights=weights)
                name = ModelName(model=pretrained.config.image.name, pretrained=redact(str(path)))
                for result in evaluate_sets(pretrained, present, options, group=group):
                    found.append((name, result))
                    told(len(found))
                    if is_main and results is not None:
                        of_model = [row for row in found if row[0] is name]
                        _write_results(results if len(models) == 1 else results / slug(name.pretrained), of_model)
        return found if is_main else None


@contextmanager
def _told(total: int, *, is_main: bool) -> Generator[Callable[[int], None]]:
    """Shows how many sets of all models are done."""
    if not is_main:
        yield lambda done: None
        return
    with progress_bar("sets") as show:
        show(0, total)
        yield lambda done: show(done, total)


def _write_results(folder: Path, found: Results) -> None:
    """Writes a model's sets so far, so that those of a long suite are not lost with it.

    Raises:
        InputError: a file cannot be written, or something else has its name.
    """
    from clipx.evaluate.result_files import LINES, clip_benchmark_file, datacomp_line

    lines = "".join(datacomp_line(result) + "\n" for _, result in found)
    write_text(folder / LINES, lines, option="--results")
    for of_task in found[-1][1].by_task():
        name, content = clip_benchmark_file(of_task, found[-1][0])
        write_text(folder / name, content, option="--results")


def _require_results(folder: Path, places: "Sequence[SetPlace]", models: Sequence[Path]) -> None:
    """Raises InputError if files of --results would replace each other's, or what is no such file."""
    from clipx.evaluate.result_files import LINES, require_different_names, slug
    from clipx.printable import redact

    names = [redact(str(model)) for model in models]
    require_different_names(places, names)
    for name in names if is_alone() else ():
        require_json((folder if len(names) == 1 else folder / slug(name)) / LINES, option="--results")


def _require_table(path: Path) -> None:
    """Raises InputError if --csv would replace a file of another kind."""
    header = b""
    with suppress(OSError):
        if path.is_file():
            with open(path, "rb") as file:
                header = file.readline(_LONGEST)
    if header.strip() and _COLUMN not in header:
        raise InputError(f"--csv {path}: a file is there that is no such table, and is not replaced; name another")


def _write_csv(path: Path, content: str) -> None:
    """Writes the table.

    Raises:
        InputError: it cannot be written, or would replace a file of another kind.
    """
    _require_table(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--csv {path}: cannot be written: {error.strerror}") from error
