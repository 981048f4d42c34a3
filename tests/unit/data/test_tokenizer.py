import json
import pickle
import random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip_models import byte_tokenizer

from clipx.config.model import HuggingFaceTextConfig, TransformerTextConfig
from clipx.data.text_cleaning import clean
from clipx.data.tokenizer import ClipTokenizer, HuggingFaceTokenizer, build_tokenizer
from clipx.errors import InputError

TEXTS = [
    "",
    " ",
    "a photo of a cat",
    "A  Photo\tof\na DOG!!",
    "it's, they're, I'm, we'll, he'd, you've; 'tis don't",
    "&lt;b&gt; caf&eacute; &amp;amp; tea &#x1F600;",
    "schÃ¶n â€œquotesâ€\x9d mojibake",
    "ﬁne ligatures, “curly” quotes, …",
    "東京タワー と 서울 و القاهرة",
    "👩‍👩‍👧‍👦 🗼🇨🇭 ❤️",
    "1234 5.6e-7 ½ ² Ⅷ",
    "Straße İstanbul ΣΊΣΥΦΟΣ \u017f '\u017f \u212a",
    "\x1b[31mred\x1b[0m \u200bzero\u200b width \ufeff",
    "x" * 500,
    "word " * 100,
    "<end_of_text> after",
    "before <START_OF_TEXT> middle <End_Of_Text> after",
    "<|endoftext|>",
    "<b> &amp;lt;twice&amp;gt;",  # beside a `<` ftfy leaves entities alone
]


@pytest.fixture(scope="module")
def open_clip_tokenizer():
    return pytest.importorskip("open_clip").SimpleTokenizer()


def assert_equal_to_open_clip(theirs, texts, context_length=77):
    tokens_T, lengths_B = ClipTokenizer(context_length).encode(texts)
    assert (tokens_T.dtype, lengths_B.dtype) == (torch.int64, torch.int64)
    assert int(lengths_B.sum()) == len(tokens_T)
    for text, row, expected in zip(
        texts, tokens_T.split(lengths_B.tolist()), theirs(list(texts), context_length), strict=True
    ):
        end = expected.tolist().index(49_407) + 1  # CLIP pools here
        assert row.tolist() == expected[:end].tolist(), repr(text)


@pytest.mark.parametrize("context_length", [3, 16, 77, 248])
def test_ids_equal_open_clip_on_chosen_texts(open_clip_tokenizer, context_length):
    assert_equal_to_open_clip(open_clip_tokenizer, TEXTS, context_length)


PLAIN = ["a", "of", "red", "Dog", "photo", "CITY", "don't", "it's", "2019", "3.5", "(new)", "well-known", "cat,", "$9"]
ODD = [
    "&amp;",
    "&lt;b&gt;",
    "caf&eacute;",
    "Ã¼ber",
    "â€œyesâ€\x9d",
    "<end_of_text>",
    "<START_OF_TEXT>",
    "ΣΑΣ",
    "\u017f",
]
ODD += ["\x85", "\x1c", "\u3000", "\u2028"]
BLOCKS = [range(0x20, 0x7F), range(0x20), range(0xA0, 0x250), range(0x370, 0x600), range(0x900, 0xE00)]
BLOCKS += [range(0x2000, 0x2100), range(0x3040, 0x3100), range(0x4E00, 0x4F00), range(0x1F300, 0x1F700)]


def random_text(draw):
    """Plain words, odd ones, characters of many scripts and of any, some glued together and some too long."""

    def piece():
        match draw.randrange(6):
            case 0 | 1:
                return draw.choice(PLAIN)
            case 2:
                return draw.choice(ODD)
            case 3 | 4:
                block = draw.choice(BLOCKS)
                return "".join(chr(draw.choice(block)) for _ in range(draw.randint(1, 12)))
        return chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)]))

    glue = draw.choice([" ", " ", "", "\n\t"])
    number = draw.choice([3, 10, 10, 30, 120])
    text = glue.join(piece() for _ in range(draw.randint(0, number)))
    return text.encode("utf-8").decode("latin-1") if draw.random() < 0.1 else text  # mojibake


