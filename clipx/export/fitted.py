"""The export of a fitted model: its program for others, its weights for clipx, and what each needs, compared.

fitted.onnx, fitted.pt2       one program: pictures, token ids, cells and presence in, predictions in their units out
fitted.json                   its inputs and outputs (`clipx.export.fitted_settings`)
preprocessor_config.json, tokenizer files   how a picture becomes a square, and a text token ids
clipx_config.yaml, clipx_model.safetensors  the model for `clipx predict` and `clipx.load`
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipx import __version__
from clipx.data.in_order import own_blocks
from clipx.errors import InputError, RunError
from clipx.export.fitted_graph import fitted_program, free_axes, outputs_of
from clipx.export.fitted_settings import fitted_settings, output_name, write_settings
from clipx.export.formats import Format, formats_of
from clipx.export.onnx_graphs import convert, save_graph
from clipx.export.options import ExportOptions, Tower
from clipx.export.parity.consumer import LIMIT
from clipx.export.parity.fitted import CONSUMERS, Arrays, FittedConsumer, faults, fitted_row, graph_inputs
from clipx.export.parity.fitted_samples import FittedRow, FittedSamples
from clipx.export.programs import quiet
from clipx.export.serving import write_plain, write_text_encoder
from clipx.pretrained import load_fitted
from clipx.pretrained.fitted import Fitted
from clipx.pretrained.own import write_weights
from clipx.pretrained.row_samples import GivenRows

FORMATS: tuple[Format, ...] = ("onnx", "pt2")
_AT_ONCE = 32


def require_formats(fitted: Fitted, formats: Sequence[Format], options: ExportOptions) -> None:
    """Checks that a fitted model can be exported as asked.

    Raises:
        InputError: it cannot.
    """
    predicts = f"it predicts {', '.join(fitted.fit_config.targets)}"
    reasons = formats_of(fitted)
    if refused := [name for name in formats if reasons[name] is not None]:
        hint = f"; give --format {','.join(FORMATS)}" if refused[0] not in FORMATS else ""
        raise InputError(f"this model cannot be exported to {refused[0]}: {reasons[refused[0]]}{hint}")
    asked = {"--only": options.only, "--dtype": options.dtype if options.dtype != "fp32" else None}
    for option, value in (asked | {"--int8": options.int8 or None}).items():
        if value is not None:
            raise InputError(f"{option} is for towers, and this model is one program: {predicts}; leave it out")


def write_fitted(fitted: Fitted, folder: Path, formats: Sequence[Format]) -> None:
    """Writes all files but clipx_config.yaml, the card and the record.

    Raises:
        RunError: a format has no form of the model.
    """
    config = fitted.fit_config
    write_serving_files(fitted, folder)
    write_text_encoder(fitted, folder)
    write_weights(fitted.model.state_dict(), folder)
    program = fitted_program(fitted)
    if "pt2" in formats:
        with quiet():
            torch.export.save(program, folder / CONSUMERS["pt2"].file)
    if "onnx" in formats:
        graph = convert(program, list(fitted_settings(config)["outputs"]), free_axes(config))
        save_graph(graph, folder / CONSUMERS["onnx"].file, {})


def write_serving_files(fitted: Fitted, folder: Path) -> None:
    """Writes what says how a row becomes the program's inputs: fitted.json, preprocessor and tokenizer."""
    write_settings(fitted.fit_config, folder)
    towers: dict[str, Tower] = {"image": "image", "text": "text"}
    read = [towers[name] for name in fitted.fit_config.modalities if name in towers]
    if read:
        write_plain(fitted, folder, ExportOptions(only=read[0] if len(read) == 1 else None))


def check_fitted(fitted: Fitted, folder: Path, formats: Sequence[Format], samples: FittedSamples) -> dict[str, Any]:
    """Compares the export in a folder with the model, in the eyes of each who runs it: the content of parity.json.

    Raises:
        RunError: one fails on the export, or computes something else.
    """
    rows = samples.rows
    ours = our_outputs(fitted, rows)
    parity: dict[str, Any] = {
        "clipx": __version__,
        "limit": LIMIT,
        "compared_on": samples.origin,
        "pictures": sum(row.has("image") for row in rows),
        "texts": sum(row.has("text") for row in rows),
        "rows": len(rows),
        "consumers": {},
    }
    again = our_outputs(load_fitted(folder), rows)
    if changed := [name for name in ours if not np.array_equal(ours[name], again[name])]:
        raise RunError(f"clipx loads another model from the export: {changed[0]} differs; please report this")
    for name in formats:
        consumer = CONSUMERS[name]
        parity["consumers"][consumer.name] = {"format": name} | _row(consumer, fitted, folder, rows=rows, ours=ours)
    return parity


def our_outputs(fitted: Fitted, rows: Sequence[FittedRow]) -> dict[str, np.ndarray]:
    """What the model itself predicts, read as `Fitted.predict` reads rows, under the names of the program's outputs.

    Pictures are decoded by Pillow, as on the other side: faster decoders round some pixels otherwise.
    """
    config = replace(fitted.fit_config, data=replace(fitted.fit_config.data, decode="pil"))
    fitted = Fitted(fitted.model, config, tokenizer=fitted.tokenizer)
    given = GivenRows([row.cells for row in rows], config, absent=True)
    blocks = own_blocks(len(rows), batch_size=_AT_ONCE)
    found = [fitted.predict_block(block, read) for block, read in fitted.read(given, blocks)]
    if problems := {row: why for block in found for row, why in block.problems.items()}:
        raise RunError(f"row {min(problems)} of the comparison cannot be read: {problems[min(problems)]}")
    raw_BO = torch.cat([block.raw_BO for block in found])
    return {output_name(config, name): rows.numpy() for name, rows in outputs_of(config, raw_BO).items()}


def _row(
    consumer: FittedConsumer, fitted: Fitted, folder: Path, *, rows: Sequence[FittedRow], ours: Arrays
) -> dict[str, Any]:
    library = consumer.library()
    if library is None:
        return {"checked": False, "reason": f"not compared: the library of {consumer.name} is not installed"}
    config, texts = fitted.fit_config, [row.text for row in rows]
    tokens = None
    if "text" in config.modalities:
        tokens_T, lengths_B = fitted.tokenize(texts)
        tokens = [ids.tolist() for ids in tokens_T.split(lengths_B.tolist())]
    advice = "nothing was exported; please report this with the run's config.yaml"
    try:
        run = consumer.open(folder / consumer.file)
        row = fitted_row(config, run, inputs=graph_inputs(folder, rows), ours=ours, tokens=tokens)
    except Exception as error:  # a library may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RunError(f"{consumer.name} ({library}) fails on the export ({reason}); {advice}") from error
    if problems := faults(row):
        raise RunError(
            f"{consumer.name} ({library}) computes something else: {', '.join(problems)} (limit {LIMIT}, on "
            f"{len(rows)} rows); {advice}"
        )
    return {"checked": True, "library": library, "limit": LIMIT} | row | {"notes": []}
