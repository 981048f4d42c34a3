"""Where sentences end, and how long what is drawn of them is. The texts are of many scripts on purpose."""
# ruff: noqa: RUF001

from collections import Counter

import pytest

from clipx.config.captions import PartsConfig
from clipx.counter_random import Stream, key
from clipx.data.sentences import draw_part, num_words, sentences


def cut(text):
    return [text[start:end] for start, end in sentences(text)]


@pytest.mark.parametrize(
    "expected",
    [
        ["A dog runs.", "It is brown!", "Is it?", "Yes"],
        ["a dog runs.", "it is brown.", "there is a tree"],  # lower case throughout, as many captions are
        ["Dr. Smith and Mrs. Wu saw it.", "Prof. X left."],
        ["Fruit, e.g. Apples, i.e. Red ones.", "The U.S. Army marches."],
        ["J. Smith met A. Wu and I.", "He left."],
        ["It is 3.5 m tall.", "Version 2.0.1 came."],
        ["See fig. 3 for no. 5.", "She said no.", "He left."],
        ["He went... away, and… back.", "Then he came...", "And left."],
        ['"What?" he said.', 'She said "Go."', "They (all.) left.", "(Really!)"],
        ["He said “Hi there.”", "Then he left."],
        ["Wait!!", "What?!", "So."],
        ["一只狗在跑。", "它是棕色的！", "“你好。”", "他说「走吧。」", "真的吗？！", "是"],
        ["犬が走る。", "カメラ目線です。"],
        ["यह कुत्ता है।", "वह भूरा है।"],
        ["هل هذا كلب؟", "نعم."],
        ["🐶!", "🐱 🐭."],
        ["One line\nwrapped here.", "Two."],
    ],
    ids=lambda expected: ascii(expected[0]),
)
def test_sentences(expected):
    wide = any(mark in expected[0] for mark in "。！？")
    for separator in ("", " ", "\n") if wide else (" ", "  ", "\n\n", "\t", "\u00a0"):
        assert cut(separator.join(expected)) == expected


def test_items_of_a_list_are_sentences_and_their_numbers_are_none():
    assert cut("The picture shows:\n1. A dog. It runs.\n2. A cat\n- an emu\n* **Fox:** red") == [
        "The picture shows:",
        "1. A dog.",
        "It runs.",
        "2. A cat",
        "- an emu",
        "* **Fox:** red",
    ]
    assert cut("a. one. (b). two.") == ["a. one.", "(b). two."]
    assert cut("It was 1999. It rained.") == ["It was 1999.", "It rained."]


def test_what_says_nothing_belongs_to_a_neighbour():
    assert cut("A dog. ... A cat. -- !! \u200b. An emu. &nbsp; \x1b[0m") == [
        "A dog. ...",
        "A cat. -- !! \u200b.",
        "An emu. &nbsp; \x1b[0m",
    ]
    assert cut("... ! A dog. A cat.") == ["... ! A dog.", "A cat."]
    for nothing in ("", ".", " \n ", "... !", "\u200b"):
        assert sentences(nothing) == [(0, len(nothing))]


def test_a_sentence_never_begins_within_a_word_before_its_mark():
    assert cut("v1.2.See it.Or not.") == ["v1.2.See it.Or not."]
    assert cut("clipx.org. It is.") == ["clipx.org.", "It is."]


def test_words_are_those_of_white_space_and_characters_of_scripts_without_it():
    assert num_words("a dog, don't - run") == 5
    assert num_words("一只狗，在跑。“好”") == 6
    assert num_words("私はCLIPを見た。") == 6
    assert num_words(" \n。") == 0


def drawn(text, count=2000, **parts):
    return Counter(
        draw_part(text, sentences(text), PartsConfig(**parts), key(0, Stream.CAPTION_PART, i)) for i in range(count)
    )


FIVE = "One two. Three four five. Six. Seven eight nine ten. Eleven."


def test_a_sentence_is_drawn_with_its_probability_each_equally_often():
    found = drawn(FIVE, 10_000, sentence=1)
    assert set(found) == {"One two.", "Three four five.", "Six.", "Seven eight nine ten.", "Eleven."}
    assert all(abs(number - 2000) < 200 for number in found.values())  # 5 standard deviations
    mixed = drawn(FIVE, 10_000, sentence=0.3, words=(11, 40))
    assert set(mixed) == {FIVE} | set(found)
    assert abs(mixed[FIVE] - 7000) < 240


def test_spans_begin_anywhere_and_have_so_many_words():
    found = drawn(FIVE, 12_000, sentence=0, words=(4, 6))
    expected = {
        "One two. Three four five.": 1 / 8,
        "One two. Three four five. Six.": 1 / 8,
        "Three four five. Six.": 1 / 4,
        "Six. Seven eight nine ten.": 1 / 8,
        "Six. Seven eight nine ten. Eleven.": 1 / 8,
        "Seven eight nine ten.": 1 / 8,
        "Seven eight nine ten. Eleven.": 1 / 8,
    }
    assert set(found) == set(expected)
    for text, share in expected.items():
        assert abs(found[text] - 12_000 * share) < 240, text


def test_a_text_shorter_than_the_fewest_words_is_taken_as_it_is():
    assert set(drawn(" A dog. A cat.\n", sentence=0, words=(5, 9))) == {" A dog. A cat.\n"}
    assert set(drawn(" A dog\n")) == {" A dog\n"}


def test_too_long_a_sentence_is_cut_behind_a_word():
    text = "One two three four five six. Seven."
    assert set(drawn(text, sentence=0, words=(2, 4))) == {"One two three four"}
    assert set(drawn(text, sentence=1, words=(2, 4))) == {"One two three four", "Seven."}
    # From "Ah." on no end has 3 to 4 words: 1, then 7.
    assert set(drawn("Ah. " + text, sentence=0, words=(3, 4))) == {"Ah. One two three", "One two three four"}
    assert set(drawn("一只狗在跑。它。", sentence=0, words=(4, 4))) == {"一只狗在"}


def test_what_shows_nothing_is_not_drawn():
    assert set(drawn("&nbsp; a dog", 20, words=(1, 1))) == {"&nbsp; a dog"}
    assert set(drawn("&nbsp; a dog", 20, words=(1, 2))) == {"&nbsp; a"}


def test_what_is_drawn_is_a_function_of_the_bits():
    assert drawn(FIVE) == drawn(FIVE)
    bits = (0, 1 << 61, (1 << 61) + (1 << 31), (1 << 62) - 1, 1 << 62, (1 << 63) - 1)
    parts = PartsConfig(words=(2, 6))
    assert [draw_part(FIVE, sentences(FIVE), parts, each) for each in bits] == [
        "One two.",
        "One two.",
        "Six.",
        "Eleven.",
        "One two.",
        "Seven eight nine ten. Eleven.",
    ]


@pytest.mark.parametrize("unit", [".", "\n", ". ", '"', "1. ", "a.", "。」", ".\n"])
def test_hostile_texts_take_linear_time(unit):
    """An expression that tries a run of marks again from each of them would take minutes."""
    assert sentences(unit * 300_000)