@pytest.mark.parametrize("count", [600, pytest.param(20_000, marks=pytest.mark.full)])
def test_ids_equal_open_clip_on_random_texts_of_all_kinds(open_clip_tokenizer, count):
    draw = random.Random(0)
    texts = [random_text(draw) for _ in range(count)]
    assert_equal_to_open_clip(open_clip_tokenizer, texts)
    assert_equal_to_open_clip(open_clip_tokenizer, texts[: count // 10], context_length=8)


@pytest.fixture(scope="module")
def byte_folder(tmp_path_factory):
    """The files of a tokenizer of transformers that gives other ids to any other text."""
    folder = tmp_path_factory.mktemp("bytes")
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.full)])
@pytest.mark.parametrize("cleaning", ["lower", "whitespace", "canonicalize"])
def test_ids_equal_open_clip_under_every_cleaning(byte_folder, cleaning, count):
    open_clip = pytest.importorskip("open_clip")
    draw = random.Random(1)
    special = ["[SEP]", "[PAD] ", " [CLS]", "<end_of_text>", "&amp;[SEP]"]
    texts = [random_text(draw) + (draw.choice(special) if draw.random() < 0.2 else "") for _ in range(count)]
    texts += [*TEXTS, *special]
    of_clip = open_clip.SimpleTokenizer(context_length=20, clean=cleaning)(texts)
    assert rows(ClipTokenizer(20, pad=True, cleaning=cleaning), texts) == of_clip.tolist()
    of_others = open_clip.tokenizer.HFTokenizer(str(byte_folder), context_length=20, clean=cleaning)(texts)
    assert rows(HuggingFaceTokenizer(str(byte_folder), 20, pad=True, cleaning=cleaning), texts) == of_others.tolist()


def rows(tokenizer, texts):
    tokens_T, lengths_B = tokenizer.encode(texts)
    return [row.tolist() for row in tokens_T.split(lengths_B.tolist())]


def test_the_config_names_the_cleaning_and_a_copy_has_it(byte_folder):
    for config in (
        TransformerTextConfig(cleaning="canonicalize"),
        TransformerTextConfig(tokenizer=str(byte_folder), cleaning="canonicalize", vocab_size=420),
        HuggingFaceTextConfig(name=str(byte_folder), cleaning="canonicalize"),
    ):
        tokenizer = build_tokenizer(config)
        assert rows(tokenizer, ["A_b, c!"]) == rows(tokenizer, ["a b c"])
        assert rows(pickle.loads(pickle.dumps(tokenizer)), ["A_b, c!"]) == rows(tokenizer, ["a b c"])
    kept = build_tokenizer(HuggingFaceTextConfig(name=str(byte_folder)))
    assert rows(kept, ["A  b"]) != rows(kept, ["A b"]) != rows(kept, ["a b"])


def test_a_full_cache_of_words_is_emptied(monkeypatch):
    texts = ["one two three four five one two", "five four three two one"]
    expected = ClipTokenizer(16).encode(texts)
    monkeypatch.setattr("clipx.data.tokenizer._CACHED_WORDS", 3)
    tokenizer = ClipTokenizer(16)
    assert all(map(torch.equal, tokenizer.encode(texts), expected))
    for number in range(20):
        tokenizer.encode([f"word{number}"])
        assert len(tokenizer._word_ids) <= 3


@settings(max_examples=200)
@given(st.text(max_size=60))
@example("&")
@example("a\x1fb")
def test_ids_equal_open_clip_on_any_text(open_clip_tokenizer, text):
    assert_equal_to_open_clip(open_clip_tokenizer, [text])


def test_cleaning_is_the_identity_on_what_skips_it():
    ftfy = pytest.importorskip("ftfy")
    printable = "".join(map(chr, range(0x20, 0x7F))).replace("&", "")
    assert ftfy.fix_text(printable) == printable
    assert clean(f"  A {printable} ") == f"a {printable.strip().lower()}"


