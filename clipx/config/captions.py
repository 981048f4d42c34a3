"""The part of the schema about captions: under which keys they are, and how parts of long ones are drawn."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from clipx.config.field_types import STRICT, Count, Fraction, Positive, Text
from clipx.config.validate import validated

EqualCaptions = Literal["auto", "negatives", "ignored"]


def _ascending(words: tuple[int, int]) -> tuple[int, int]:
    if words[0] > words[1]:
        raise ValueError("expected [fewest, most], fewest no larger than most")
    return words


@validated
@dataclass(frozen=True, kw_only=True)
class PartsConfig:
    """Long captions of which a part is drawn: a sentence, or a span of consecutive sentences."""

    __pydantic_config__ = STRICT

    weight: Positive = 1.0
    """Of the key among the others."""
    sentence: Fraction = 0.5
    """Probability of a single sentence; else a span of sentences is drawn."""
    words: Annotated[tuple[Count, Count], AfterValidator(_ascending)] = (8, 40)
    """Fewest and most words of a span, whose start is drawn from all sentences with so many words behind them. A
    caption with fewer is taken whole; what has more, a single sentence too, ends at the last word allowed. A
    character of Chinese or Japanese counts as a word."""


def _kind_of_key(value: Any) -> str:
    return "one key" if isinstance(value, str) else "keys"


def _kind_of_weight(value: Any) -> str:
    return "parts" if isinstance(value, Mapping | PartsConfig) else "weight"


# Discriminated, so that a mistake in a mapping is told by the rule for mappings alone.
Weight = Annotated[
    Annotated[Positive, Tag("weight")] | Annotated[PartsConfig, Tag("parts")], Discriminator(_kind_of_weight)
]
CaptionKey = Annotated[
    Annotated[Text, Tag("one key")] | Annotated[dict[Text, Weight], Field(min_length=1), Tag("keys")],
    Discriminator(_kind_of_key),
]


def has_parts(caption_key: str | Mapping[str, float | PartsConfig]) -> bool:
    """Whether parts of captions are drawn under any of these keys."""
    return not isinstance(caption_key, str) and any(isinstance(value, PartsConfig) for value in caption_key.values())
