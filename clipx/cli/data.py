"""`clipx data`: prepares training data and looks at it."""

from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(help="Prepare training data: index shards, write synthetic ones.", no_args_is_help=True)


@data_app.command()
def index(
    shards: Annotated[
        list[str],
        typer.Argument(metavar="SHARDS", help="Tar files, folders, globs, braces.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for the index (as data.index); default: beside the shards."),
    ] = None,
) -> None:
    """Count the samples of shards, so that training starts at once."""
    from rich.progress import Progress

    from clipx.data.index import build_index

    with Progress(transient=True) as progress:
        task = progress.add_task("indexing", total=None)
        found = build_index(
            shards, index_dir=out, on_progress=lambda done, total: progress.update(task, completed=done, total=total)
        )
    typer.echo(f"{len(found.paths):,} shards, {found.num_samples:,} samples")


@data_app.command()
def synth(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make; must not exist.", show_default=False)],
    train: Annotated[int, typer.Option(min=1, help="Training pairs.")] = 20_000,
    eval_per_class: Annotated[int, typer.Option(min=1, help="Pictures per class in the evaluation sets.")] = 20,
    size: Annotated[int, typer.Option(min=16, help="Side of the pictures in pixels.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the whole set.")] = 0,
    shard_size: Annotated[int, typer.Option(min=1, help="Pairs per training shard.")] = 1000,
) -> None:
    """Write shards of rendered scenes with captions, and evaluation sets of scenes never trained on."""
    from clipx.data.synthetic import write_synthetic_set

    write_synthetic_set(
        out, num_train=train, num_eval_per_class=eval_per_class, image_size=size, seed=seed, shard_size=shard_size
    )
    typer.echo(f"wrote {out}")
