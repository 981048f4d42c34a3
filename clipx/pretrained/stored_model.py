"""The architecture of a stored model, whoever wrote it; needs no torch."""

from dataclasses import replace
from pathlib import Path

from clipx.checkpoint.find import ModelFiles
from clipx.checkpoint.store import stored_config
from clipx.config.model import HuggingFaceTextConfig, ModelConfig
from clipx.pretrained import huggingface, open_clip

TEXT_ENCODER = "text_encoder"
"""The folder of an export with the config and the tokenizer of a transformers text encoder."""


def stored_model(files: ModelFiles) -> ModelConfig:
    """The config of a model that was found.

    Raises:
        InputError: the file is not what it is called, or describes a model that clipx does not have.
    """
    match files.kind:
        case "transformers":
            return huggingface.read_config(files.local)
        case "open_clip":
            return open_clip.read_config(files.local)
        case "export":
            return _with_own_files(stored_config(files.folder, files.config).model, files.local)
        case _:
            return stored_config(files.folder, files.config).model


def without_download(config: ModelConfig) -> ModelConfig:
    """The same config without pretrained weights, because stored weights replace them."""
    text = replace(config.text, pretrained=False) if isinstance(config.text, HuggingFaceTextConfig) else config.text
    return replace(config, image=replace(config.image, pretrained=False), text=text)


def _with_own_files(config: ModelConfig, folder: Path) -> ModelConfig:
    """The config with the tokenizer and the text encoder that an export holds; others may be gone."""
    text = config.text
    if isinstance(text, HuggingFaceTextConfig):
        own = folder / TEXT_ENCODER
        if (own / "config.json").is_file():
            text = replace(text, name=str(own), tokenizer=str(own))
    elif text.tokenizer != "clip" and (folder / "tokenizer_config.json").is_file():
        text = replace(text, tokenizer=str(folder))
    return replace(config, text=text)
