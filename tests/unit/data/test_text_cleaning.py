import html
import json

import ftfy
import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st

from clipx.data.text_cleaning import CLEANINGS, clean, is_blank, without_bom

NOTHING = [
    "",
    " \n\t\x85\u3000",
    "\0\x07\x7f",
    "\ufeff",
    "\ufeff \ufeff",
    "\u200b\u200c\u200d\u2060",  # zero-width space, non-joiner, joiner, word joiner
    "\u00ad\u00ad",  # soft hyphens
    "\u200e\u202e",  # directions
    "\u3164\u115f\uffa0",  # Hangul fillers
    "\u2800",  # Braille without a dot
    "\ufe0f",  # a variation selector
    "\U000e0061",  # a tag
    "\u034f\u180e\u2028",
    "&nbsp;",
    "&amp;nbsp; &#8203;&shy;&ZeroWidthSpace;",
    "\x1b[31m\x1b[0m",  # colours of a terminal
    "Â\xa0",  # a no-break space, read as Latin-1
    "\ufffc",  # stands for a picture that was there
]
SOMETHING = [
    "a",
    "0",
    ".",
    "&",
    "é",
    "猫",
    "が",
    "고",
    "кот",
    "🗼",
    "❤️",
    "\u200bx",
    "&eacute;",
    "&amp;",
    "\x1b[0ma",
    "़",
]
SOMETHING += ["\ue000", "\U000e0fff\u0661", "<br>", "Ã©", "&nbsp;;"]


@pytest.mark.parametrize("text", NOTHING, ids=ascii)
def test_what_shows_nothing_is_blank(text):
    assert is_blank(text)
    assert is_blank(text * 2)


@pytest.mark.parametrize("text", SOMETHING, ids=ascii)
def test_what_shows_anything_is_not(text):
    assert not is_blank(text)
    assert not is_blank(" \ufeff\u200b" + text)


@given(st.lists(st.sampled_from([*NOTHING, *SOMETHING]) | st.text(max_size=3), max_size=6).map("".join))
@example("&#0;")
@example("\x85")  # ftfy takes it for an ellipsis in Windows' encoding
def test_the_short_way_gives_what_the_cleaning_leaves(text):
    left = html.unescape(html.unescape(ftfy.fix_text(text))).lower()
    shown = regex.sub(r"[\p{Cc}\p{Z}\p{Default_Ignorable_Code_Point}\u2800]", "", left)
    as_it_is = regex.sub(r"[\p{Cc}\p{Z}\p{Default_Ignorable_Code_Point}\u2800]", "", text)
    assert is_blank(text) == (not shown or not as_it_is)
    assert clean(text) == " ".join(left.split())


def test_a_bom_is_taken_away_at_the_start_alone():
    assert without_bom("\ufeff\ufeffa\ufeff") == "a\ufeff"
    assert json.loads(without_bom('\ufeff{"a": 1}')) == {"a": 1}


ODD = ["a_b", "Don't!", "&amp;_", "“Yes”", "Ã©", "<b>", "ΣΑΣ", "\u3000", "\x1c", "日本。", "🙂!", "#$%", "", " A\tB "]


@pytest.mark.parametrize("name", CLEANINGS)
@given(st.lists(st.sampled_from(ODD) | st.text(max_size=5), max_size=6).map("".join))
def test_every_cleaning_is_open_clips_of_that_name(name, text):
    theirs = pytest.importorskip("open_clip.tokenizer").get_clean_fn(name)(text)
    assert " ".join(CLEANINGS[name](text)) == theirs
