"""What keeps two models from being averaged: the first difference, in one line."""

from collections.abc import Iterator

from clipx.config.changes import changes_between, named
from clipx.config.fit import FitConfig
from clipx.data.same_tokens import same_tokens
from clipx.errors import InputError
from clipx.models.differences import model_differences
from clipx.pretrained import Pretrained
from clipx.pretrained.fitted import Fitted

_OF_TRAINING = ("weight", "class_weights", "counts")  # of a target, which change no prediction
_INPUTS = ("image.image_size", "text.context_length")  # may differ where a run starts from another, and not here


def require_alike(first: Pretrained, other: Pretrained, *, names: tuple[str, str]) -> None:
    """Checks that equal weights in two models compute the same: towers, preprocessing, tokenizer.

    Args:
        names: of the two, for the message.

    Raises:
        InputError: they do not; the message names the first difference.
    """
    if difference := next(_differences(first, other), None):
        raise InputError(
            f"{names[0]} and {names[1]} are of different architecture: {difference}; only models that were trained in "
            "one can be averaged"
        )


def _differences(first: Pretrained, other: Pretrained) -> Iterator[str]:
    changes = model_differences(other.config, other.model, before=first.config, model_before=first.model)
    inputs = changes_between(first.config, other.config)
    changes |= {key: inputs[key] for key in _INPUTS if key in inputs}
    for key, values in changes.items():
        yield named({key: values}, "model.")
    if not same_tokens(first.tokenizer, other.tokenizer):
        yield f"the tokenizers ({first.config.text.tokenizer}, {other.config.text.tokenizer}) give other ids"
    if isinstance(first, Fitted) and isinstance(other, Fitted):
        yield from _differences_of_fits(first.fit_config, other.fit_config)
    ours, theirs = first.model.state_dict(), other.model.state_dict()
    for name in [*ours, *theirs]:
        if name not in ours or name not in theirs:
            yield f"only one of them has {name}"
        elif ours[name].shape != theirs[name].shape:
            yield f"{name} is {tuple(ours[name].shape)} and {tuple(theirs[name].shape)}"


def _differences_of_fits(first: FitConfig, other: FitConfig) -> Iterator[str]:
    """What makes equal weights of two fitted models mean something else: their columns, classes and scales."""
    for key, values in changes_between(first, other).items():
        part, _, rest = key.partition(".")
        is_meant = part in ("inputs", "targets") and rest.rpartition(".")[2] not in _OF_TRAINING
        if is_meant or key in ("fusion", "absent.stand_in"):
            yield named({key: values})
