"""Exports one folder for transformers and open_clip, after comparing both with the trained model."""

from clipx.export.run import export_model

__all__ = ["export_model"]
