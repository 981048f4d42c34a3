"""From a sample's bytes to the texts that are trained on; owns the small language of caption keys.

A sample is a mapping from extension to bytes, one entry for each tar member of its key: {"jpg": ..., "txt": ...}. The
draw among several captions, keys or templates, and of a part of a caption, is a function of (seed, epoch, sample), so
it changes with the epoch alone.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from itertools import cycle, islice
from typing import NamedTuple, Protocol

from clipx import counter_random
from clipx.config.captions import PartsConfig
from clipx.config.data import Source
from clipx.counter_random import Stream
from clipx.data.caption_draws import Available, draw_texts
from clipx.data.decode import UndecodableError, one_line
from clipx.data.text_cleaning import is_blank, without_bom
from clipx.errors import some_names

__all__ = [
    "MAX_TEXT",
    "CaptionReader",
    "Captions",
    "TextReader",
    "alternatives",
    "caption_group",
    "class_number",
    "decode_captions",
    "decode_record",
    "decode_text",
    "first_present",
    "is_blank",
]

MAX_TEXT = 4 << 20  # bytes of a caption or a json member: nobody wrote more for a picture
_MAX_DIGITS = 18  # of a class's number; int() refuses texts of thousands


class Captions(NamedTuple):
    """The texts of an image."""

    texts: tuple[str, ...]
    """`captions_per_image` texts."""
    group_ids: tuple[int, ...] | None
    """63 bits of each text that are equal for equal captions, which are no negatives; None: not asked for."""


class TextReader(Protocol):
    """Gives the texts of samples."""

    @property
    def extensions(self) -> frozenset[str]:
        """The extensions of the members that `read` needs."""

    def read(self, fields: Mapping[str, bytes], *, epoch: int, sample_id: int) -> Captions:
        """The texts of a sample in an epoch, always the same number of them.

        Raises:
            UndecodableError: the sample has none and should, or they cannot be read.
        """


class CaptionReader:
    """Reads and draws the captions of one source's samples.

    A sample is good or bad in all epochs: everything under the source's keys is checked, drawn or not.

    Raises:
        InputError: class names or templates that are empty or cannot be read, or a template without {c}.
    """

    def __init__(self, source: Source, *, captions_per_image: int, seed: int) -> None:
        where = "data" if source.name == "train" else f"data.sources.{source.name}"
        self._weighted_keys = _weighted(source.caption_key)
        self._names, self._templates = None, None
        if source.class_names is not None:
            from clipx.data.class_names import listed

            self._names = listed(source.class_names, name=f"{where}.class_names")
        if source.templates is not None:
            from clipx.data.class_names import check_templates, listed

            self._templates = listed(source.templates, name=f"{where}.templates")
            check_templates(self._templates, name=f"{where}.templates")
        self._num_texts = captions_per_image
        self._grouped = source.equal_captions == "ignored"
        self._seed = seed

    @property
    def extensions(self) -> frozenset[str]:
        """The extensions of the members that `read` needs."""
        return frozenset(extension for key in self._weighted_keys for extension, _ in alternatives(key))

    def read(self, fields: Mapping[str, bytes], *, epoch: int, sample_id: int) -> Captions:
        """The texts of a sample in an epoch: drawn captions (or class names), put into drawn templates.

        Of several keys, one that the sample has is drawn by its weight, and then one of its captions; the next text is
        drawn from those that are left. A sample with fewer than K different ones repeats them in turn. Where parts are
        drawn a caption is left as long as it is not drawn whole and gives parts that are new.

        Raises:
            UndecodableError: no caption, a broken one, or no class number although the source has class names.
        """
        drawn = draw_texts(
            self._available(fields), num_texts=self._num_texts, seed=self._seed, epoch=epoch, sample_id=sample_id
        )
        texts = captions = tuple(islice(cycle(drawn), self._num_texts))
        if self._templates is not None:
            texts = tuple(
                self._templates[self._template_number(number, epoch, sample_id)].replace("{c}", text)
                for number, text in enumerate(texts)
            )
        return Captions(texts, tuple(map(caption_group, captions)) if self._grouped else None)

    def every_text(self, fields: Mapping[str, bytes]) -> list[str]:
        """All texts of a sample that `read` may draw, each once, in a fixed order; without templates and parts.

        Raises:
            UndecodableError: the cases of `read`.
        """
        assert self._templates is None
        available = self._available(fields)
        assert all(each.parts is None for each in available)
        return list(dict.fromkeys(text for each in available for text in each.captions))

    def _available(self, fields: Mapping[str, bytes]) -> list[Available]:
        """The captions under each key that has any; at least one."""
        if len(self._weighted_keys) == 1:
            ((key, (_, parts)),) = self._weighted_keys.items()
            captions = decode_captions(fields, key, numbers=self._names is not None)
            return [Available(1.0, self._texts(captions), parts)]
        members = _Members(fields)
        result = []
        for key, (weight, parts) in self._weighted_keys.items():
            captions = _non_blank(members.first(key), numbers=self._names is not None)
            if captions:
                result.append(Available(weight, self._texts(captions), parts))
        if not result:
            raise _absent(" or ".join(map(repr, self._weighted_keys)), fields)
        return result

    def _texts(self, captions: list[str]) -> list[str]:
        """The captions themselves, or the names of the classes that they number."""
        if self._names is None:
            return captions
        numbers = [class_number(caption, len(self._names)) for caption in captions]
        if None in numbers:
            value = captions[numbers.index(None)][:80]
            raise UndecodableError(f"class is {value!r}; it must be a number from 0 to {len(self._names) - 1}")
        return [self._names[number] for number in numbers if number is not None]

    def _template_number(self, number: int, epoch: int, sample_id: int) -> int:
        assert self._templates is not None
        if len(self._templates) == 1:
            return 0
        return counter_random.key(self._seed, Stream.TEMPLATE, epoch, sample_id, number) % len(self._templates)


def decode_captions(fields: Mapping[str, bytes], caption_key: str, *, numbers: bool = False) -> list[str]:
    """All captions of a sample, in their order, blank ones (`is_blank`) left out; at least one.

    Args:
        caption_key: alternatives joined by `;`, of which the first that is present is read: an extension, whose whole
            text is one caption, or `json:NAME`, a string or list of strings in that json member.
        numbers: whether a json field may also hold integers.

    Raises:
        UndecodableError: no alternative is present, or the first that is holds no text.
    """
    alternative = _Members(fields).first(caption_key)
    if alternative is None:
        raise _absent(repr(caption_key), fields)
    captions = _non_blank(alternative, numbers=numbers)
    if not captions:
        raise UndecodableError(f"caption under {alternative.key!r} is empty")
    return captions


def decode_record(fields: Mapping[str, bytes], extension: str) -> dict[str, object]:
    """The object in a json member that the sample has.

    Raises:
        UndecodableError: it is no JSON object, or too large.
    """
    text = decode_text(fields, extension)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError alone: a number of thousands of digits
        raise UndecodableError(f"member {extension!r} is not JSON: {one_line(error)}") from error
    if not isinstance(record, dict):
        raise UndecodableError(f"member {extension!r} holds a JSON {type(record).__name__}, not an object")
    return record


def decode_text(fields: Mapping[str, bytes], extension: str) -> str:
    """The text of a member that the sample has.

    Raises:
        UndecodableError: it is not UTF-8, or too large.
    """
    data = fields[extension]
    if len(data) > MAX_TEXT:
        raise UndecodableError(f"caption under {extension!r} has {len(data)} bytes; at most {MAX_TEXT} are a text")
    try:
        return without_bom(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UndecodableError(f"caption under {extension!r} is not UTF-8: {one_line(error)}") from error


def class_number(text: str, num_classes: int) -> int | None:
    """The class number in a text, 0 to `num_classes` - 1; None if it holds no such number."""
    digits = without_bom(text).strip()
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= _MAX_DIGITS):
        return None
    number = int(digits)
    return number if number < num_classes else None


def first_present(fields: Mapping[str, bytes], keys: str) -> bytes | None:
    """The bytes of the first of `keys` (extensions joined by `;`) that the sample has, or None."""
    return next((fields[extension] for extension, _ in alternatives(keys) if extension in fields), None)


@lru_cache
def alternatives(keys: str) -> tuple[tuple[str, str], ...]:
    """(extension, field or "") of each alternative in `keys`; `.JPG` is `jpg`, as the members' extensions are lower."""
    pairs = [alternative.strip().partition(":") for alternative in keys.split(";")]
    return tuple((extension.removeprefix(".").lower(), name) for extension, _, name in pairs)


