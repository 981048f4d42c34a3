"""Sentences of a caption, and the part of it that is drawn: one of them, or a span of consecutive ones.

Rules, no model: they cost microseconds, need to know no language, and give the same on every machine. Where they are in
doubt they see no border, so that a sentence is rather two than half of one. All is linear in the length of the text.
"""

# Quotes and full stops of all scripts stand here on purpose.
# ruff: noqa: RUF001

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, islice

from clipx.config.captions import PartsConfig
from clipx.data.text_cleaning import is_blank

# Characters of languages that put no space between words: each counts as a word.
_UNSPACED = "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WIDE_MARKS = "“”\u3000-\u303f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"  # are no words and part them
_WORD = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}{_WIDE_MARKS}]+")
# What may end a sentence, with the white space behind it. Possessive: what does not match is not tried again, shorter.
# It begins with one character of a set, for which `re` looks fast.
_WIDE = "。！？｡"
_LINE_ENDS = "\n\r\u2028\u2029"
_END = re.compile(
    rf"""(?P<first>[.!?…．।۔؟{_WIDE}{_LINE_ENDS}])(?P<more>[.!?…．।۔؟{_WIDE}]*+)"""
    r"""(?P<closing>["'”’»)\]」』）】》〉]*+)(?P<space>\s*+)"""
)
_SAYS = re.compile(r"[^\W_]|[\u2600-\u27bf\U0001f000-\U0001ffff]")  # a letter, a digit, an emoji
_WORD_BEFORE = re.compile(r"[^\s\"'“‘«(\[]*\Z")
_LONGEST_WORD = 24  # characters looked at before a mark
_DOTTED = re.compile(r"(?:\w\.)+\w")  # e.g, z.B, U.S
_ITEM = re.compile(r"\(?(?:\d{1,3}|\w)\)?")  # the number of an item of a list
_BEFORE_NAMES = re.compile(  # small letters
    "dr|mrs?|ms|mx|prof|st|mt|ft|sgt|capt|cpt|lt|col|gen|rev|hon|gov|sen|rep|messrs|mme|mlle|sra?|vs|approx|ca|cf|viz|"
    "bzw|bspw|resp|incl|excl"
)
_BEFORE_NUMBERS = re.compile("nos?|nr|figs?|vol|pp?|ch|art|eq|ref|abb")


def sentences(text: str) -> list[tuple[int, int]]:
    """Start and end of each sentence of a text, in order, white space around it left out; at least one.

    A sentence ends at . ! ? or … before white space, at the marks of Chinese and Japanese, and at the end of a line
    unless the next begins in lower case. No end is a dot behind a title or abbreviation of a short list, behind
    letters with dots between (e.g., U.S.), behind a capital alone, or behind the number of a list's item; nor dots that
    leave something out, or a mark within quotes, before lower case. What shows nothing, or marks alone, belongs to the
    sentence before it, or to the first.

    Args:
        text: any; one that says nothing is one sentence.
    """
    found: list[tuple[int, int]] = []
    begins = None  # where the next sentence begins, if marks stand before it
    for start, end in _pieces(text):
        piece = text[start:end]
        if _SAYS.search(piece) and not is_blank(piece):
            found.append((start if begins is None else begins, end))
            begins = None
        elif found:
            found[-1] = (found[-1][0], end)
        elif begins is None:
            begins = start
    return found or [(0, len(text))]


def draw_part(text: str, found: Sequence[tuple[int, int]], parts: PartsConfig, bits: int) -> str:
    """A sentence of a text, or a span of consecutive ones; the whole text as it is where that is all of it.

    With probability `parts.sentence` it is one of the sentences, each equally likely. Else a span: its start is one of
    the sentences with at least `parts.words[0]` words from there to the text's end, and its end one of those with which
    it has a number of words within the limits; where there is none, it is cut behind the last word allowed. A text with
    fewer words is taken whole. A sentence is cut there, too: no part has more than `parts.words[1]` words.

    Args:
        text: a caption that is not blank.
        found: its `sentences`.
        parts: how.
        bits: 63 random bits, which decide.
    """
    chance, place = divmod(bits, 1 << 32)  # 31 and 32 of them
    if chance < parts.sentence * (1 << 31):
        first = last = place * len(found) >> 32
    else:
        first, last = _span(text, found, parts.words, place)
    part = text[found[first][0] : found[last][1]]
    if num_words(part) > parts.words[1]:
        part = _first_words(part, parts.words[1])
    elif (first, last) == (0, len(found) - 1):
        return text
    return text if is_blank(part) else part


def num_words(text: str) -> int:
    """Words of a text: what white space separates, and each character of Chinese or Japanese."""
    return len(text.split()) if text.isascii() else len(_WORD.findall(text))


def _pieces(text: str) -> list[tuple[int, int]]:
    """What stands between the ends of sentences, without white space around it."""
    pieces = []
    start, shown_end = len(text) - len(text.lstrip()), len(text.rstrip())
    for match in _END.finditer(text, start, shown_end):
        if match.end() < shown_end and _is_end(text, start, match):
            pieces.append((start, start + len(text[start : match.end()].rstrip())))
            start = match.end()
    if start < shown_end:
        pieces.append((start, shown_end))
    return pieces


def _is_end(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether a sentence that began at `start` ends with the match; something stands behind it."""
    first, more, closing, space = match.groups()
    following = text[match.end()]
    if first in _LINE_ENDS:
        return not following.islower()
    if first in _WIDE:
        return True
    if not space:
        return False
    if closing or more or first != ".":
        goes_on = closing or first == "…" or more.startswith((".", "…"))
        return not (goes_on and following.islower())
    mark = match.start()
    if _ITEM.fullmatch(text, start, mark):
        return False
    behind = _WORD_BEFORE.search(text[max(start, mark - _LONGEST_WORD) : mark])
    word = behind[0] if behind else ""
    if _DOTTED.fullmatch(word) or (len(word) == 1 and word.isupper() and word != "I"):
        return False
    lower = word.lower()
    return not (_BEFORE_NAMES.fullmatch(lower) or (_BEFORE_NUMBERS.fullmatch(lower) and following.isdigit()))


def _span(text: str, found: Sequence[tuple[int, int]], words: tuple[int, int], place: int) -> tuple[int, int]:
    """The first and the last sentence of a span; of `place`'s 32 bits those left by the first decide on the last."""
    fewest, most = words
    ends = list(accumulate(num_words(text[start:end]) for start, end in found))  # words up to each sentence's end
    starts = [0, *ends[:-1]]
    if ends[-1] < fewest:
        return 0, len(found) - 1
    first, rest = divmod(place * bisect_right(starts, ends[-1] - fewest), 1 << 32)
    begin = bisect_left(ends, starts[first] + fewest, lo=first)
    end = bisect_right(ends, starts[first] + most, lo=first)
    return first, begin + (rest * max(end - begin, 1) >> 32)


def _first_words(text: str, number: int) -> str:
    """The text up to the end of the word of this number, from 1, which it has."""
    return text[: next(islice(_WORD.finditer(text), number - 1, None)).end()]
