"""From a sample's bytes to the texts that are trained on; owns the caption key's small language.

A sample is a mapping from extension to bytes, as the tar members of one key hold it: {"jpg": ..., "txt": ...}. What is
drawn (of several captions, keys or templates) is a function of (seed, epoch, sample), so it changes with the epoch and
with nothing else.
"""

import json
from bisect import bisect
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate, cycle, islice
from typing import NamedTuple

from clipx import counter_random
from clipx.config.data import Source
from clipx.counter_random import Stream
from clipx.data.class_names import class_number, listed, require_place
from clipx.data.decode import UndecodableError, one_line


class Captions(NamedTuple):
    """What a picture is trained with."""

    texts: tuple[str, ...]
    """`captions_per_image` of them."""
    group_id: int | None
    """63 bits that are equal where the captions are: such pairs are no negatives. None where that is not asked for."""


class CaptionReader:
    """Reads and draws the captions of one source's samples.

    A sample is bad or good in every epoch alike: whatever it holds under the source's keys is looked at, drawn or not.

    Args:
        source: of which caption_key, class_names, templates and equal_captions count.
        captions_per_image: K, texts for each picture.
        seed: of the run.

    Raises:
        InputError: class names or templates that are empty or cannot be read, or a template without {c}.
    """

    def __init__(self, source: Source, *, captions_per_image: int, seed: int) -> None:
        where = "data" if source.name == "train" else f"data.sources.{source.name}"
        self._weighted_keys = _weighted(source.caption_key)
        self._names, self._templates = None, None
        if source.class_names is not None:
            self._names = listed(source.class_names, name=f"{where}.class_names")
        if source.templates is not None:
            self._templates = listed(source.templates, name=f"{where}.templates")
            require_place(self._templates, name=f"{where}.templates")
        self._num_texts = captions_per_image
        self._grouped = source.equal_captions == "ignored"
        self._seed = seed

    @property
    def extensions(self) -> frozenset[str]:
        """Of the members that `read` looks at."""
        return frozenset(extension for key in self._weighted_keys for extension, _ in alternatives(key))

    def read(self, fields: Mapping[str, bytes], *, epoch: int, sample_id: int) -> Captions:
        """The texts of a sample in an epoch: drawn captions (or class names), put into drawn templates.

        Of several keys, one that the sample has is drawn by its weight, and then one of its captions; the next text is
        drawn from those that are left. A sample with fewer than K different ones repeats them in turn.

        Raises:
            UndecodableError: no caption, a broken one, or no number of a class where classes are named.
        """
        drawn = self._draw(self._available(fields), epoch, sample_id)
        texts = tuple(islice(cycle(drawn), self._num_texts))
        if self._templates is not None:
            texts = tuple(
                self._templates[self._template_number(number, epoch, sample_id)].replace("{c}", text)
                for number, text in enumerate(texts)
            )
        return Captions(texts, _group_id(drawn) if self._grouped else None)

    def _available(self, fields: Mapping[str, bytes]) -> list[tuple[float, list[str]]]:
        """The captions under each key that has any, with its weight; at least one."""
        if len(self._weighted_keys) == 1:
            (key,) = self._weighted_keys
            return [(1.0, self._texts(decode_captions(fields, key, numbers=self._names is not None)))]
        members = _Members(fields)
        found = []
        for key, weight in self._weighted_keys.items():
            captions = _non_blank(members.first(key), numbers=self._names is not None)
            if captions:
                found.append((weight, self._texts(captions)))
        if not found:
            raise _absent(" or ".join(map(repr, self._weighted_keys)), fields)
        return found

    def _texts(self, captions: list[str]) -> list[str]:
        """The captions themselves, or the names of the classes that they number."""
        if self._names is None:
            return captions
        numbers = [class_number(caption, len(self._names)) for caption in captions]
        if None in numbers:
            said = captions[numbers.index(None)][:80]
            raise UndecodableError(f"class is {said!r}; it must be a number from 0 to {len(self._names) - 1}")
        return [self._names[number] for number in numbers if number is not None]

    def _draw(self, available: list[tuple[float, list[str]]], epoch: int, sample_id: int) -> list[str]:
        """Up to K different captions, in the order in which they were drawn."""
        if len(available) == 1 and len(available[0][1]) == 1:
            return available[0][1]
        drawn: list[str] = []
        while available and len(drawn) < self._num_texts:
            bits = counter_random.key(self._seed, Stream.CAPTION, epoch, sample_id, len(drawn))
            key_bits, caption_bits = divmod(bits, 1 << 32)  # 31 and 32 of them
            borders = list(accumulate(weight for weight, _ in available))
            place = bisect(borders, key_bits / (1 << 31) * borders[-1], hi=len(borders) - 1)
            captions = available[place][1]
            text = captions[caption_bits * len(captions) >> 32]
            drawn.append(text)
            left = [(weight, [other for other in captions if other != text]) for weight, captions in available]
            available = [(weight, captions) for weight, captions in left if captions]
        return drawn

    def _template_number(self, number: int, epoch: int, sample_id: int) -> int:
        assert self._templates is not None
        if len(self._templates) == 1:
            return 0
        return counter_random.key(self._seed, Stream.TEMPLATE, epoch, sample_id, number) % len(self._templates)


