"""`clipx data`: prepares training data and looks at it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clipx.cli.config_files import ConfigArguments, load_arguments, names_config, with_shards
from clipx.cli.data_options import (
    Absent,
    CaptionColumns,
    CaptionKey,
    ClassFolders,
    GroupRows,
    Header,
    ImageColumn,
    ImageFolder,
    ImageKey,
    IndexOfShards,
    JoinCaptions,
    KeyColumn,
    LabelColumn,
    MaxBad,
    NumShards,
    OutFolder,
    Quality,
    Quoting,
    ShardImageKey,
    ShardsArgument,
    ShardSize,
    ShardsOrConfig,
    ShortSide,
    Shuffle,
    Sources,
    Splits,
    Verify,
    Workers,
)
from clipx.cli.data_tables import print_counts, print_figures, print_made
from clipx.cli.early import require_folder, require_shards, require_writable
from clipx.cli.output import say, write_text
from clipx.cli.progress import progress_bar
from clipx.cli.teach import teach
from clipx.errors import InputError
from clipx.printable import json_text, printable, redacted

if TYPE_CHECKING:
    from clipx.config.data import Source
    from clipx.config.schema import JobConfig
    from clipx.prepare.stats import Description

data_app = typer.Typer(help="Prepare training data and look at it.", no_args_is_help=True)


@data_app.command()
def make(
    sources: Sources,
    *,
    out: OutFolder,
    shard_size: ShardSize = 1000,
    num_shards: NumShards = None,
    shuffle: Shuffle = None,
    image_column: ImageColumn = None,
    caption_column: CaptionColumns = None,
    join_captions: JoinCaptions = None,
    label_column: LabelColumn = None,
    class_folders: ClassFolders = None,
    image_folder: ImageFolder = None,
    header: Header = None,
    quoting: Quoting = "double",
    split: Splits = None,
    group_rows: GroupRows = True,
    absent: Absent = False,
    key: KeyColumn = None,
    size: ShortSide = None,
    quality: Quality = None,
    verify: Verify = True,
    index_dir: IndexOfShards = None,
    image_key: ShardImageKey = "jpg;jpeg;png;webp",
    max_bad: MaxBad = 0.01,
    workers: Workers = None,
) -> None:
    """Make shards from what you have.

    Pictures keep their bytes unless --size or --quality is given. Equal input gives equal shards, whatever --workers.
    Interrupted, the same command goes on. What is left out stands with its reason in DIR/left_out.jsonl.
    """
    from clipx.data.parallel import num_cores
    from clipx.data.rows.dialects import TextFormat
    from clipx.data.rows.opening import SourceOptions, open_rows
    from clipx.data.rows.row import TableColumns
    from clipx.making.images import ImageOptions
    from clipx.making.make import make_shards
    from clipx.making.make_shard import MakeOptions

    names = [] if header is None else [name.strip() for name in header.split(",")]
    columns = TableColumns(
        image=image_column,
        captions=caption_column or (),
        joined_by=join_captions,
        label=label_column,
        needs_captions=not absent,
        needs_image=not absent,
    )
    text_format = TextFormat(quoting=quoting == "double", header=names)
    options = SourceOptions(
        columns=columns,
        text_format=text_format,
        image_folder=image_folder,
        splits=split or (),
        class_folders=class_folders,
        index=index_dir,
    )
    with progress_bar("reading") as on_progress:
        rows = open_rows(sources, options, on_progress=on_progress)
    for note in rows.notes():
        say(note)
    make_options = MakeOptions(
        shard_size=shard_size,
        num_shards=num_shards,
        shuffle=shuffle,
        group_rows=group_rows,
        allow_absent=absent,
        key=key,
        images=ImageOptions(size=size, quality=quality, verify=verify),
        image_key=image_key,
    )
    with progress_bar("rows") as show:
        jobs = workers or num_cores()
        made = make_shards(rows, out, make_options, workers=jobs, max_bad=max_bad, on_grouping=show, on_progress=show)
    print_made(made, out, image_key=image_key)


@data_app.command()
def index(
    shards: ShardsArgument,
    *,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder for the index (as data.index); default: beside the shards."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help='Keep samples of which this is true, e.g. "min_side >= 200", "json:similarity >= 0.28"; repeatable.',
        ),
    ] = None,
    keys: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep only these keys, one per line.")] = None,
    without_keys: Annotated[Path | None, typer.Option(metavar="FILE", help="Leave out these keys.")] = None,
    unique: Annotated[
        Literal["image", "caption", "pair"] | None, typer.Option(help="Of exact duplicates keep the first.")
    ] = None,
    caption_key: CaptionKey = None,
    image_key: ImageKey = None,
    offsets: Annotated[
        bool, typer.Option("--offsets", help="Scan also shards whose counts a file beside them states.")
    ] = False,
) -> None:
    """Count the samples of shards, so that training starts at once; choose what is trained on.

    A run with `data.index: DIR` then sees only what passed.
    """
    require_folder(out, option="--out")
    from clipx.data.filters.filters import SampleFilter
    from clipx.data.index.shard_index import build_index

    filters = None
    read_with = _given(caption_key=caption_key, image_key=image_key)
    if where or keys or without_keys or unique:
        filters = SampleFilter.parse(where or [], keys=keys, without_keys=without_keys, unique=unique, **read_with)
    for name in read_with if filters is None else ():
        raise InputError(f"--{name.replace('_', '-')} says what a filter looks at; give it with --where or --unique")
    with progress_bar("shards") as on_progress:
        result = build_index(shards, index_dir=out, filters=filters, offsets=offsets, on_progress=on_progress)
    say(f"{len(result.paths):,} shards, {result.num_samples:,} samples")
    if result.left_out:
        print_counts("left out", "samples", result.left_out)


@data_app.command()
def check(
    shards: ShardsOrConfig,
    *,
    report: Annotated[Path | None, typer.Option(metavar="FILE.jsonl", help="Write each problem here.")] = None,
    repair: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write bad shards anew here, with their good samples."),
    ] = None,
    image_key: ImageKey = None,
    caption_key: CaptionKey = None,
    workers: Workers = None,
) -> None:
    """Open every sample as training does, and say what is bad.

    Exit code 0: all good; 1: something is bad. The shards themselves are never changed.
    """
    config = with_shards(load_arguments(shards)) if names_config(shards) else None
    described = _sources(shards, config, image_key=image_key, caption_key=caption_key)
    require_shards(described)
    require_writable(report, option="--report")
    require_folder(repair, option="--repair")
    from clipx.config.fit import FitConfig
    from clipx.data.parallel import num_cores
    from clipx.prepare.check import check_shards

    with progress_bar("shards") as on_progress:
        health = check_shards(
            described,
            fit=config if isinstance(config, FitConfig) else None,
            repair=repair,
            workers=workers or num_cores(),
            on_progress=on_progress,
        )
    if report is not None:
        lines = [json_text(redacted(asdict(problem))) + "\n" for problem in health.problems]
        write_text(report, "".join(lines), option="--report")
    good, total = (sum(getattr(shard, name) for shard in health.shards) for name in ("num_good", "num_samples"))
    bad = [shard for shard in health.shards if shard.problems]
    say(f"{len(health.shards):,} shards, {total:,} samples: {good:,} good")
    if by_pillow := sum(shard.num_by_pillow for shard in health.shards):
        say(f"{by_pillow:,} pictures need Pillow, which is slower")
    if deep := sum(shard.num_deep for shard in health.shards):
        say(f"{deep:,} pictures have grey values of more than 8 bits, which are scaled to 8")
    if not bad:
        return
    print_counts("bad", "times", health.by_fault())
    for problem in health.problems[:5]:
        say(printable(f"{problem.shard}{' ' + problem.key if problem.key else ''}: {problem.fault}: {problem.detail}"))
    if len(health.problems) > 5:
        say(f"... {len(health.problems) - 5:,} more" + ("" if report else "; --report FILE.jsonl lists them"))
    if repair is not None:
        say(f"{repair}: {sum(shard.repaired for shard in bad):,} of {len(bad):,} bad shards anew")
    raise typer.Exit(1)


@data_app.command()
def stats(
    shards: ShardsOrConfig,
    *,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write stats.json and stats.png here.")] = None,
    sample: Annotated[
        int, typer.Option(min=0, metavar="N", help="Samples of each source to read, evenly spread; 0: all.")
    ] = 100_000,
    image_key: ImageKey = None,
    caption_key: CaptionKey = None,
    workers: Workers = None,
) -> None:
    """Measure captions, pictures and duplicates of each source.

    Tokens are those of the config's tokenizer; without a config, CLIP's with a context of 77.
    """
    from clipx.config.schema import require_pretraining

    config = require_pretraining(load_arguments(shards), "clipx data stats") if names_config(shards) else None
    described = _sources(shards, config, image_key=image_key, caption_key=caption_key)
    require_shards(described)
    if out is not None:
        require_writable(out / "stats.json", option="--out")
        from clipx.prepare.own_files import require_matplotlib, require_own_json, require_own_png

        require_own_json(out / "stats.json", {"context_length", "sources"})
        require_own_png(out / "stats.png")
        require_matplotlib()
    from clipx.data.parallel import num_cores
    from clipx.prepare.stats import describe

    with progress_bar("samples") as on_progress:
        description = describe(
            described,
            None if config is None else config.model,
            sample=sample or None,
            workers=workers or num_cores(),
            on_progress=on_progress,
        )
    print_figures(description.figures, description.context_length)
    if out is not None:
        _write_stats(description, out, image_size=None if config is None else config.model.image.image_size)


@data_app.command()
def show(
    arguments: ConfigArguments,
    batch: Annotated[int, typer.Option(min=0, metavar="N", help="Which global batch, from 0.")] = 0,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures of it to show.")] = 48,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Where to draw them; default: batch-N.png here."),
    ] = None,
) -> None:
    """Draw pictures and captions of a batch exactly as the model will see them."""
    from clipx.config.data import sources

    config = with_shards(load_arguments(arguments))
    require_shards(sources(config.data))
    path = out or Path(f"batch-{batch}.png")
    require_writable(path, option="--out")
    from clipx.prepare.own_files import require_own_png

    require_own_png(path)
    from clipx.prepare.show import draw_batch

    say(draw_batch(config, path, batch=batch, count=count))
    say(f"wrote {path}")


@data_app.command()
def synth(
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder to make; must not exist.", show_default=False),
    ],
    table: Annotated[
        bool, typer.Option("--table", help="Write a table of products, to fit and to predict, instead of shards.")
    ] = False,
    train: Annotated[int, typer.Option(min=1, help="Training pairs, or rows.")] = 20_000,
    eval_per_class: Annotated[
        int, typer.Option(min=1, help="Pictures per class in the evaluation sets; test rows for each of 48 classes.")
    ] = 20,
    size: Annotated[int, typer.Option(min=16, help="Side of the pictures in pixels.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the whole set.")] = 0,
    shard_size: Annotated[
        int | None, typer.Option(min=1, help="Pairs per training shard; default: 1,000.", show_default=False)
    ] = None,
) -> None:
    """Write shards of rendered scenes with captions, and evaluation sets of scenes never trained on.

    With --table: train.csv and test.csv of products with photographs, and best.json, what the best model can reach.
    """
    if table and shard_size is not None:
        raise InputError("--shard-size is for shards; leave it out with --table")
    if table:
        from clipx.demo.product_table import write_product_table
        from clipx.demo.scenes import SEEN_CLASSES

        num_test = eval_per_class * len(SEEN_CLASSES)
        write_product_table(out, num_train=train, num_test=num_test, image_size=size, seed=seed)
    else:
        from clipx.demo.scenes import write_synthetic_set

        write_synthetic_set(
            out,
            num_train=train,
            num_eval_per_class=eval_per_class,
            image_size=size,
            seed=seed,
            shard_size=shard_size or 1000,
        )
    say(f"wrote {out}")


data_app.command()(teach)


def _sources(
    arguments: Sequence[str], config: "JobConfig | None", *, image_key: str | None, caption_key: str | None
) -> "tuple[Source, ...]":
    """The sources of a config, those that a fit run holds out too; without one, of shards read with these keys."""
    from clipx.config.data import DataConfig, sources
    from clipx.config.fit import FitConfig

    given = _given(image_key=image_key, caption_key=caption_key)
    if config is None:
        return sources(replace(DataConfig(train=list(arguments)), **given))
    for name in given:
        raise InputError(f"--{name.replace('_', '-')} goes with shards; to a config add data.{name}={given[name]}")
    if isinstance(config, FitConfig):
        return (*sources(config.data), config.data.source(config.data.val_shards or ()))
    return sources(config.data)


def _given(**options: str | None) -> dict[str, Any]:
    """Those that are not None; the library knows the defaults of the others."""
    return {name: value for name, value in options.items() if value is not None}


def _write_stats(description: "Description", out: Path, *, image_size: int | None) -> None:
    """Writes stats.json and stats.png into the folder `out`."""
    from clipx.prepare.plots import draw_stats

    figures = {name: asdict(source) for name, source in description.figures.items()}
    content = {"context_length": description.context_length, "sources": figures}
    write_text(out / "stats.json", json.dumps(content, indent=2) + "\n", option="--out")
    path = out / "stats.png"
    draw_stats(description.measured, path, context_length=description.context_length, image_size=image_size)
    say(f"wrote {out / 'stats.json'} and {path}")
