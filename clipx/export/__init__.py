"""Exports one folder for transformers and open_clip, after comparing both with the trained model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipx.export.run import export_model

__all__ = ["export_model"]


def __getattr__(name: str) -> Any:
    """Imports `export_model` on first use: it needs torch, and the names of the formats do not."""
    if name == "export_model":
        from clipx.export.run import export_model

        return export_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
