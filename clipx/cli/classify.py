"""`clipx classify`: which of some classes each picture shows, as a table, and as files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clipx.cli.classify_tables import print_classified
from clipx.cli.data_options import ImageColumn, ImageFolder, ShardImageKey
from clipx.cli.early import is_alone, require_model, require_outputs
from clipx.cli.model import ModelArgument, WeightsOption
from clipx.cli.output import say
from clipx.cli.progress import progress_bar
from clipx.printable import redact

if TYPE_CHECKING:
    from clipx.data.inputs import Inputs
    from clipx.use.class_list import ClassList
    from clipx.use.classified import Classified


def classify(
    model: ModelArgument,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Pictures, folders, globs, shards, URLs of pictures, or tables of paths (CSV, JSONL, parquet).",
            show_default=False,
        ),
    ],
    *,
    classes: Annotated[
        str,
        typer.Option(
            metavar="NAMES|FILE|DIR",
            help="Names with commas between them, a file with a name per line, or a set that has classes.",
            show_default=False,
        ),
    ],
    templates: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT|FILE",
            help="Prompt with {c} in the place of the class, or a file with one per line; may be given again. "
            "Default: those of the set, or 'a photo of a {c}.'",
            show_default=False,
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes of each picture, at most.")] = 5,
    multi: Annotated[
        bool, typer.Option("--multi", help="A picture may have several classes: each is a question of its own.")
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Least probability of a class that is told. Default: 0.5 with --multi, else none.",
            show_default=False,
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write everything here.")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write a line for each picture here.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a page of the pictures by class.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per forward pass.")] = 128,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read pictures, from 2 on; else threads.")] = 0,
    decode: Annotated[
        Literal["pil", "fast"], typer.Option(help="Pillow's pixels, or nearly the same ones sooner.")
    ] = "pil",
    image_key: ShardImageKey = "jpg;jpeg;png;webp",
    image_column: ImageColumn = None,
    image_folder: ImageFolder = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Keep embeddings of classes in the user's cache.")
    ] = True,
    weights: WeightsOption = None,
) -> None:
    """Say which of some classes each picture shows: a table, and JSON, CSV or a page of the pictures by class.

    The classes exclude each other, and their probabilities sum to one; with --multi a picture may show several, or
    none. What is no picture is named and left out. Works under torchrun and accelerate launch, on all ranks.
    """
    _check_files(json_file, csv_file, html_file)
    require_model(model)

    table = {"image_column": image_column, "image_folder": image_folder}
    reading = partial(_read, inputs, classes, templates or (), multi=multi, image_key=image_key, table=table)
    read = reading() if is_alone() else None
    from clipx.distributed.environment import overrule_environment

    overrule_environment()
    from clipx.distributed.collectives import raise_on_all_ranks, rank, rank0_first
    from clipx.distributed.runtime import join_ranks
    from clipx.pretrained import load
    from clipx.use.class_cache import default_cache, embed_class_list
    from clipx.use.classify import ClassifyOptions, classify_inputs

    options = ClassifyOptions(
        top=top, multi=multi, threshold=threshold, batch_size=batch_size, decode=decode, workers=workers
    )
    with join_ranks() as (device, group):
        is_first = rank(group) == 0
        # rank 0 indexes shards; the others read that index
        listed, found = rank0_first(reading, group) if read is None else read
        with raise_on_all_ranks(group), progress_bar("classes", shown=is_first) as show:
            pretrained = load(model, device=device, weights=weights)
            folder = default_cache() if cache else None
            embedded = embed_class_list(pretrained, listed, cache=folder, on_progress=show)
        with progress_bar("pictures", shown=is_first) as show:
            classified = classify_inputs(pretrained, found, embedded, options, group=group, on_progress=show)
        if not is_first:
            return
        about = {
            "model": redact(str(model)),
            "fingerprint": pretrained.fingerprint,
            "templates": listed.templates,
            "multi": multi,
            "threshold": classified.threshold,
        }
    print_classified(classified)
    _write(classified, found, about, json_file=json_file, csv_file=csv_file, html_file=html_file)


def _check_files(json_file: Path | None, csv_file: Path | None, html_file: Path | None) -> None:
    """Refuses what could not be written, or is somebody else's."""
    require_outputs({"--json": json_file, "--csv": csv_file, "--html": html_file})
    if csv_file is not None:
        from clipx.use.classified_files import require_own_csv

        require_own_csv(csv_file)
    if html_file is not None:
        from clipx.pages import require_own_page

        require_own_page(html_file)


def _read(
    addresses: Sequence[str],
    classes: str,
    templates: Sequence[str],
    *,
    multi: bool,
    image_key: str,
    table: Mapping[str, Any],
) -> "tuple[ClassList, Inputs]":
    """The classes and the pictures; whatever is wrong with either is said before a model is loaded."""
    from clipx.data.inputs import open_inputs, table_options
    from clipx.use.class_list import read_classes

    listed = read_classes(classes, templates, multi=multi)
    with progress_bar("reading") as show:
        return listed, open_inputs(addresses, replace(table_options(**table), image_key=image_key), on_progress=show)


def _write(
    classified: "Classified",
    inputs: "Inputs",
    about: Mapping[str, object],
    *,
    json_file: Path | None,
    csv_file: Path | None,
    html_file: Path | None,
) -> None:
    from clipx.use.classified_files import write_csv, write_json
    from clipx.use.classified_page import write_classified_page

    if json_file is not None:
        write_json(json_file, classified, about)
    if csv_file is not None:
        write_csv(csv_file, classified)
    if html_file is not None:
        write_classified_page(html_file, classified, inputs, subtitle=str(about["model"]))
        say(f"pictures by class: {html_file}")