def decode_captions(fields: Mapping[str, bytes], caption_key: str, *, numbers: bool = False) -> list[str]:
    """All captions of a sample, in their order, blank ones left out.

    Args:
        fields: the sample's members by extension.
        caption_key: alternatives joined by `;`, the first that is present counts: an extension, whose whole text is
            one caption, or `json:NAME`, a string or list of strings in that json member.
        numbers: whether a json field may hold whole numbers too.

    Returns:
        At least one caption, none of them blank.

    Raises:
        UndecodableError: no alternative is present, or the first that is holds no text.
    """
    found = _Members(fields).first(caption_key)
    if found is None:
        raise _absent(repr(caption_key), fields)
    captions = _non_blank(found, numbers=numbers)
    if not captions:
        raise UndecodableError(f"caption under {found.key!r} is empty")
    return captions


def first_present(fields: Mapping[str, bytes], keys: str) -> bytes | None:
    """The bytes of the first of `keys` (extensions joined by `;`) that the sample has, or None."""
    return next((fields[extension] for extension, _ in alternatives(keys) if extension in fields), None)


@lru_cache
def alternatives(keys: str) -> tuple[tuple[str, str], ...]:
    """(extension, field or "") of each alternative in `keys`; `.JPG` is `jpg`, as the members' extensions are lower."""
    pairs = [alternative.strip().partition(":") for alternative in keys.split(";")]
    return tuple((extension.removeprefix(".").lower(), name) for extension, _, name in pairs)


class _Found(NamedTuple):
    """What stands under an alternative of a caption key."""

    key: str
    value: object


class _Members:
    """A sample's members, of which a json one is parsed once for all keys that ask for its fields."""

    def __init__(self, fields: Mapping[str, bytes]) -> None:
        self._fields = fields
        self._records: dict[str, dict[str, object]] = {}

    def first(self, caption_key: str) -> _Found | None:
        """The first alternative that is present; a json field that is null (img2dataset's "no caption") is not."""
        for extension, name in alternatives(caption_key):
            if extension not in self._fields:
                continue
            if not name:
                return _Found(extension, _text(self._fields[extension], extension))
            if (value := self._record(extension).get(name)) is not None:
                return _Found(f"{extension}:{name}", value)
        return None

    def _record(self, extension: str) -> dict[str, object]:
        if extension not in self._records:
            text = _text(self._fields[extension], extension)
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:  # ValueError alone: a number of thousands of digits
                raise UndecodableError(f"member {extension!r} is not JSON: {one_line(error)}") from error
            if not isinstance(record, dict):
                raise UndecodableError(f"member {extension!r} holds a JSON {type(record).__name__}, not an object")
            self._records[extension] = record
        return self._records[extension]


def _weighted(caption_key: str | Mapping[str, float]) -> dict[str, float]:
    return {caption_key: 1.0} if isinstance(caption_key, str) else dict(caption_key)


def _text(data: bytes, extension: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UndecodableError(f"caption under {extension!r} is not UTF-8: {one_line(error)}") from error


def _non_blank(found: _Found | None, *, numbers: bool) -> list[str]:
    """The captions of a member or a json field, none where it is absent."""
    if found is None:
        return []
    captions: list[str] = []
    for caption in found.value if isinstance(found.value, list) else [found.value]:
        if numbers and type(caption) is int:  # not bool
            captions.append(str(caption))
            continue
        if not isinstance(caption, str):
            raise UndecodableError(f"caption under {found.key!r} is a {type(caption).__name__}, not a string")
        if not _is_unicode(caption):
            raise UndecodableError(f"caption under {found.key!r} holds half of a surrogate pair, which is no character")
        if caption.strip():
            captions.append(caption)
    return captions


def _is_unicode(text: str) -> bool:
    """False with lone surrogates, which JSON can spell and no encoding, nor a tokenizer, takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _absent(keys: str, fields: Mapping[str, bytes]) -> UndecodableError:
    return UndecodableError(f"no caption under {keys}; members: {', '.join(sorted(fields)) or 'none'}")


def _group_id(captions: Sequence[str]) -> int:
    """63 bits of a hash of the captions in any order, that does not see case or white space."""
    alike = "\n".join(sorted({" ".join(caption.split()).lower() for caption in captions}))
    return int.from_bytes(blake2b(alike.encode(), digest_size=8).digest(), "little") >> 1