class _Alternative(NamedTuple):
    """The value of an alternative of a caption key."""

    key: str
    value: object


class _Members:
    """A sample's members; a json member is parsed once for all keys that name its fields."""

    def __init__(self, fields: Mapping[str, bytes]) -> None:
        self._fields = fields
        self._records: dict[str, dict[str, object]] = {}

    def first(self, caption_key: str) -> _Alternative | None:
        """The first alternative that is present; a json field that is null (img2dataset's "no caption") is not."""
        for extension, name in alternatives(caption_key):
            if extension not in self._fields:
                continue
            if not name:
                return _Alternative(extension, decode_text(self._fields, extension))
            if (value := self._record(extension).get(name)) is not None:
                return _Alternative(f"{extension}:{name}", value)
        return None

    def _record(self, extension: str) -> dict[str, object]:
        if extension not in self._records:
            self._records[extension] = decode_record(self._fields, extension)
        return self._records[extension]


def _weighted(caption_key: str | Mapping[str, float | PartsConfig]) -> dict[str, tuple[float, PartsConfig | None]]:
    """The weight of each key, and how parts of its captions are drawn, if they are."""
    if isinstance(caption_key, str):
        return {caption_key: (1.0, None)}
    return {
        key: (value.weight, value) if isinstance(value, PartsConfig) else (value, None)
        for key, value in caption_key.items()
    }


def _non_blank(alternative: _Alternative | None, *, numbers: bool) -> list[str]:
    """The captions of a member or a json field; an empty list if it is absent."""
    if alternative is None:
        return []
    captions: list[str] = []
    where = f"caption under {alternative.key!r}"
    for caption in alternative.value if isinstance(alternative.value, list) else [alternative.value]:
        if numbers and type(caption) is int:  # not bool
            captions.append(str(caption))
            continue
        if not isinstance(caption, str):
            raise UndecodableError(f"{where} is a {type(caption).__name__}, not a string")
        if not _is_unicode(caption):
            raise UndecodableError(f"{where} holds half of a surrogate pair, which is no character")
        if not is_blank(caption):
            captions.append(without_bom(caption))
    return captions


def _is_unicode(text: str) -> bool:
    """False if the text has lone surrogates, which JSON can hold and neither encodings nor tokenizers accept."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _absent(keys: str, fields: Mapping[str, bytes]) -> UndecodableError:
    return UndecodableError(f"no caption under {keys}; members: {some_names(sorted(fields)) or 'none'}")


def caption_group(caption: str) -> int:
    """63 bits of a hash that ignores case and white space: what `equal_captions: ignored` takes for equal."""
    alike = " ".join(caption.split()).lower()
    return int.from_bytes(blake2b(alike.encode(), digest_size=8).digest(), "little") >> 1
