"""The export as programs of torch.export: a tower runs with torch alone, without clipx or the library that built it."""

import json
from pathlib import Path

import torch

from clipx.export.options import ExportOptions, Tower
from clipx.export.parity.torch_export import CONSUMERS, FOLDER, SETTINGS, SUFFIXES, program_file
from clipx.export.plain import plain_problem
from clipx.export.programs import image_program, quiet, text_program
from clipx.export.serving import serving_settings, write_serving
from clipx.pretrained import Pretrained

__all__ = ["CONSUMERS", "problem", "write"]


def problem(pretrained: Pretrained, only: Tower | None = None) -> str | None:
    """Why a model, or its one tower, has no plain form; None: it has."""
    return plain_problem(pretrained.model, only)


def write(pretrained: Pretrained, folder: Path, options: ExportOptions) -> None:
    """Writes pt2/image_encoder.pt2 and pt2/text_encoder.pt2; both give embeddings of unit length, in float32.

    With half precision their names end with `_fp16`. Each has a file settings.json inside, with what makes logits of
    similarities, `logit_scale` and `logit_bias`, and the length to which every text is padded, `text_length`; null: no
    bias, any length.

    Raises:
        RunError: torch.export does not take a tower.
    """
    dtype = torch.float16 if options.dtype == "fp16" else torch.float32
    settings = json.dumps(serving_settings(pretrained))
    (folder / FOLDER).mkdir(exist_ok=True)
    for tower, program_of in (("image", image_program), ("text", text_program)):
        if options.only in (None, tower):
            program = program_of(pretrained, dtype=dtype, unit_length=True)
            with quiet():
                file = program_file(folder, tower, SUFFIXES[options.dtype])
                torch.export.save(program, file, extra_files={SETTINGS: settings})
    write_serving(pretrained, folder, options)
