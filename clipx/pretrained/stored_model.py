"""The architecture of a stored model, whoever wrote it; needs no torch."""

from dataclasses import replace
from pathlib import Path
from typing import assert_never

from clipx.checkpoint.find import ModelFiles
from clipx.checkpoint.store import stored_config
from clipx.config.load import load_stored
from clipx.config.model import HuggingFaceTextConfig, ModelConfig
from clipx.config.schema import JobConfig, ModelFile
from clipx.errors import InputError
from clipx.pretrained import huggingface, open_clip
from clipx.pretrained.kept_texts import with_kept_texts
from clipx.storage.hub import hub_address

TEXT_ENCODER = "text_encoder"
"""The folder of an export with the config and the tokenizer of a transformers text encoder."""


def stored_model(files: ModelFiles) -> ModelConfig:
    """The config of a model that was found.

    Raises:
        InputError: the file is not what it is called, or describes a model that clipx does not have.
    """
    described_by = described(files)
    config = described_by.model
    if files.kind == "export":
        return _with_own_files(config, files.local)
    if isinstance(described_by, JobConfig):
        path = files.folder.path
        beside = [] if path is None else [path.parent.parent]  # the run folder may have been moved
        return with_kept_texts(config, [*beside, Path(described_by.run_dir)])
    return config


def described(files: ModelFiles) -> JobConfig | ModelFile:
    """What the files say of a model, for another folder of it: its run's config, else the architecture alone.

    Raises:
        InputError: the cases of `stored_model`.
    """
    match files.kind:
        case "transformers":
            return ModelFile(model=_named_by_hub(huggingface.read_config(files.local), files.local))
        case "open_clip":
            return ModelFile(model=_named_by_hub(open_clip.read_config(files.local), files.local))
        case "export":
            path = files.local / files.config
            if not path.is_file():  # a stranger's pipe would be waited for
                raise InputError(f"{path} is not a regular file; take another model")
            return load_stored(path)
        case "checkpoint":
            return stored_config(files.folder, files.config)
        case _:
            assert_never(files.kind)


def _named_by_hub(config: ModelConfig, folder: Path) -> ModelConfig:
    """The config with the address at the hub for a tokenizer in the hub's cache, which others have elsewhere."""
    address = hub_address(folder)
    if address is None or config.text.tokenizer != str(folder):
        return config
    return replace(config, text=replace(config.text, tokenizer=address))


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
