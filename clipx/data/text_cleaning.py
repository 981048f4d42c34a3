"""CLIP's cleaning of texts and open_clip's others, and the question whether anything is left of one; owns `ftfy`."""

import html
import re
import string
from collections.abc import Callable, Mapping

import ftfy
import regex

from clipx.config.model import Cleaning

# What shows nothing: control characters, white space, and what Unicode calls ignorable (zero-width space, joiners, soft
# hyphen, direction and tag characters, Hangul fillers, variation selectors), and the blank of Braille.
_SHOWN = regex.compile(r"[^\p{Cc}\p{Z}\p{Default_Ignorable_Code_Point}\u2800]")
# No cleaning takes these away: they are no part of broken encodings, and of entities and escape sequences only with a
# `&` or an ESC, for which `is_blank` looks first. The last ranges are kana, Han and Hangul syllables.
_STAYS = re.compile(r"[0-9A-Za-z\u3041-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def without_bom(text: str) -> str:
    """The text without byte order marks at its start: what writes one, as Windows' editors do, means no character."""
    return text.lstrip("\ufeff")


def clean(text: str) -> str:
    """CLIP's cleaning: repairs mojibake, resolves HTML entities, collapses white space, and lowers."""
    return " ".join(clean_words(text))


def clean_words(text: str) -> list[str]:
    """The words of the cleaned text."""
    return _repaired(text).lower().split()


def _words(text: str) -> list[str]:
    return _repaired(text).split()


def _canonical_words(text: str) -> list[str]:
    return _repaired(text).replace("_", " ").translate(_NO_PUNCTUATION).lower().split()


def _repaired(text: str) -> str:
    """The text without mojibake and HTML entities."""
    if text.isascii() and text.isprintable() and "&" not in text:  # such texts need no repair
        return text
    return html.unescape(html.unescape(ftfy.fix_text(text)))


CLEANINGS: Mapping[Cleaning, Callable[[str], list[str]]] = {
    "lower": clean_words,
    "whitespace": _words,
    "canonicalize": _canonical_words,
}
"""From a text to its cleaned words, by the name of the cleaning (`model.text.cleaning`)."""


def is_blank(text: str) -> bool:
    """Whether a text shows nothing, as it is or after `clean`: it is no caption, whoever tokenizes it."""
    if "&" not in text and "\x1b" not in text and _STAYS.search(text):
        return False
    return not (_SHOWN.search(text) and any(map(_SHOWN.search, clean_words(text))))
