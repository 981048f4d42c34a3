"""Embeddings of classes from ensembles of prompts (CLIP, arXiv 2103.00020, section 3.1.4).

Shapes: B prompts, C classes, D embedding.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from clipx.errors import InputError, some_names


class TextEncoder(Protocol):
    """What is needed of a model: `clipx.pretrained.Pretrained` has it."""

    def tokenize(self, texts: Sequence[str], /) -> tuple[Tensor, Tensor]:
        """Flat token ids int64 (T,) and lengths int64 (B,)."""

    def encode_text(self, texts: Sequence[str], /) -> Tensor:
        """Unit-length embeddings (B, D)."""


def fill(template: str, class_name: str) -> str:
    """The template with the class instead of `{c}`; other braces do not change."""
    return template.replace("{c}", class_name)


def token_keys(encoder: TextEncoder, texts: Sequence[str]) -> list[bytes]:
    """For each text what the model sees of it: texts with equal keys have equal tokens, and so one embedding."""
    if not texts:
        return []
    tokens_T, lengths_B = encoder.tokenize(texts)
    return [row.numpy().tobytes() for row in tokens_T.split(lengths_B.tolist())]


def prompt_numbers(encoder: TextEncoder, class_names: Sequence[str], *, templates: Sequence[str]) -> list[int]:
    """For each class a number that classes share if all their prompts are equal to the model.

    The names need not be equal: CLIP lowers texts and cuts long ones. Numbers count from 0 in the order of the classes.
    """
    keys = [(key,) for key in token_keys(encoder, [fill(templates[0], name) for name in class_names])]
    often = Counter(keys)
    whole = [
        tuple(token_keys(encoder, [fill(template, name) for template in templates])) if often[key] > 1 else key
        for name, key in zip(class_names, keys, strict=True)
    ]
    numbers: dict[tuple[bytes, ...], int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in whole]


def mean_embeddings(
    encoder: TextEncoder,
    class_names: Sequence[str],
    *,
    templates: Sequence[str],
    batch_size: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The embedding of each class: the mean of its prompts' unit-length embeddings, normalised to unit length.

    Args:
        encoder: the model.
        class_names: C names.
        templates: at least one, each with `{c}`.
        batch_size: prompts per forward pass.
        on_progress: gets (prompts done, prompts) after each pass.

    Returns:
        float32 (C, D), on the model's device; the sums are float64.
    """
    prompts = (fill(template, name) for name in class_names for template in templates)
    total = len(class_names) * len(templates)
    sums_CD, done = torch.zeros(0), 0
    for batch in _batches(prompts, batch_size):
        text_BD = encoder.encode_text(batch).double()
        if not done:
            sums_CD = text_BD.new_zeros(len(class_names), text_BD.shape[1])
        index_B = torch.arange(done, done + len(batch), device=text_BD.device) // len(templates)
        sums_CD.index_add_(0, index_B, text_BD)
        done += len(batch)
        if on_progress is not None:
            on_progress(done, total)
    return unit_means(sums_CD)


def unit_means(sums_CD: Tensor) -> Tensor:
    """Sums of embeddings, float64, as means of unit length, float32."""
    return functional.normalize(sums_CD, dim=1).float()


def first_of_equals(numbers: Sequence[int]) -> list[int]:
    """The places of the classes that are not one with an earlier class, by the numbers of `prompt_numbers`."""
    first: dict[int, int] = {}
    for place, number in enumerate(numbers):
        first.setdefault(number, place)
    return list(first.values())


def refuse_equals(numbers: Sequence[int], class_names: Sequence[str], *, name: str = "classes") -> None:
    """Refuses classes between which the model cannot tell.

    Args:
        numbers: of the classes, from `prompt_numbers`.
        class_names: the classes.
        name: of the list, for messages.

    Raises:
        InputError: two classes have a number.
    """
    places: dict[int, list[int]] = {}
    for place, number in enumerate(numbers):
        places.setdefault(number, []).append(place)
    if not (pairs := [same for same in places.values() if len(same) > 1]):
        return
    first, second = pairs[0][:2]
    entries = f"{some_names([repr(class_names[first])])} and {some_names([repr(class_names[second])])}"
    more = f", and {len(pairs) - 1} more such pairs" if len(pairs) > 1 else ""
    raise InputError(
        f"{name}: entries {first + 1} and {second + 1}, {entries}, are the same class to this model{more}; name it once"
    )


def _batches(prompts: Iterable[str], batch_size: int) -> Iterator[list[str]]:
    remaining = iter(prompts)
    while batch := list(islice(remaining, batch_size)):
        yield batch
