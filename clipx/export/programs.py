"""The towers of a model as programs of torch.export, for any number of images or texts and any length of text.

Shapes: B images or texts, L tokens, S image size, D embedding.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from clipx.errors import RunError
from clipx.export.plain import padded_length, plain_image, plain_text
from clipx.export.serving import own_padding
from clipx.pretrained import Pretrained

_EXAMPLE = (3, 5)
"""Texts and tokens of the example that a program is made with: no dimension is 1, for that would be taken as fixed."""


def image_program(
    pretrained: Pretrained, *, dtype: torch.dtype = torch.float32, unit_length: bool = False
) -> ExportedProgram:
    """Maps pixel_values, normalised float32 (B, 3, S, S), to embeddings (B, D); for the arguments see `Plain`.

    Raises:
        RunError: torch.export does not take the trunk.
    """
    tower = plain_image(pretrained.model.image_tower, dtype=dtype, unit_length=unit_length)
    size = pretrained.config.image.image_size
    return _program(tower, (torch.zeros(_EXAMPLE[0], 3, size, size),), ({0: Dim("batch")},), "image")


def text_program(
    pretrained: Pretrained, *, dtype: torch.dtype = torch.float32, unit_length: bool = False
) -> ExportedProgram:
    """Maps input_ids and attention_mask, int64 (B, L), to embeddings (B, D); for the arguments see `Plain`.

    L is 2 to the context length. Where every text is padded to one length, which counts as text, there is no mask, and
    L is that length.

    Raises:
        RunError: torch.export does not take the encoder.
    """
    length = padded_length(pretrained.config.text)
    pad = own_padding(pretrained)
    tower = plain_text(
        pretrained.model.text_tower, dtype=dtype, unit_length=unit_length, pad=None if pad is None else pad[1]
    )
    if length is not None:
        ids_BL = torch.ones(_EXAMPLE[0], length, dtype=torch.int64)
        return _program(tower, (ids_BL,), ({0: Dim("batch")},), "text")
    longest = pretrained.config.text.context_length
    ids_BL = torch.ones(_EXAMPLE[0], min(_EXAMPLE[1], longest), dtype=torch.int64)
    shape = {0: Dim("batch"), 1: Dim("sequence", min=2, max=longest)} if longest > 2 else {0: Dim("batch")}
    return _program(tower, (ids_BL, torch.ones_like(ids_BL)), (shape, shape), "text")


def conversion_error(error: BaseException, what: str) -> RunError:
    """The one line of a conversion that failed: what, and the library's first reason."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return RunError(f"{what} ({reason}); export without this format, or choose another model")


@contextmanager
def quiet() -> Iterator[None]:
    """Without what converters warn of: it is for their authors, and the result is compared with the model."""
    names = ("torch.export", "torch.onnx", "torch._export", "onnxscript", "onnx_ir", "root")
    loggers = [logging.getLogger(None if name == "root" else name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@torch.no_grad()
def _program(
    module: nn.Module, example: tuple[Tensor, ...], shapes: tuple[dict[int, Any], ...], tower: str
) -> ExportedProgram:
    try:
        with quiet():
            return without_origin(torch.export.export(module, example, dynamic_shapes=shapes))
    except Exception as error:  # a model may hold anything
        raise conversion_error(error, f"torch.export does not take the {tower} tower") from error


def without_origin(program: ExportedProgram) -> ExportedProgram:
    """Removes the lines of code that every operation came from, which name folders of this machine."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program
