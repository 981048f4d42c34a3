"""Another run's weights, or another library's, as the first weights of a run."""

import logging
from pathlib import Path

from torch import Tensor

from clipx.checkpoint.find import find_model
from clipx.checkpoint.tensors import load_tensors_by_name
from clipx.config.changes import named
from clipx.config.model import ModelConfig
from clipx.data.same_tokens import same_tokens
from clipx.data.tokenizer import Tokenizer
from clipx.errors import InputError
from clipx.models.clip import CLIP
from clipx.models.differences import model_differences
from clipx.models.fused import FusedModel
from clipx.models.vit import fit_positions
from clipx.pretrained.fitted import Fitted
from clipx.pretrained.loading import choose_average, load
from clipx.pretrained.model import Pretrained

log = logging.getLogger(__name__)

_TOWERS = ("image_tower.", "text_tower.")
_SCALE = "log_logit_scale"
_OF_LOGITS = (_SCALE, "logit_bias")
_ROUNDED = 1.001  # OpenAI's models were stored at 100 as log 4.6055, in half precision
_IMAGE_POSITIONS = "image_tower.trunk.pos_embed"
_TEXT_POSITIONS = "text_tower.position_embedding.weight"


def start_from(
    path: Path | str, model: CLIP, *, config: ModelConfig, tokenizer: Tokenizer, anyway: bool = False
) -> None:
    """Copies the weights stored at `path` into a model, to start another run from them.

    The position embeddings may have other sizes. That of images is resampled as the library of the folder does it:
    bicubic without antialiasing in transformers' folders, with it in all others. That of texts is cut, as transformers
    does it, so that a text that still fits has the embedding that it had; open_clip would stretch it, and change every
    text. What an objective adds to the towers, and a bias of the logits, keep their initial values if they are not
    stored. A model that will be fitted takes the towers alone, and from a fitted model they alone are taken: heads
    belong to their targets. The model is not wrapped or sharded yet.

    Args:
        path: of a model.
        model: takes the weights.
        config: what it was built from.
        tokenizer: of the run that begins.
        anyway: go on, with a warning, where equal weights of equal names compute something else in this model.

    Raises:
        InputError: the path has no model, one of another architecture or function, one with fewer positions of texts,
            or one whose multiplier of similarities is above the limit, to which the first step would set it.
    """
    wanted = model.state_dict()
    own = {name: tensor for name, tensor in wanted.items() if not name.startswith(_TOWERS) and name != _SCALE}
    is_fit = isinstance(model, FusedModel)
    try:
        before = load(path)
        stored = before.model.state_dict()
        files = find_model(path)
        if files.kind == "checkpoint" and not is_fit:
            stored |= load_tensors_by_name(files.folder, own, average=choose_average(files.folder, None))
    except InputError as error:
        raise InputError(f"{'encoder.from' if is_fit else 'start_from'}: {error}") from error
    _check_function(path, before, Pretrained(model, config, tokenizer=tokenizer), anyway=anyway)
    if is_fit or isinstance(before, Fitted):
        stored = {name: tensor for name, tensor in stored.items() if name.startswith((*_TOWERS, *_OF_LOGITS))}
    if isinstance(before, Fitted):
        log.info("%s predicts %s: its towers are taken alone", path, ", ".join(before.fit_config.targets))
    if not is_fit and (kept := sorted(own.keys() - stored.keys())):
        log.info("start_from: %s has no %s; its initial values stay", path, ", ".join(kept))
    stored = own | stored
    fitted = {name: stored[name] for name in wanted.keys() & stored.keys()}
    if _IMAGE_POSITIONS in fitted and model.image_tower.is_plain_vit:
        antialias = files.kind != "transformers"
        fitted[_IMAGE_POSITIONS] = fit_positions(model.image_tower.trunk, fitted[_IMAGE_POSITIONS], antialias=antialias)
    if _TEXT_POSITIONS in fitted and _TEXT_POSITIONS in wanted:
        fitted[_TEXT_POSITIONS] = _cut(fitted[_TEXT_POSITIONS], len(wanted[_TEXT_POSITIONS]), path)
    _check_scale(before, config, path)
    misfits = [name for name, tensor in wanted.items() if name not in fitted or fitted[name].shape != tensor.shape]
    if misfits:
        raise InputError(
            f"start_from={path} is another architecture than `model`: {misfits[0]}"
            f"{f' and {len(misfits) - 1} more' if len(misfits) > 1 else ''} differ; set `model` as it was trained"
        )
    model.load_state_dict(fitted)


def _cut(positions_LC: Tensor, length: int, path: Path | str) -> Tensor:
    """The first positions of texts."""
    if length > len(positions_LC):
        raise InputError(
            f"start_from={path} has positions for texts of {len(positions_LC)} tokens, fewer than "
            f"model.text.context_length={length}; lower it to at most {len(positions_LC)}"
        )
    return positions_LC[:length]


def _check_scale(before: Pretrained, config: ModelConfig, path: Path | str) -> None:
    if before.logit_scale > _ROUNDED * config.max_logit_scale:
        raise InputError(
            f"start_from={path} multiplies similarities by {before.logit_scale:.1f}, and the first step would set that "
            f"to model.max_logit_scale={config.max_logit_scale:g}; raise the limit (1000 is as good as none)"
        )


def _check_function(path: Path | str, before: Pretrained, now: Pretrained, *, anyway: bool) -> None:
    """Compares all that the weights do not show.

    Raises:
        InputError: something differs, and is not wanted `anyway`.
    """
    changed = model_differences(now.config, now.model, before=before.config, model_before=before.model)
    if not same_tokens(before.tokenizer, now.tokenizer):
        changed["text.tokenizer"] = (before.config.text.tokenizer, now.config.text.tokenizer)
    if not changed:
        return
    listed = named(changed, "model.")
    if not anyway:
        raise InputError(
            f"start_from={path} was trained in another model: {listed}; set `model` as it was trained, or begin with "
            "its weights all the same by start_from_anyway=true"
        )
    log.warning("start_from: %s was trained in another model: %s", path, listed)
