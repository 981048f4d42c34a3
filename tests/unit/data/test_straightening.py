"""tokenizer.json cleans texts as `clean` does, as far as rules can."""

import json
import unicodedata
from pathlib import Path

import pytest
import tokenizers
from open_clip_models import byte_tokenizer

from clipx.config.model import Cleaning
from clipx.data.tokenizer import ClipTokenizer, HuggingFaceTokenizer

HALF_WIDTH = range(0xFF5F, 0xFFF0)  # left out, as every rule takes time of every text
# Two letters that ftfy takes for a broken encoding before a space, and a mark that Python's `regex` takes for a letter.
ODD = {0xC2, 0xC3, 0x0345}
TEXTS = (
    "\u201cthe photographer\u2019s own\u201d",
    "  white   space,\n\ta second line\u2028and a third  ",
    "fish &amp; chips &lt;b&gt;for&lt;/b&gt; &quot;two&quot;&nbsp;&#39;now&#039; &#x27;then&#x27; &eacute;t&eacute;",
    "&amp;amp; &amp;quot;twice&amp;quot; it&rsquo;s 1990&ndash;95 &copy; &mdash;",
    "the cafÃ© where itâ€™s always full â€“ 20Â°C",
    "an e\u0301clair \ufb01lled with \uff23\uff32\uff25\uff21\uff2d, 20\u00a0\u00b5m",
    "\x1b[31mred\x1b[0m \ufeffmark\x00ed",
    "ΟΔΟΣ ΣΟΦΟΣ, ς",
    "👩🏽‍🚀 waves 👋 on the 🌕 — 東京タワー",
    "",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    ClipTokenizer(77).save(folder)
    return folder


def ids_of(texts: list[str]) -> list[list[int]]:
    tokens, lengths = ClipTokenizer(77).encode(texts)
    return [row.tolist() for row in tokens.split(lengths.tolist())]


def test_every_character_has_the_ids_that_cleaning_gives_it(saved: Path) -> None:
    rules = tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json"))
    scripts = (*range(0x3400, 0xA000), *range(0xA000, 0xD7A4))  # Han, Yi and Hangul, which nothing changes
    assigned = [c for c in range(0x10000) if unicodedata.category(chr(c)) not in ("Cn", "Co", "Cs")]
    points = sorted(set(assigned) - set(scripts) - set(HALF_WIDTH) - ODD)
    texts = [f"A {chr(point)}{chr(point)} 3{chr(point)}4" for point in points]
    found = [encoding.ids for encoding in rules.encode_batch(texts)]
    wrong = [f"{point:04X}" for point, a, b in zip(points, ids_of(texts), found, strict=True) if a != b]
    assert not wrong


def test_texts_have_the_same_ids_in_transformers(saved: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert tokenizer(list(TEXTS), truncation=True)["input_ids"] == ids_of(list(TEXTS))


def test_long_texts_are_cut_and_short_ones_padded_by_the_end(saved: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(saved)
    rows = tokenizer(["word " * 200, "x"], truncation=True, padding=True)["input_ids"]
    assert [len(row) for row in rows] == [77, 77]
    assert rows[0][-1] == ClipTokenizer.end_id
    assert set(rows[1][2:]) == {ClipTokenizer.end_id}


def test_the_class_is_one_that_transformers_4_has(saved: Path) -> None:
    assert json.loads((saved / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize("cleaning", ["whitespace", "canonicalize"])
def test_other_cleanings_are_done_as_well(tmp_path: Path, cleaning: Cleaning) -> None:
    from transformers import AutoTokenizer

    texts = [*TEXTS, "A photo, of_a (big) DOG's bowl!", " ~`^|\\{}[]<>@#$%&*+=/?:;\"' -- ", "3.14% of Ö_ü"]
    ours = ClipTokenizer(77, cleaning=cleaning)
    ours.save(tmp_path)
    tokens, lengths = ours.encode(texts)
    rows = [row.tolist() for row in tokens.split(lengths.tolist())]
    assert AutoTokenizer.from_pretrained(tmp_path)(texts, truncation=True)["input_ids"] == rows
    assert rows != ids_of(texts)


@pytest.mark.parametrize("cleaning", ["lower", "whitespace", "canonicalize"])
def test_another_tokenizer_cleans_where_it_shall(tmp_path: Path, cleaning: Cleaning) -> None:
    from transformers import AutoTokenizer

    byte_tokenizer().save_pretrained(tmp_path / "before")  # spaces and case count
    ours = HuggingFaceTokenizer(str(tmp_path / "before"), 77, cleaning=cleaning)
    texts = [*TEXTS[:-1], "A photo, of_a (big) DOG's bowl! "]
    tokens, lengths = ours.encode(texts)
    rows = [row.tolist() for row in tokens.split(lengths.tolist())]
    for cleaned in (True, False):
        ours.save(folder := tmp_path / str(cleaned), cleaned=cleaned)
        theirs = AutoTokenizer.from_pretrained(folder)
        assert (theirs(texts, truncation=True, max_length=77)["input_ids"] == rows) == cleaned
    assert theirs.backend_tokenizer.normalizer is None  # a copy is what it was
