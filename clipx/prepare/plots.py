"""Draws what `stats` measured; owns matplotlib, which is optional."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipx.errors import InputError
from clipx.prepare.own_files import PNG_MARK
from clipx.prepare.stats import Measured
from clipx.printable import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 61  # odd: a ratio of 1 lies within a bin and not between two
# Okabe and Ito's colours, told apart by the colour-blind too (Color Universal Design, 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def draw_stats(measured: Mapping[str, Measured], path: Path, *, context_length: int, image_size: int | None) -> None:
    """Writes one PNG with four histograms, a line for each source; heights are shares, so that sources compare.

    Captions are cut at `context_length` tokens; `image_size` is in pixels, None if there is no model.

    Raises:
        InputError: the PNG cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), dpi=120, layout="constrained")
    (tokens, sides), (aspects, sizes) = figure.subplots(2, 2)
    _tokens(tokens, measured, context_length)
    _logarithmic(sides, {name: source.values("short_side") for name, source in measured.items()})
    sides.set(title="Short side of the pictures", xlabel="pixels")
    if image_size is not None:
        _mark(sides, image_size, f"image size {image_size}")
    _logarithmic(aspects, {name: source.values("aspect") for name, source in measured.items()}, limits=(0.2, 5))
    aspects.set(title="Width over height (from 1:5 to 5:1)", xlabel="ratio")
    _mark(aspects, 1, "square")
    _logarithmic(sizes, {name: source.values("num_bytes") / 1000 for name, source in measured.items()})
    sizes.set(title="Size of the samples", xlabel="kB, all members")
    for axes in (tokens, sides, aspects, sizes):
        _tidy(axes)
    if len(measured) > 1:
        handles, labels = sides.get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside upper center", ncols=min(6, len(labels)), frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a name may hold dollars
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata=PNG_MARK)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}; choose another folder") from error


def _tokens(axes: "Axes", measured: Mapping[str, Measured], context_length: int) -> None:
    tokens = {name: source.values("tokens") for name, source in measured.items()}
    longest = max(int(lengths.max()) for lengths in tokens.values())
    end = min(longest, 2 * context_length)
    edges = np.arange(0.5, end + 1.5, max(1, end // _BINS))
    _lines(axes, {name: np.minimum(lengths, edges[-1] - 0.25) for name, lengths in tokens.items()}, edges)
    axes.set(title="Length of the captions" + (" (longer ones in the last bar)" if longest > end else ""))
    axes.set_xlabel("tokens")
    _mark(axes, context_length + 0.5, f"cut after {context_length}")


def _logarithmic(axes: "Axes", values: Mapping[str, np.ndarray], limits: tuple[float, float] | None = None) -> None:
    everything = np.concatenate(list(values.values()))
    low, high = limits or (float(everything.min()) / 1.1, float(everything.max()) * 1.1)  # never a single point
    edges = np.geomspace(low, high, _BINS + 1)
    axes.set_xscale("log")
    _lines(axes, {name: np.clip(array, low * 1.0001, high / 1.0001) for name, array in values.items()}, edges)
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _lines(axes: "Axes", values: Mapping[str, np.ndarray], edges: np.ndarray) -> None:
    for i, (name, array) in enumerate(values.items()):
        colour: Any = _COLOURS[i % len(_COLOURS)]
        shares = np.histogram(array, edges)[0] / len(array)
        axes.stairs(
            shares, edges, color=colour, fill=len(values) == 1, linewidth=1.5, label=f" {shown(name)}"
        )  # after _ it would be hidden


def _mark(axes: "Axes", place: float, text: str) -> None:
    low, high = axes.get_xlim()
    if not low <= place <= high:
        return
    axes.axvline(place, color="#888888", linewidth=1, linestyle="--")
    text_at = axes.get_xaxis_transform()  # data along x, a share of the axes along y
    axes.annotate(text, (place, 1), xycoords=text_at, xytext=(4, -12), textcoords="offset points", color="#666666")


def _tidy(axes: "Axes") -> None:
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.set_ylabel("samples")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
