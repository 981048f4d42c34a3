"""The formats of an export, and where each is written; imports no torch until a format is used."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, assert_never, get_args

from clipx.errors import InputError
from clipx.export.options import ExportOptions, Tower

if TYPE_CHECKING:
    from clipx.export.parity.consumer import Consumer
    from clipx.models.fused import FusedModel
    from clipx.pretrained import Pretrained

Format = Literal["hf", "open_clip", "onnx", "pt2"]
DEFAULT_FORMATS: tuple[Format, ...] = ("hf", "open_clip")
"""Of a model of two towers."""
_ONE_TOWER: tuple[Format, ...] = ("hf", "onnx", "pt2")


class FormatModule(Protocol):
    """What the module of a format has."""

    @property
    def CONSUMERS(self) -> "tuple[Consumer, ...]":  # noqa: N802 (a constant of the module)
        """Those who load the format's files, each a row of parity.json."""

    def problem(self, pretrained: "Pretrained", only: Tower | None = None) -> str | None:
        """Why a model, or its one tower, cannot be exported to the format, for the end of a line; None: it can."""

    def write(self, pretrained: "Pretrained", folder: Path, options: ExportOptions) -> None:
        """Writes the format's files into a folder, perhaps beside those of others; `problem` gave None."""


def check_formats(formats: Sequence[str], options: ExportOptions | None = None) -> None:
    """Checks the formats' names, and that each can do what the options ask for.

    Raises:
        InputError: no format, an unknown one, or one that cannot do it.
    """
    known = get_args(Format)
    if not formats or set(formats) - set(known):
        raise InputError(f"formats {', '.join(formats) or 'none'}: known are {', '.join(known)}; give one or more")
    options = options or ExportOptions()
    if options.only and (whole := [name for name in formats if name not in _ONE_TOWER]):
        raise InputError(
            f"--only {options.only}: {', '.join(whole)} has no place for one tower alone; "
            f"give --format {','.join(_ONE_TOWER)} or some of them"
        )
    if options.int8 and "onnx" not in formats:
        raise InputError(f"--int8 is for onnx, and the formats are {', '.join(formats)}; add onnx to --format")


def formats_of(pretrained: "Pretrained") -> dict[Format, str | None]:
    """Every format, with the reason why a model cannot be exported to it; None: it can. Nothing is converted."""
    from clipx.models.fused import FusedModel

    if isinstance(pretrained.model, FusedModel):
        return _formats_of_fused(pretrained.model)
    return {name: format_module(name).problem(pretrained) for name in get_args(Format)}


def _formats_of_fused(model: "FusedModel") -> dict[Format, str | None]:
    """The same for a model that predicts, which is exported as one program (`clipx.export.fitted`)."""
    from clipx.export.onnx import missing_packages
    from clipx.export.plain import plain_problem

    plain = plain_problem(model, None if "text" in model.layout.modalities else "image")
    foreign = "it predicts columns of a table, for which that format has no place"
    found: dict[Format, str | None] = dict.fromkeys(get_args(Format), foreign)
    return found | {"onnx": missing_packages() or plain, "pt2": plain}


def format_module(name: Format) -> FormatModule:
    """The module that writes a format."""
    match name:
        case "hf":
            from clipx.export import huggingface

            return huggingface
        case "open_clip":
            from clipx.export import open_clip

            return open_clip
        case "onnx":
            from clipx.export import onnx

            return onnx
        case "pt2":
            from clipx.export import pt2

            return pt2
        case _:
            assert_never(name)
