"""The cleanings of texts as rules of a tokenizer.json, for libraries that read one and do not clean texts.

A rule replaces a string, or what a pattern matches. Rules say what ftfy does to a single character (curly quotes,
ligatures, full width, control characters), the commonest entities of HTML, and the commonest broken encodings. They
cannot say what depends on the whole text: other encodings, other spellings of entities. Characters of half width
(Japanese, Korean) are left out: every rule takes a microsecond of every text. What a rule makes of a character is asked
of `clean_words`' own `fix`, so it follows the ftfy that is installed.
"""

from collections import defaultdict
from collections.abc import Iterator
from html.entities import name2codepoint
from typing import Any

from clipx.config.model import Cleaning
from clipx.data.text_cleaning import fix

Rule = dict[str, Any]

# What ftfy changes by itself lies here, half width aside; tests look at all other code points.
_RANGES = (
    (0x00, 0x08), (0x0B, 0x0B), (0x0E, 0x1F), (0x7F, 0x9F), (0x0132, 0x0149), (0x01C4, 0x01CC), (0x01F1, 0x01F3),
    (0x02BC, 0x02BC), (0x2018, 0x201F), (0x206A, 0x206F), (0xFB00, 0xFB06), (0xFEFF, 0xFEFF), (0xFF01, 0xFF5E),
    (0xFFF9, 0xFFFC),
)  # fmt: skip
_TERMINAL_ESCAPES = r"\x1b\[[\d;]*[a-zA-Z]"
_FINAL_SIGMA = r"(?<=\p{L})Σ(?!\p{L})"  # Python lowers it to another letter than one within a word
_ASCII_PUNCTUATION = r"[!-/:-@\[-`{-~]"
STRIP: Rule = {"type": "Strip", "strip_left": True, "strip_right": True}
"""White space at both ends, which no cleaning leaves; CLIP's tokenizer passes over it."""
_PUNCTUATION = "\u2013\u2014\u2018\u2019\u201c\u201d\u2022\u2026\u20ac\u2122"
_CONTEXTS = ("{}", "a{}b", "it {} is", "The caf{}, 1997")
"""Texts in which a broken encoding must be repaired for a rule to do it."""


def normalizer(cleaning: Cleaning = "lower") -> Rule:
    """The `normalizer` of a tokenizer.json that does a cleaning, as far as rules can."""
    rules = [_pattern(_TERMINAL_ESCAPES, ""), *_broken_encodings(), *_entities(), *_characters(), {"type": "NFC"}]
    if cleaning == "canonicalize":
        rules += [_string("_", " "), _pattern(_ASCII_PUNCTUATION, "")]
    rules.append(_pattern(r"\s+", " "))
    if cleaning != "whitespace":
        rules += [_pattern(_FINAL_SIGMA, "ς"), {"type": "Lowercase"}]
    return {"type": "Sequence", "normalizers": rules}


def _characters() -> Iterator[Rule]:
    """One rule for each result: of one character a string, of several a pattern."""
    sources: dict[str, str] = defaultdict(str)
    for first, last in _RANGES:
        for character in map(chr, range(first, last + 1)):
            fixed = fix(f"a{character}b")[1:-1]
            if fixed != character:
                sources[fixed] += character
    for fixed, characters in sources.items():
        if len(characters) == 1:
            yield _string(characters, fixed)
        else:
            yield _pattern("[" + "".join(f"\\x{{{ord(character):X}}}" for character in characters) + "]", fixed)


def _entities() -> Iterator[Rule]:
    """`&amp;` twice and first, because an entity's own & is often written as an entity."""
    yield _string("&amp;", "&")
    yield _string("&amp;", "&")
    for name, code_point in name2codepoint.items():
        if name != "amp" and (code_point < 256 or chr(code_point) in _PUNCTUATION):
            yield _string(f"&{name};", chr(code_point))
    for character in "\"'&<>\u00a0" + _PUNCTUATION:
        spellings = {f"&#{ord(character)};", f"&#{ord(character):03};", f"&#x{ord(character):x};"}
        yield from (_string(spelling, character) for spelling in sorted(spellings))
    yield _string("&apos;", "'")


def _broken_encodings() -> Iterator[Rule]:
    """UTF-8 that was read as Windows-1252: punctuation, and the letters of Latin-1."""
    for character in _PUNCTUATION + "".join(map(chr, range(0xA1, 0x100))):
        broken = character.encode().decode("cp1252", errors="ignore")
        if len(broken) != len(character.encode()):
            continue
        if all(fix(text.format(broken)) == fix(text.format(character)) for text in _CONTEXTS):
            yield _string(broken, character)


def _string(old: str, new: str) -> Rule:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _pattern(old: str, new: str) -> Rule:
    return {"type": "Replace", "pattern": {"Regex": old}, "content": new}
