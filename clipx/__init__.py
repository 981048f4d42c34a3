"""clipx: pretrain CLIP-style models on many GPUs. `clipx.load(path)` gives a trained one back."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports `load` on first use: it needs torch, and `clipx config` must not."""
    if name == "load":
        from clipx.pretrained import load

        return load
    raise AttributeError(f"module 'clipx' has no attribute {name!r}")
