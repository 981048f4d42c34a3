"""`clipx embed`: embeddings of whatever there is, in bulk."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clipx.cli.data_options import CaptionColumns, ImageColumn, ImageFolder, ShardImageKey
from clipx.cli.early import is_alone, require_folder, require_model
from clipx.cli.model import ModelArgument, WeightsOption
from clipx.cli.output import say
from clipx.cli.progress import progress_bar
from clipx.errors import InputError

if TYPE_CHECKING:
    from clipx.data.inputs import Inputs
    from clipx.use.embed import Embedded

_DTYPES: dict[str, Literal["float16", "float32"]] = {"fp16": "float16", "fp32": "float32"}


def embed(
    model: ModelArgument,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Pictures, folders, globs, URLs of pictures, tables of paths, text files (a text per line), shards.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[
        str,
        typer.Option(metavar="DIR", help="Folder of the embeddings; begun before, it goes on.", show_default=False),
    ],
    dtype: Annotated[Literal["fp16", "fp32"], typer.Option(help="How numbers are stored.")] = "fp16",
    reduce: Annotated[
        str | None,
        typer.Option(metavar="pca:K", help="Reduce embeddings to K numbers by a PCA fitted to them, and keep it."),
    ] = None,
    beside: Annotated[
        bool,
        typer.Option(
            "--beside",
            help="Also write cosines of pictures and texts as NNNNN.parquet beside the shards, or as a column of the "
            "file there: `clipx data index SHARDS --out DIR --where 'parquet:cosine>=0.28'` reads them.",
        ),
    ] = False,
    texts: Annotated[bool, typer.Option(help="Embed the first text of each row, too.")] = True,
    decode: Annotated[
        Literal["fast", "pil"], typer.Option(help="How pictures become pixels; pil: as other libraries do it.")
    ] = "fast",
    workers: Annotated[
        int, typer.Option(min=0, metavar="N", help="Processes that read and decode; 0: threads of this one.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per forward pass.")] = 128,
    image_key: ShardImageKey = "jpg;jpeg;png;webp",
    caption_key: Annotated[str, typer.Option(metavar="KEY", help="Of shards: as data.caption_key.")] = "txt",
    image_column: ImageColumn = None,
    caption_column: CaptionColumns = None,
    image_folder: ImageFolder = None,
    weights: WeightsOption = None,
) -> None:
    """Embed pictures and texts in bulk, for `clipx search` and your own programs.

    Writes shards of .npy with a parquet of keys. Works under torchrun and accelerate launch, on all ranks. Equal input
    gives equal bytes, whatever the ranks and --workers. Killed, the same command goes on. What cannot be embedded
    stands with its reason in DIR/left_out.jsonl.
    """
    components = _components(reduce)
    require_folder(out, option="--out")
    require_model(model)
    table = {"image_column": image_column, "caption_columns": caption_column or (), "image_folder": image_folder}
    opening = partial(_open, inputs, image_key=image_key, caption_key=caption_key, table=table, beside=beside)
    found = opening() if is_alone() else None
    from clipx.distributed.environment import overrule_environment

    overrule_environment()
    from clipx.distributed.collectives import raise_on_all_ranks, rank, rank0_first
    from clipx.distributed.runtime import join_ranks
    from clipx.pretrained import load
    from clipx.use.embed import EmbedOptions
    from clipx.use.embed import embed as run

    options = EmbedOptions(
        dtype=_DTYPES[dtype],
        decode=decode,
        texts=texts,
        components=components,
        batch_size=batch_size,
        workers=workers,
    )
    show = None
    with join_ranks() as (device, group), ExitStack() as stack:
        is_first = rank(group) == 0
        if found is None:
            found = rank0_first(opening, group)  # which indexes shards; the others read that index
        with raise_on_all_ranks(group):
            pretrained = load(model, device=device, weights=weights)
        if is_first:
            show = stack.enter_context(progress_bar("rows"))
        embedded = run(pretrained, found, out, options=options, model=str(model), group=group, on_progress=show)
    if is_first:
        _print(embedded, out)
        if beside:
            _write_beside(out, found)


def _open(
    addresses: list[str], *, image_key: str, caption_key: str, table: Mapping[str, Any], beside: bool
) -> "Inputs":
    """The rows; whatever else can be found wrong before a model is loaded is said here."""
    from clipx.data.inputs import open_inputs, table_options
    from clipx.use.key_table import require_pyarrow

    options = replace(table_options(**table), image_key=image_key, caption_key=caption_key)
    with progress_bar("reading") as show:
        found = open_inputs(addresses, options, on_progress=show)
    require_pyarrow()
    if beside:
        from clipx.use.beside import require_beside

        require_beside(found.shards())
    return found


def _write_beside(out: str, inputs: "Inputs") -> None:
    from clipx.use.beside import write_beside
    from clipx.use.embeddings import open_embeddings

    written = write_beside(open_embeddings(out), inputs.shards())
    command = "clipx data index SHARDS --out DIR --where 'parquet:cosine>=0.28'"
    say(f"cosines beside {written:,} shards; to leave out pairs: {command}")


def _components(reduce: str | None) -> int | None:
    if reduce is None:
        return None
    kind, _, number = reduce.partition(":")
    if kind != "pca" or not number.isdecimal() or int(number) < 1:
        raise InputError(f"--reduce {reduce}: write it as pca:K with the number of components, as pca:128")
    return int(number)


def _print(embedded: "Embedded", out: str) -> None:
    manifest = embedded.manifest
    what = [
        f"{number:,} {name}"
        for number, name in ((manifest.num_images, "pictures"), (manifest.num_texts, "texts"))
        if number
    ]
    say(f"{out}: embeddings of {' and '.join(what)}, {manifest.embed_dim} numbers each, {manifest.dtype}")
    if embedded.num_new == 0:
        say("all of them were there")
    else:
        pace = embedded.num_new / embedded.seconds
        say(f"{embedded.num_new:,} rows in {embedded.seconds:,.1f} s, {pace:,.0f} per second")
    if manifest.reduced is not None:
        share = manifest.reduced["explained_variance"]
        say(f"{manifest.embed_dim} of {manifest.reduced['from_dim']} components keep {share:.1%} of the variance")
    if manifest.num_left_out:
        say(f"{manifest.num_left_out:,} rows left out; each of them: {out}/left_out.jsonl")
