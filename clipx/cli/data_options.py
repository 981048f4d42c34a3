"""Arguments and options of `clipx data`, by the names that its commands give them."""

from pathlib import Path
from typing import Annotated, Literal

import typer

ShardsArgument = Annotated[
    list[str], typer.Argument(metavar="SHARDS", help="Tar files, folders, globs, braces, URLs.", show_default=False)
]
ShardsOrConfig = Annotated[
    list[str],
    typer.Argument(
        metavar="SHARDS|CONFIG.yaml",
        help="Shards, or a run's config (with KEY=VALUE) for its sources.",
        show_default=False,
    ),
]
ImageKey = Annotated[str | None, typer.Option(metavar="KEY", help="As data.image_key.")]
CaptionKey = Annotated[str | None, typer.Option(metavar="KEY", help="As data.caption_key.")]
Workers = Annotated[int | None, typer.Option(min=1, metavar="N", help="Processes; default: one per core.")]

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="A folder of pictures with NAME.txt or NAME.json beside them, in a folder for each class, or with a "
        "metadata.csv|jsonl; a CSV, TSV, JSONL or parquet of paths and captions or labels; COCO's `captions_*.json` or "
        "Karpathy's `dataset_*.json`; a data set of HF datasets or its hub; CIFAR's binaries; shards.",
        show_default=False,
    ),
]
OutFolder = Annotated[
    str,
    typer.Option(metavar="DIR", help="Folder of the shards; begun before, it goes on.", show_default=False),
]
ShardSize = Annotated[int, typer.Option(min=1, metavar="N", help="Samples per shard.")]
NumShards = Annotated[int | None, typer.Option(min=1, metavar="N", help="Shards, instead of --shard-size.")]
Shuffle = Annotated[
    int | None, typer.Option(min=0, metavar="SEED", help="Random order of this seed; default: as in the source.")
]
ImageColumn = Annotated[str | None, typer.Option(metavar="NAME", help="Column of the pictures.")]
CaptionColumns = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Column of captions; may be given several times, for several captions."),
]
JoinCaptions = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help='Join the texts of the caption columns to one caption, with this between them, as ", "; empty cells are '
        "passed over.",
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Column of labels, numbers or words, which become `cls`; default: Hugging Face's ClassLabel, or one of a "
        "usual name where no column holds captions.",
    ),
]
ClassFolders = Annotated[
    bool | None,
    typer.Option(
        "--class-folders/--no-class-folders",
        help="Take the folders in a folder of pictures as classes; default: if no picture has a caption.",
        show_default=False,
    ),
]
Header = Annotated[
    str | None,
    typer.Option(metavar="NAME,NAME", help="Columns of a CSV or TSV whose first row does not name them, in its order."),
]
Quoting = Annotated[
    Literal["double", "none"], typer.Option(help="Of CSV and TSV; none: quotes are a part of the texts.")
]
Splits = Annotated[
    list[str] | None, typer.Option("--split", metavar="NAME", help="Of a source with several; repeatable.")
]
GroupRows = Annotated[bool, typer.Option(help="Make one sample of all rows of a picture, with all their captions.")]
ImageFolder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where paths start from; default: the table's folder."),
]
Absent = Annotated[
    bool,
    typer.Option(
        "--absent",
        help="Make samples of rows without a picture (empty cell, a file that is not there) or without a text, too; "
        "all other columns stand in their json. Pictures that cannot be read are still left out.",
    ),
]
KeyColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Column of the samples' keys, each another one; . and / become _. Default: the row's number.",
    ),
]
ShortSide = Annotated[
    int | None, typer.Option(min=16, metavar="PX", help="Reduce pictures to this short side, as JPEG; default: never.")
]
Quality = Annotated[
    int | None, typer.Option(min=1, max=100, help="Encode all pictures anew as JPEG; default: only reduced ones, 95.")
]
Verify = Annotated[bool, typer.Option(help="Decode each picture, to leave out broken ones.")]
IndexOfShards = Annotated[
    str | None,
    typer.Option("--index", metavar="DIR", help="Of shards: take only what this index holds."),
]
ShardImageKey = Annotated[str, typer.Option(metavar="KEY", help="Of shards: as data.image_key.")]
MaxBad = Annotated[float, typer.Option(min=0, max=1, help="Share of rows that may be left out (from 100 on).")]
