"""What those who run a fitted model compute, from the files of its export alone, compared with the model itself.

The limit is on a probability, and on a number's difference as a share of its scale. What stands in the place of an
absent input must not change one bit.

Shapes: B rows, S image size, L tokens.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clipx.config.fit import FitConfig
from clipx.config.fit_inputs import NumberTarget
from clipx.export.fitted_settings import (
    CATEGORIES,
    IDS,
    MASK,
    NUMBERS,
    PICTURES,
    PRESENCE,
    SETTINGS,
    output_name,
)
from clipx.export.parity.consumer import LIMIT, library_version
from clipx.export.parity.fitted_samples import FittedRow
from clipx.export.parity.serving import squares, token_rows, unpadded

Arrays = Mapping[str, np.ndarray]
"""Inputs, or outputs, of the program by their names; the first axis is that of rows."""
_AT_ONCE = 7  # rows: the example that a program was made with has 3


@dataclass(frozen=True, kw_only=True)
class FittedConsumer:
    """Somebody who runs the program: a row of parity.json."""

    name: str
    file: str
    """In the export."""
    library: Callable[[], str | None]
    """Name and version of the library; None if it is not installed."""
    open: Callable[[Path], Callable[[Arrays], Arrays]]
    """Of the file, a function from inputs to outputs."""


def _open_onnx(path: Path) -> Callable[[Arrays], Arrays]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _open_program(path: Path) -> Callable[[Arrays], Arrays]:
    predict = torch.export.load(path).module()

    def run(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            outputs = predict(**{name: torch.from_numpy(rows) for name, rows in inputs.items()})
        return {name: rows.numpy() for name, rows in outputs.items()}

    return run


CONSUMERS = {
    "onnx": FittedConsumer(
        name="onnxruntime",
        file="fitted.onnx",
        library=lambda: library_version("onnxruntime", "onnxruntime"),
        open=_open_onnx,
    ),
    "pt2": FittedConsumer(
        name="torch.export", file="fitted.pt2", library=lambda: library_version("torch", "torch"), open=_open_program
    ),
}


def graph_inputs(folder: Path, rows: Sequence[FittedRow]) -> dict[str, np.ndarray]:
    """The inputs of the program, made of rows as fitted.json and the files beside it say.

    What stands in the place of an absent input is a black picture, an empty text, NaN, and -1.
    """
    wanted = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["inputs"]
    found: dict[str, np.ndarray] = {}
    if PICTURES in wanted:
        blank = Image.new("RGB", tuple(wanted[PICTURES]["shape"][1:3]))
        found[PICTURES] = squares(folder, [row.picture or blank for row in rows])
    if IDS in wanted:
        length = wanted[IDS]["shape"][1]
        length = length if isinstance(length, int) else None
        found[IDS], mask_BL = token_rows(folder, [row.text for row in rows], length=length)
        found |= {MASK: mask_BL} if MASK in wanted else {}
    if NUMBERS in wanted:
        found[NUMBERS] = np.array([row.numbers for row in rows], dtype=np.float64)
    if CATEGORIES in wanted:
        found[CATEGORIES] = np.array([row.categories for row in rows], dtype=np.int64)
    of = wanted[PRESENCE]["of"]
    found[PRESENCE] = np.array([[row.has(name) for name in of] for row in rows], dtype=np.float32)
    return found


def with_other_absent(inputs: Arrays, modalities: Sequence[str]) -> dict[str, np.ndarray]:
    """The same inputs with noise in the place of what is absent, out of any range."""
    generator = np.random.default_rng(1)
    changed = {name: rows.copy() for name, rows in inputs.items()}
    noise: dict[str, tuple[str, Callable[[tuple[int, ...]], np.ndarray]]] = {
        PICTURES: ("image", lambda shape: generator.integers(0, 256, shape)),
        IDS: ("text", lambda shape: generator.integers(-(10**9), 10**9, shape)),
        MASK: ("text", lambda shape: generator.integers(0, 2, shape)),
        NUMBERS: ("table", lambda shape: generator.normal(size=shape) * 1e6),
        CATEGORIES: ("table", lambda shape: generator.integers(-(10**9), 10**9, shape)),
    }
    for name, (modality, draw) in noise.items():
        if name in changed:
            absent_B = inputs[PRESENCE][:, list(modalities).index(modality)] == 0
            changed[name][absent_B] = draw(changed[name][absent_B].shape)
    return changed


def in_parts(run: Callable[[Arrays], Arrays], inputs: Arrays) -> dict[str, np.ndarray]:
    """The outputs for all rows, a few at a time."""
    count = len(inputs[PRESENCE])
    parts = [
        run({name: rows[start : start + _AT_ONCE] for name, rows in inputs.items()})
        for start in range(0, count, _AT_ONCE)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def fitted_row(
    config: FitConfig, run: Callable[[Arrays], Arrays], *, inputs: Arrays, ours: Arrays, tokens: list[list[int]] | None
) -> dict[str, Any]:
    """The row of parity.json: the largest difference of each target, over rows whose tokens are the model's.

    Args:
        run: the consumer's.
        inputs: as the consumer makes them.
        ours: outputs of the model, under the same names.
        tokens: the model's token ids of every row; None: it reads no text.
    """
    outputs = in_parts(run, inputs)
    noisy = in_parts(run, with_other_absent(inputs, config.modalities))
    same_B = np.full(len(inputs[PRESENCE]), True)
    told: dict[str, Any] = {}
    if "image" in config.modalities:
        told |= {"pictures": int(inputs[PRESENCE][:, config.modalities.index("image")].sum()), "same_crop": 1.0}
    if tokens is not None:
        same_B = _same_tokens(config, inputs, tokens)
        told |= {"texts": int(inputs[PRESENCE][:, config.modalities.index("text")].sum())}
        told |= {"same_token_ids": round(float(same_B.mean()), 4)}
    rows = {"rows": len(same_B), "changed_by_absent": sum(_num_changed(outputs[name], noisy[name]) for name in outputs)}
    return (
        told
        | rows
        | {
            "largest_difference": {
                name: _difference(config, name, ours[output], outputs[output], same_B)
                for name in config.targets
                for output in [output_name(config, name)]
            }
        }
    )


def faults(row: Mapping[str, Any]) -> list[str]:
    """What is wrong with a row, in words; empty: nothing."""
    found = [f"{name} by {value:.3g}" for name, value in row["largest_difference"].items() if not value <= LIMIT]
    if row["changed_by_absent"]:
        found.append(f"{row['changed_by_absent']} numbers that change with what stands in the place of an absent input")
    return found


def _same_tokens(config: FitConfig, inputs: Arrays, tokens: list[list[int]]) -> np.ndarray:
    """Of each row, whether its text is absent or has the token ids that the model sees."""
    ids_BL = inputs[IDS]
    theirs = unpadded(ids_BL, inputs[MASK]) if MASK in inputs else ids_BL.tolist()
    present_B = inputs[PRESENCE][:, config.modalities.index("text")] > 0
    return np.array([not there or a == b for there, a, b in zip(present_B, theirs, tokens, strict=True)])


def _difference(config: FitConfig, name: str, ours: np.ndarray, theirs: np.ndarray, same_B: np.ndarray) -> float:
    """The largest, of a probability, or of a number over its scale: the standard deviation, or a price itself."""
    assert ours.shape == theirs.shape, f"{ours.shape} and {theirs.shape}"
    target, apart = config.targets[name], np.abs(ours[same_B].astype(np.float64) - theirs[same_B])
    if isinstance(target, NumberTarget):
        apart = apart / (np.abs(ours[same_B]) if target.transform == "log" else (target.std or 1.0))
    return float(apart.max(initial=0.0))


def _num_changed(rows: np.ndarray, others: np.ndarray) -> int:
    """How many numbers differ in a bit."""
    return int((rows.view(np.uint8) != others.view(np.uint8)).reshape(rows.size, -1).any(1).sum())