def test_truncation_keeps_the_end_token():
    tokens_T, lengths_B = ClipTokenizer(5).encode(["one two three four five", "one"])
    assert lengths_B.tolist() == [5, 3]
    assert tokens_T[4] == tokens_T[7] == ClipTokenizer.end_id
    assert tokens_T[0] == tokens_T[5] == ClipTokenizer.start_id


def test_a_copy_in_another_process_gives_the_same_ids():
    tokenizer = ClipTokenizer(16)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.context_length == 16
    assert torch.equal(copy.encode(TEXTS)[0], tokenizer.encode(TEXTS)[0])


def test_no_texts_give_no_tokens():
    tokens_T, lengths_B = ClipTokenizer(16).encode([])
    assert tokens_T.shape == lengths_B.shape == (0,)


def test_what_it_saves_is_the_same_tokenizer_to_transformers(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = ClipTokenizer(16)
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 16
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.start_id, tokenizer.end_id)
    for text in (*map(clean, TEXTS[:13]), "a <|endoftext|> b"):
        ids = theirs(text, truncation=True)["input_ids"]
        assert ids == tokenizer.encode([text])[0].tolist(), repr(text)


@pytest.fixture
def word_tokenizer(tmp_path):
    """A tokenizer of another kind: whole words, [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "red": 4, "blue": 5}
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(tmp_path)
    return tmp_path


def test_a_tokenizer_of_transformers_is_flat_without_padding_and_cut(word_tokenizer, tmp_path_factory):
    tokenizer = build_tokenizer(TransformerTextConfig(tokenizer=str(word_tokenizer), context_length=4))
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert (tokenizer.vocab_size, tokenizer.context_length) == (6, 4)
    tokens_T, lengths_B = tokenizer.encode(["red", "blue red green blue"])
    assert tokens_T.tolist() == [1, 4, 2, 1, 5, 4, 2]
    assert lengths_B.tolist() == [3, 4]
    again = tmp_path_factory.mktemp("saved")
    tokenizer.save(again)
    assert torch.equal(HuggingFaceTokenizer(str(again), 4).encode(["blue red"])[0], torch.tensor([1, 5, 4, 2]))


@pytest.mark.parametrize(
    ("special", "end", "ids"),
    [
        ({"bos_token": "[CLS]", "eos_token": "[SEP]"}, 2, [1, 4, 2]),
        ({"cls_token": "[CLS]", "sep_token": "[SEP]"}, 2, [1, 4, 2]),
        ({"bos_token": "[SEP]", "eos_token": "[SEP]"}, None, [1, 4, 2, 5, 2]),
    ],
)
def test_a_text_that_is_pooled_at_its_end_ends_at_the_first_one(word_tokenizer, special, end, ids):
    file = word_tokenizer / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | special))
    tokenizer = build_tokenizer(TransformerTextConfig(tokenizer=str(word_tokenizer), context_length=8))
    assert (tokenizer.end_id, tokenizer.pad_id) == (end, 3)
    assert tokenizer.encode(["red [SEP] blue"])[0].tolist() == ids
    uncut = HuggingFaceTokenizer(str(word_tokenizer), 8)
    assert uncut.encode(["red [SEP] blue"])[0].tolist() == [1, 4, 2, 5, 2]


def test_the_config_picks_the_tokenizer(word_tokenizer):
    clip = build_tokenizer(TransformerTextConfig(context_length=12))
    assert isinstance(clip, ClipTokenizer)
    assert (clip.vocab_size, clip.context_length) == (49_408, 12)
    own = build_tokenizer(HuggingFaceTextConfig(name=str(word_tokenizer)))
    named = build_tokenizer(HuggingFaceTextConfig(name="absent", tokenizer=str(word_tokenizer)))
    assert own.vocab_size == named.vocab_size == 6


def test_a_tokenizer_that_cannot_be_loaded_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded") as raised:
        HuggingFaceTokenizer(str(tmp_path), 16)
    assert "\n" not in str(raised.value)
