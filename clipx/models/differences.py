"""What two models compute differently from equal weights: names and shapes of weights do not show it.

Two configs are compared key by key, and every key counts but those that are meant to change between two runs. A trunk
of timm's and an encoder of transformers' have names and options that may be spelt in several ways; so where their keys
differ, the built modules decide.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from clipx.config.changes import Changes, changes_between
from clipx.config.model import ModelConfig
from clipx.models.clip import CLIP

# where a run begins, what is resampled or cut to fit, what happens in training only, and one pixel in evaluation
_MAY_DIFFER = frozenset(
    {
        "init_logit_scale",
        "max_logit_scale",
        "init_logit_bias",
        "image.image_size",
        "image.crop",
        "image.patch_drop",
        "image.pretrained",
        "text.context_length",
        "text.pad",  # the same number; whether there is one shows in text.pool
        "text.pretrained",
        "text.tokenizer",  # compared by what it does, where it is built
        "text.vocab_size",  # shows in the weights
    }
)
_TRUNK = ("image.name", "image.options", "image.eps")
_ENCODER = "text.name"
_IN_TRAINING_ONLY = (nn.Identity, nn.Dropout)
# of timm's and transformers' modules: sizes of inputs, which follow from the images, and how the same is computed
_NO_FUNCTION = frozenset(
    {
        "training",
        "img_size",
        "grid_size",
        "num_patches",
        "input_resolution",
        "feat_shape",
        "ref_feat_shape",
        "strict_img_size",
        "dynamic_img_size",
        "name_or_path",
        "fused_attn",
        "weight_init_mode",
        "fix_init",
        "grad_checkpointing",
        "gradient_checkpointing",
    }
)


def model_differences(config: ModelConfig, model: CLIP, *, before: ModelConfig, model_before: CLIP) -> Changes:
    """Keys of `model` in the config by which the models compute different embeddings.

    The size of pictures and the rounding of their crop, the context length, the tokenizer, what is dropped in training
    and the starting values of the logits are not compared.

    Args:
        config: of the one model.
        model: built from it.
        before: config of the other.
        model_before: built from that.
    """
    changes = changes_between(_spelt_out(before), _spelt_out(config))
    wrong = {key: values for key, values in changes.items() if key not in _MAY_DIFFER}
    if any(key.startswith("image.") for key in wrong) and same_function(
        model_before.image_tower.trunk, model.image_tower.trunk
    ):
        wrong = {key: values for key, values in wrong.items() if not key.startswith(_TRUNK)}
    towers = (model_before.text_tower, model.text_tower)
    encoder_before, encoder = (getattr(tower, "encoder", None) for tower in towers)
    if encoder_before is not None and encoder is not None and same_function(encoder_before, encoder):
        wrong.pop(_ENCODER, None)
    return wrong


def _spelt_out(config: ModelConfig) -> ModelConfig:
    """The same model with the values that null stands for, of the projections and the cleaning of texts."""
    image, text = config.image, config.text
    cleaning = text.cleaning or ("lower" if text.tokenizer == "clip" else None)
    return replace(
        config,
        image=replace(image, projection=image.projection or config.projection),
        text=replace(text, projection=text.projection or config.projection, cleaning=cleaning),
        projection="linear",  # of no tower any more
    )


def same_function(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules with equal weights have the same function in evaluation; either may be on the meta device."""
    modules = [dict(_computing(module)) for module in (one, other)]
    if modules[0].keys() != modules[1].keys():
        return False
    pairs = [(modules[0][name], modules[1][name]) for name in modules[0]]
    return all(_facts(a) == _facts(b) and _same_constants(a, b) for a, b in pairs)


def _computing(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_modules():
        if not isinstance(child, _IN_TRAINING_ONLY) and not type(child).__name__.startswith("Drop"):
            yield name, child


def _facts(module: nn.Module) -> dict[str, object]:
    """The class, and every number, word and function that the module holds."""
    held = {
        name: getattr(value, "__qualname__", value)
        for name, value in vars(module).items()
        if name[0] != "_" and "drop" not in name and name not in _NO_FUNCTION and _is_plain(value)
    }
    return held | {"class": type(module).__qualname__}


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, int | float | str) or hasattr(value, "__qualname__")


def _same_constants(one: nn.Module, other: nn.Module) -> bool:
    """Whether the buffers that are not stored are equal, where they have one shape: others follow from sizes."""
    for name in one._non_persistent_buffers_set & other._non_persistent_buffers_set:
        before, after = getattr(one, name), getattr(other, name)
        comparable = isinstance(before, Tensor) and isinstance(after, Tensor) and before.shape == after.shape
        known = comparable and not (before.is_meta or after.is_meta)
        if known and not torch.equal(before.cpu(), after.cpu()):
            return False
    return True
