"""Another run's weights, or another library's, as the first weights of a run."""

import logging
from pathlib import Path

from clipx.checkpoint.find import find_model
from clipx.checkpoint.tensors import load_tensors_by_name
from clipx.config.changes import named
from clipx.config.model import ModelConfig
from clipx.data.tokenizer import Tokenizer
from clipx.errors import InputError
from clipx.models.clip import CLIP
from clipx.models.differences import model_differences
from clipx.models.vit import fit_positions
from clipx.pretrained.loading import choose_average, load
from clipx.pretrained.model import Pretrained

log = logging.getLogger(__name__)

_TOWERS = ("image_tower.", "text_tower.")
_SCALE = "log_logit_scale"
_IMAGE_POSITIONS = "image_tower.trunk.pos_embed"
_TEXT_POSITIONS = "text_tower.position_embedding.weight"
# short, so that two lengths of context do not cut them in two ways; with what tokenizers treat differently
_WORDS = (
    "a photo",
    "Zebra CROSSING",
    "don't",
    "3.14%",
    "naïve café",
    "&amp; so",
    "日本",
    "🙂",
    "un-believable",
    "a  b",
)


def start_from(
    path: Path | str, model: CLIP, *, config: ModelConfig, tokenizer: Tokenizer, anyway: bool = False
) -> None:
    """Copies the weights stored at `path` into a model, to start another run from them.

    The position embeddings may have other sizes: that of images is resampled, that of texts is cut. What an objective
    adds to the towers, and a bias of the logits, keep their initial values if they are not stored. The model is not
    wrapped or sharded yet.

    Args:
        path: of a model.
        model: takes the weights.
        config: what it was built from.
        tokenizer: of the run that begins.
        anyway: go on, with a warning, where equal weights of equal names compute something else in this model.

    Raises:
        InputError: the path has no model, or one of another architecture or function.
    """
    wanted = model.state_dict()
    own = {name: tensor for name, tensor in wanted.items() if not name.startswith(_TOWERS) and name != _SCALE}
    try:
        before = load(path)
        stored = before.model.state_dict()
        if (files := find_model(path)).kind == "checkpoint":
            stored |= load_tensors_by_name(files.folder, own, average=choose_average(files.folder, None))
    except InputError as error:
        raise InputError(f"start_from: {error}") from error
    _check_function(path, before, Pretrained(model, config, tokenizer=tokenizer), anyway=anyway)
    if kept := sorted(own.keys() - stored.keys()):
        log.info("start_from: %s has no %s; its initial values stay", path, ", ".join(kept))
    stored = own | stored
    fitted = {name: stored[name] for name in wanted.keys() & stored.keys()}
    if _IMAGE_POSITIONS in fitted and model.image_tower.is_plain_vit:
        fitted[_IMAGE_POSITIONS] = fit_positions(model.image_tower.trunk, fitted[_IMAGE_POSITIONS])
    if _TEXT_POSITIONS in fitted:
        fitted[_TEXT_POSITIONS] = fitted[_TEXT_POSITIONS][: len(wanted[_TEXT_POSITIONS])]
    misfits = [name for name, tensor in wanted.items() if name not in fitted or fitted[name].shape != tensor.shape]
    if misfits:
        raise InputError(
            f"start_from={path} is another architecture than `model`: {misfits[0]}"
            f"{f' and {len(misfits) - 1} more' if len(misfits) > 1 else ''} differ; set `model` as it was trained"
        )
    model.load_state_dict(fitted)


def _check_function(path: Path | str, before: Pretrained, now: Pretrained, *, anyway: bool) -> None:
    """Compares all that the weights do not show.

    Raises:
        InputError: something differs, and is not wanted `anyway`.
    """
    changed = model_differences(now.config, now.model, before=before.config, model_before=before.model)
    if not _same_tokens(before.tokenizer, now.tokenizer):
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


def _same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers, whatever their names, have one vocabulary and cut some words in the same way."""
    if one.vocab_size != other.vocab_size:
        return False
    return all(a.equal(b) for a, b in zip(one.encode(_WORDS), other.encode(_WORDS), strict=True))
