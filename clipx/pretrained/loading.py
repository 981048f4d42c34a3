"""Loads a model: a run's, an export's, or another library's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from clipx.checkpoint.find import ModelFiles, find_model
from clipx.checkpoint.tensors import holds_average, load_weights
from clipx.config.fit import FitConfig
from clipx.config.model import ModelConfig
from clipx.config.schema import with_model
from clipx.data.tokenizer import build_tokenizer
from clipx.errors import InputError
from clipx.models.clip import CLIP, build_model
from clipx.models.fused import FusedModel, build_fused_model
from clipx.pretrained import huggingface, open_clip, own
from clipx.pretrained.fitted import Fitted
from clipx.pretrained.input_columns import fitted_config
from clipx.pretrained.model import Pretrained
from clipx.pretrained.stored_model import described, stored_model, without_download
from clipx.pretrained.whole_weights import check_whole
from clipx.storage.folders import Folder


def load(
    path: str | Path, *, device: str | torch.device = "cpu", weights: Literal["average", "trained"] | None = None
) -> Pretrained:
    """Loads a model in float32; one that a fit run trained is a `Fitted`, which predicts.

    Args:
        path: a run folder, a checkpoint (also by address, s3://...), an export, an average, a folder of transformers'
            or open_clip's, or hf://ORG/NAME[@REVISION].
        device: the device for the model.
        weights: of a checkpoint, "trained" or their "average" (`ema`); None means the average if there is one.

    Raises:
        InputError: the path has no model, the weights do not fit the config, or there is no average.
    """
    files = find_model(path)
    config = stored_model(files)
    tokenizer = build_tokenizer(config.text)
    job = described(files)
    if isinstance(job, FitConfig):
        resolved = with_model(job, without_download(config))
        assert isinstance(resolved, FitConfig)
        job = resolved
        model: CLIP = build_fused_model(job, vocab_size=tokenizer.vocab_size)
    else:
        model = build_model(without_download(config), vocab_size=tokenizer.vocab_size, seed=0)
    if files.kind == "checkpoint":
        load_weights(files.folder, model, average=choose_average(files.folder, weights))
    else:
        _fill(model, _read_weights(files, config), files.local)
    model = model.to(device).eval()
    if isinstance(job, FitConfig):
        assert isinstance(model, FusedModel)
        return Fitted(model, job, tokenizer=tokenizer)
    return Pretrained(model, config, tokenizer=tokenizer)


def load_fitted(
    path: str | Path, *, device: str | torch.device = "cpu", weights: Literal["average", "trained"] | None = None
) -> Fitted:
    """Loads a model that a fit run trained, as `load` does.

    Raises:
        InputError: it is a model of another kind, and the cases of `load`.
    """
    fitted_config(path)
    loaded = load(path, device=device, weights=weights)
    assert isinstance(loaded, Fitted)
    return loaded


def choose_average(checkpoint: Folder, weights: Literal["average", "trained"] | None) -> bool:
    """Whether to take the average of a checkpoint's weights; None means if there is one.

    Raises:
        InputError: there is none, and it is wanted.
    """
    has_average = holds_average(checkpoint)
    if weights == "average" and not has_average:
        raise InputError(f"{checkpoint} holds no average of the weights; take the trained ones, or train with `ema`")
    return has_average and weights != "trained"


def _read_weights(files: ModelFiles, config: ModelConfig) -> dict[str, Tensor]:
    """Weights under our names, from a file of our own or of either library; an export may have several."""
    folder = files.local
    if files.kind == "export":
        libraries = [library for library in (own, huggingface, open_clip) if (folder / library.WEIGHTS).is_file()]
        if not libraries:
            raise InputError(f"{folder} has neither {huggingface.WEIGHTS} nor {open_clip.WEIGHTS}; export it again")
        return libraries[0].read_weights(folder, config)
    return (huggingface if files.kind == "transformers" else open_clip).read_weights(folder, config)


def _fill(model: CLIP, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Copies weights into a model that was built from the config beside them.

    Raises:
        InputError: some are missing, are more than the model has, or have other shapes.
    """
    check_whole(weights, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, place=folder)
    model.load_state_dict(weights)  # which casts; counters of batch norms stay whole numbers
