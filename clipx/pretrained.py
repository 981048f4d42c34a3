"""A trained model with its tokenizer and preprocessing: the result of `clipx.load`, used by evaluation and export.

Shapes: B images or texts, S image size, T tokens, D embedding.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clipx.checkpoint.find import EXPORT_CONFIG, find_model
from clipx.checkpoint.store import stored_config
from clipx.checkpoint.tensors import holds_average, load_tensors_by_name, load_weights
from clipx.config.changes import named
from clipx.config.model import HuggingFaceTextConfig, ModelConfig
from clipx.data.tokenizer import Tokenizer, build_tokenizer
from clipx.data.transforms import EvalTransform
from clipx.errors import InputError
from clipx.models.clip import CLIP, build_model
from clipx.models.differences import model_differences
from clipx.models.vit import fit_positions
from clipx.storage.folders import Folder

log = logging.getLogger(__name__)

HUGGINGFACE_WEIGHTS = "model.safetensors"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
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


class Pretrained:
    """Computes embeddings of images and texts; the mode, dtype and device of the model do not change.

    Args:
        model: may be in training mode, or parts of it; every call evaluates and restores the modes.
        config: the config that the model was built from.
        tokenizer: the tokenizer of its training; None means that it is built from the config.
    """

    def __init__(self, model: CLIP, config: ModelConfig, *, tokenizer: Tokenizer | None = None) -> None:
        self.model = model
        self.config = config
        self.tokenizer = tokenizer if tokenizer is not None else build_tokenizer(config.text)
        self.transform = EvalTransform(config.image.image_size)

    @property
    def device(self) -> torch.device:
        """The device of the model's weights."""
        return self.model.log_logit_scale.device

    @property
    def logit_scale(self) -> float:
        """The multiplier of the similarities."""
        return self.model.log_logit_scale.detach().exp().item()

    def preprocess(self, image: Image.Image) -> Tensor:
        """Resizes the short side and crops the centre: uint8 (S, S, 3). The model itself normalises.

        Raises:
            InputError: the argument is not an image of Pillow.
        """
        if not isinstance(image, Image.Image):
            raise InputError(f"a picture must be a PIL.Image, not {type(image).__name__}; open files with Image.open")
        return self.transform(image)

    def tokenize(self, texts: str | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Flat token ids int64 (T,) and lengths int64 (B,) of one or several texts.

        Raises:
            InputError: there is no text, or one is not a string.
        """
        listed = list(texts) if isinstance(texts, Iterable) and not isinstance(texts, str) else [texts]
        if wrong := [type(text).__name__ for text in listed if not isinstance(text, str)]:
            raise InputError(f"a text must be a str, not {wrong[0]}; give one, or a list of them")
        if not listed:
            raise InputError("no text to tokenize; give at least one")
        return self.tokenizer.encode(listed)

    @torch.no_grad()
    def encode_image(self, images: Image.Image | Sequence[Image.Image] | Tensor) -> Tensor:
        """Unit-length embeddings (B, D) of one image, of several, or of uint8 (B, S, S, 3) from `preprocess`.

        Raises:
            InputError: there is no image, one is not an image, or a tensor has another dtype or shape.
        """
        if not isinstance(images, Tensor):
            rows = [self.preprocess(image) for image in (images if isinstance(images, Iterable) else [images])]
            images = torch.stack(rows) if rows else torch.empty(0)
        size = self.config.image.image_size
        if images.dtype != torch.uint8 or images.shape[1:] != (size, size, 3) or images.numel() == 0:
            raise InputError(
                f"pictures must be at least one PIL.Image or uint8 (B, {size}, {size}, 3) as `preprocess` makes them, "
                f"not {str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            )
        with self._evaluating():
            return self.model.encode_image(images.to(self.device))

    @torch.no_grad()
    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Unit-length embeddings (B, D) of one or several texts.

        Raises:
            InputError: the cases of `tokenize`.
        """
        tokens_T, lengths_B = self.tokenize(texts)
        max_length = int(lengths_B.max())
        with self._evaluating():
            return self.model.encode_text(tokens_T.to(self.device), lengths_B.to(self.device), max_length=max_length)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = [module for module in self.model.modules() if module.training]  # not those of a locked tower
        self.model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


def load(
    path: str | Path, *, device: str | torch.device = "cpu", weights: Literal["average", "trained"] | None = None
) -> Pretrained:
    """Loads the model of a run folder, a checkpoint or an export folder, in float32.

    Args:
        path: the folder; checkpoints may also have an address (s3://...).
        device: the device for the model.
        weights: of a checkpoint, "trained" or their "average" (`ema`); None means the average if there is one.

    Raises:
        InputError: the path has no model, the weights do not fit the config, or there is no average.
    """
    files = find_model(path)
    config = stored_config(files.folder, files.config).model
    tokenizer = build_tokenizer(config.text)
    model = build_model(_without_download(config), vocab_size=tokenizer.vocab_size, seed=0)
    if files.kind == "checkpoint":
        load_weights(files.folder, model, average=_choose_average(files.folder, weights))
    else:
        _load_export(Path(files.folder.address), model)
    return Pretrained(model.to(device).eval(), config, tokenizer=tokenizer)


def _choose_average(checkpoint: Folder, weights: Literal["average", "trained"] | None) -> bool:
    has_average = holds_average(checkpoint)
    if weights == "average" and not has_average:
        raise InputError(f"{checkpoint} holds no average of the weights; take the trained ones, or train with `ema`")
    return has_average and weights != "trained"


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
            stored |= load_tensors_by_name(files.folder, own, average=_choose_average(files.folder, None))
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


def _without_download(config: ModelConfig) -> ModelConfig:
    """The same config without pretrained weights, because stored weights replace them."""
    text = replace(config.text, pretrained=False) if isinstance(config.text, HuggingFaceTextConfig) else config.text
    return replace(config, image=replace(config.image, pretrained=False), text=text)


def _load_export(folder: Path, model: CLIP) -> None:
    names = [name for name in (HUGGINGFACE_WEIGHTS, OPEN_CLIP_WEIGHTS) if (folder / name).is_file()]
    if not names:
        raise InputError(f"{folder} has neither {HUGGINGFACE_WEIGHTS} nor {OPEN_CLIP_WEIGHTS}; export it again")
    from clipx.models.key_maps import HUGGINGFACE, OPEN_CLIP

    key_map = HUGGINGFACE if names[0] == HUGGINGFACE_WEIGHTS else OPEN_CLIP
    try:
        model.load_state_dict(key_map.to_ours(load_file(folder / names[0])))
    except (SafetensorError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder / names[0]} does not fit {EXPORT_CONFIG} beside it ({reason})") from error
