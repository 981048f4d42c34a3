"""`clipx export`: writes a folder for those who will use a model, and shows what each of them computes from it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from clipx.cli.early import require_model, require_pictures
from clipx.cli.model import ModelArgument, WeightsOption
from clipx.export.options import Dtype, ExportOptions, Tower
from clipx.printable import shown

if TYPE_CHECKING:
    from clipx.export.formats import Format


def export(
    model: ModelArgument,
    *,
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.", show_default=False)],
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAMES",
            help="Some of hf, open_clip, onnx, pt2, with commas.",
            show_default="hf,open_clip; of a fitted model onnx,pt2",
        ),
    ] = None,
    weights: WeightsOption = None,
    only: Annotated[Tower | None, typer.Option(help="One tower alone (hf, onnx, pt2).")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of the stored weights.")] = "fp32",
    int8: Annotated[bool, typer.Option("--int8", help="Also models with weights of 8 bits (onnx).")] = False,
    pictures: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|SHARDS",
            help="Compare on these pictures, and their captions in shards; default: drawn ones.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print parity.json instead of the table.")] = False,
) -> None:
    """Write a folder that transformers and others load, and compare each of them with the model (parity.json)."""
    from clipx.distributed.environment import overrule_environment
    from clipx.export.folder import require_own
    from clipx.export.formats import DEFAULT_FORMATS, check_formats

    names = None if formats is None else [name.strip() for name in formats.split(",")]
    options = ExportOptions(only=only, dtype=dtype, int8=int8)
    check_formats(DEFAULT_FORMATS if names is None else names, options)
    require_own(to)
    require_pictures(pictures)
    require_model(model)
    overrule_environment()
    from clipx.export.run import export_model

    parity = export_model(
        model, to, cast("list[Format] | None", names), weights=weights, options=options, pictures=pictures
    )
    if as_json:
        typer.echo(json.dumps(parity, indent=2))
    else:
        _print_parity(parity, to)


def _print_parity(parity: Mapping[str, Any], to: Path) -> None:
    """Prints a row for each consumer, and below what it sees otherwise than the model, and where the export is."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    numbers = ("pictures", "crop", "texts", "ids", "differs")
    table = Table(Column("loaded by", overflow="fold"), *(Column(name, justify="right") for name in numbers))
    lines: dict[str, list[str]] = {}
    for name, row in parity["consumers"].items():
        table.add_row(*(Text(shown(cell)) for cell in (name, *_numbers(row))))
        for line in _remarks(row):
            lines.setdefault(line, []).append(name)
    told = [f"{line} ({'; '.join(names)})" for line, names in lines.items()]
    if half := parity.get("half_precision"):
        lowest = min(half["lowest_cosine"].values())
        told.append(f"weights in half precision: cosine to the trained model's embeddings down to {lowest:.6f}")
    told.append("crop, ids: how many see the same pixels and tokens as the model; differs: by the most where they do")
    told.append(f"compared on {_compared(parity)}: {parity['compared_on']}")
    told.append(f"exported to {to}; all figures are in parity.json there")
    console = Console()
    console.print(table)
    for line in told:
        console.print(Text(shown(line)))


def _compared(parity: Mapping[str, Any]) -> str:
    """How many pictures, texts and, of a model that predicts, rows."""
    inputs = f"{parity['pictures']} pictures and {parity['texts']} texts"
    return f"{parity['rows']} rows with {inputs}" if "rows" in parity else inputs


def _numbers(row: Mapping[str, Any]) -> list[str]:
    """The cells of a row behind its name; empty where it has none."""
    difference = max(row.get("largest_difference", {}).values(), default=None)
    return [
        str(row.get("pictures", "")),
        f"{row['same_crop']:.1%}" if "same_crop" in row else "",
        str(row.get("texts", "")),
        f"{row['same_token_ids']:.1%}" if "same_token_ids" in row else "",
        "" if difference is None else f"{difference:.1e}",
    ]


def _remarks(row: Mapping[str, Any]) -> list[str]:
    """What a person must know of a consumer besides its numbers."""
    if not row["checked"]:
        return ["not compared, as the library is not installed"]
    found = [] if row["limit"] is not None else ["told only, no limit"]
    if other := row.get("other_crop"):
        found.append(
            f"{other['pictures']} pictures are cut one pixel aside: cosine down to {other['lowest_cosine']:.4f}"
        )
    if other := row.get("other_token_ids"):
        found.append(f"{other['texts']} texts have other token ids: cosine down to {other['lowest_cosine']:.4f}")
    if changed := row.get("other_best_text"):
        found.append(f"another text is the best for {changed} pictures")
    return found
