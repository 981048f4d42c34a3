"""What a person may choose about an export, besides its formats; imports no torch."""

from dataclasses import dataclass
from typing import Literal

Tower = Literal["image", "text"]
Dtype = Literal["fp32", "fp16"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Which part of a model is exported, and how its weights are stored."""

    only: Tower | None = None
    """One tower, for what needs no other; None: both."""
    dtype: Dtype = "fp32"
    """Of the stored weights."""
    int8: bool = False
    """Also a model with weights of 8 bits (onnx)."""
