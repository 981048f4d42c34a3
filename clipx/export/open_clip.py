"""The export for open_clip: writes its files.

A ViT of CLIP's shape becomes open_clip's own, which needs no timm and has any size; any other trunk goes by its wrapper
of timm.
"""

import json
from pathlib import Path

from clipx.config.model import HuggingFaceTextConfig
from clipx.data.tokenizer import ClipTokenizer
from clipx.errors import InputError
from clipx.export.open_clip_config import describe
from clipx.export.options import ExportOptions, Tower
from clipx.export.parity.open_clip import CONSUMERS
from clipx.export.weights import save_weights
from clipx.models.huggingface_text import save_encoder_config
from clipx.models.key_maps.open_clip import key_map
from clipx.pretrained import Pretrained
from clipx.pretrained.open_clip import WEIGHTS
from clipx.pretrained.open_clip_config import CONFIG
from clipx.pretrained.stored_model import TEXT_ENCODER
from clipx.storage.drafts import becomes

__all__ = ["CONSUMERS", "problem", "write"]


def problem(pretrained: Pretrained, only: Tower | None = None) -> str | None:
    """Why open_clip cannot build a model; None: it can."""
    if only:
        return "it has no place for one tower alone"
    try:
        describe(pretrained, text_encoder=TEXT_ENCODER)
    except InputError as error:
        return str(error)
    return None


def write(pretrained: Pretrained, folder: Path, options: ExportOptions) -> None:
    """Writes what `open_clip.create_model_from_pretrained("local-dir:FOLDER")` and `get_tokenizer` load.

    open_clip builds a transformers text by a hub name or a folder's whole path, of which a relative one begins where
    the program was started. So its config is written into the export, and the path is that of the finished export.
    """
    content, towers = describe(pretrained, text_encoder=str(becomes(folder) / TEXT_ENCODER))
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_weights(key_map(towers).to_theirs(pretrained.model.state_dict()), folder / WEIGHTS, options)
    if isinstance(pretrained.config.text, HuggingFaceTextConfig):
        own = folder / TEXT_ENCODER
        save_encoder_config(pretrained.config.text.name, own)
        pretrained.tokenizer.save(own)
    if not isinstance(pretrained.tokenizer, ClipTokenizer) and not (folder / "tokenizer_config.json").exists():
        pretrained.tokenizer.save(folder)  # unless another format's is there
