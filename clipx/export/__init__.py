"""One folder that transformers and open_clip load, compared with the trained model before it is called done."""

from clipx.export.run import export_model

__all__ = ["export_model"]
