"""The draw of a sample's texts in an epoch, among its captions, their keys, and parts of them."""

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate, count
from typing import NamedTuple

from clipx import counter_random
from clipx.config.captions import PartsConfig
from clipx.counter_random import Stream
from clipx.data.sentences import draw_part, sentences

_TRIES = 24  # of a part that was not drawn before: of three sentences the last is missed once in 17,000


class Available(NamedTuple):
    """The captions that a sample has under a key, at least one, and how parts of them are drawn, if they are."""

    weight: float
    captions: list[str]
    parts: PartsConfig | None


def draw_texts(available: Sequence[Available], *, num_texts: int, seed: int, epoch: int, sample_id: int) -> list[str]:
    """Up to `num_texts` different texts, in the order in which they were drawn; at least one.

    A key is drawn by its weight, and then one of its captions, which is left out of the next draws; one of which parts
    are drawn only when it was drawn whole or gives no new part any more.

    Args:
        available: the captions under each key that has any.
        num_texts: K.
        seed: of the run.
        epoch: of the source.
        sample_id: of the sample.
    """
    if len(available) == 1 and len(available[0].captions) == 1 and available[0].parts is None:
        return available[0].captions
    drawn: list[str] = []
    for number in count():
        if not available or len(drawn) == num_texts:
            break
        bits = counter_random.key(seed, Stream.CAPTION, epoch, sample_id, number)
        key_bits, caption_bits = divmod(bits, 1 << 32)  # 31 and 32 of them
        borders = list(accumulate(each.weight for each in available))
        _, captions, parts = available[bisect(borders, key_bits / (1 << 31) * borders[-1], hi=len(borders) - 1)]
        caption = captions[caption_bits * len(captions) >> 32]
        text = caption if parts is None else _new_part(caption, parts, drawn, (seed, epoch, sample_id, number))
        if text is not None:
            drawn.append(text)
        done = caption if text is None else text
        left = [each._replace(captions=[other for other in each.captions if other != done]) for each in available]
        available = [each for each in left if each.captions]
    return drawn


def _new_part(caption: str, parts: PartsConfig, drawn: Sequence[str], keys: tuple[int, int, int, int]) -> str | None:
    """A part of a caption that is not among those drawn; None if several tries gave none."""
    seed, epoch, sample_id, number = keys
    found = sentences(caption)
    for attempt in range(_TRIES):
        bits = counter_random.key(seed, Stream.CAPTION_PART, epoch, sample_id, number, attempt)
        text = draw_part(caption, found, parts, bits)
        if text not in drawn:
            return text
    return None
