"""The export for ONNX Runtime and transformers.js: three graphs, in the dtypes that were asked for.

The files have the names by which transformers.js finds them: onnx/model.onnx, vision_model.onnx and text_model.onnx,
with `_fp16` for half precision and `_quantized` for weights of 8 bits.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

from clipx.export.onnx_graphs import Graph, also_named, convert, join, quantize, save_graph
from clipx.export.options import ExportOptions, Tower
from clipx.export.parity.onnxruntime import CONSUMERS, FOLDER, SUFFIXES
from clipx.export.plain import padded_length, plain_problem
from clipx.export.programs import image_program, text_program
from clipx.export.serving import serving_settings, write_serving
from clipx.pretrained import Pretrained

__all__ = ["CONSUMERS", "problem", "write"]

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def problem(pretrained: Pretrained, only: Tower | None = None) -> str | None:
    """Why a model, or its one tower, cannot be exported to ONNX here; None: it can."""
    return missing_packages() or plain_problem(pretrained.model, only)


def missing_packages() -> str | None:
    """What must be installed to write graphs, and how; None: nothing."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    return f"{', '.join(missing)} not installed; pip install 'clipx-train[onnx]'" if missing else None


def write(pretrained: Pretrained, folder: Path, options: ExportOptions) -> None:
    """Writes the graphs of the towers and, with both, of the whole model, and what serves them.

    Inputs and outputs are float32 in every file. With `int8` the quantized graphs are added to those of `dtype`.

    Raises:
        RunError: a tower cannot be converted.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    half = options.dtype == "fp16"
    towers = _convert_towers(pretrained, options, torch.float16 if half else torch.float32)
    _write_graphs(pretrained, towers, folder / FOLDER, SUFFIXES[options.dtype])
    if options.int8:
        if half:
            towers = _convert_towers(pretrained, options, torch.float32)
        _write_graphs(
            pretrained, {name: quantize(graph) for name, graph in towers.items()}, folder / FOLDER, SUFFIXES["int8"]
        )
    write_serving(pretrained, folder, options)


def _convert_towers(pretrained: Pretrained, options: ExportOptions, dtype: torch.dtype) -> dict[str, Graph]:
    """The graphs of the towers by the names of their files."""
    towers: dict[str, Graph] = {}
    if options.only != "text":
        program = image_program(pretrained, dtype=dtype)
        towers["vision_model"] = convert(program, "image_embeds", {"pixel_values": ("image_batch_size",)})
    if options.only != "image":
        program = text_program(pretrained, dtype=dtype)
        axes = ("text_batch_size", "sequence_length")
        inputs = ["input_ids"] if padded_length(pretrained.config.text) else ["input_ids", "attention_mask"]
        towers["text_model"] = convert(program, "text_embeds", dict.fromkeys(inputs, axes))
    return towers


def _write_graphs(pretrained: Pretrained, towers: dict[str, Graph], folder: Path, suffix: str) -> None:
    settings = serving_settings(pretrained)
    graphs = dict(towers)
    if len(towers) == 2:
        graphs["model"] = join(
            towers["vision_model"],
            towers["text_model"],
            logit_scale=settings["logit_scale"],
            logit_bias=settings["logit_bias"],
        )
    # transformers.js reads the embeddings of towers that end without a projection, as SigLIP's, by another name
    if isinstance(pretrained.model.image_tower.projection, torch.nn.Identity) and "vision_model" in towers:
        graphs["vision_model"] = also_named(towers["vision_model"], "image_embeds", "pooler_output")
    if padded_length(pretrained.config.text) and "text_model" in towers:
        graphs["text_model"] = also_named(towers["text_model"], "text_embeds", "pooler_output")
    for name, graph in graphs.items():
        save_graph(graph, folder / f"{name}{suffix}.onnx", settings)
