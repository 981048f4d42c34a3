"""Parts of captions, whatever these hold: contiguous, between borders of sentences, of so many words, and not blank."""
# ruff: noqa: RUF001

import re

from hypothesis import example, given
from hypothesis import strategies as st

from clipx.config.captions import PartsConfig
from clipx.data.sentences import draw_part, num_words, sentences
from clipx.data.text_cleaning import is_blank

PIECES = (
    *("A dog", "it is", "Dr", "e.g", "U.S", "3.5", "1", "J", "no", "一只狗", "🐶", "ﬀ", "İ", "e\u0301"),
    *(".", "!", "?", "...", "…", "。", "！", '"', "“", "”", "’", ")", "」", "-"),
    *("\n", "\r\n", " ", "  ", "\u00a0", "\u2028", "\u200b", "&nbsp;", "\x1b[0m", "\x1b]", "\x07"),
)
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=30).map("".join), st.text(max_size=60))
PARTS = st.builds(
    lambda sentence, fewest, more: PartsConfig(sentence=sentence, words=(fewest, fewest + more)),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(1, 12),
    st.integers(0, 12),
)


@given(text=TEXTS)
@example(text="\x1b]0; A dog. \x07")
def test_sentences_are_all_of_a_text_and_none_is_blank(text: str) -> None:
    found = sentences(text)
    assert found
    borders = [border for sentence in found for border in sentence]
    assert borders == sorted(borders)
    if len(found) > 1:
        gaps = [0, *borders, len(text)]
        between = [text[end:start] for end, start in zip(gaps[::2], gaps[1::2], strict=True)]
        assert not any(gap.strip() for gap in between[1:-1])
        assert not re.search(r"[^\W_]", between[0])
        for start, end in found:
            piece = text[start:end]
            assert piece == piece.strip()
            assert piece
            assert not is_blank(piece)


@given(text=TEXTS, parts=PARTS, bits=st.integers(0, 2**63 - 1))
@example(text="\x1b]0; A dog. It runs. \x07 So", parts=PartsConfig(words=(1, 3)), bits=2**63 - 1)
def test_a_part_is_contiguous_and_within_its_limits(text: str, parts: PartsConfig, bits: int) -> None:
    drawn = draw_part(text, sentences(text), parts, bits)
    assert drawn == draw_part(text, sentences(text), parts, bits)
    if drawn == text:
        return
    found = sentences(text)
    fewest, most = parts.words
    is_span = bits >> 32 >= parts.sentence * 2**31
    starts = [start for start, _ in found if text.startswith(drawn, start)]
    assert starts
    assert not is_blank(drawn)
    assert num_words(drawn) <= most
    assert num_words(drawn) >= (fewest if is_span else 1)
    ends = {start + len(drawn) for start in starts}
    assert ends & {end for _, end in found} or num_words(drawn) == most
