"""Trained models: what `clipx.load` returns, and where it reads them, one file per library.

Everything is imported on first use: reading another library's config needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipx.pretrained.fitted import Fitted
    from clipx.pretrained.loading import load, load_fitted
    from clipx.pretrained.model import Pretrained
    from clipx.pretrained.starting import start_from

__all__ = ["Fitted", "Pretrained", "load", "load_fitted", "start_from"]

_MODULES = {
    "Fitted": "fitted",
    "Pretrained": "model",
    "load": "loading",
    "load_fitted": "loading",
    "start_from": "starting",
}

if not TYPE_CHECKING:  # or every name would be there for a type checker

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
