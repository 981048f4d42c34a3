import json
from collections import Counter

import pytest

from clipx.config.captions import PartsConfig
from clipx.config.data import DataConfig, SourceConfig, sources
from clipx.data.captions import CaptionReader, decode_captions, first_present
from clipx.data.decode import UndecodableError
from clipx.errors import InputError

FOUR = {"json": json.dumps({"captions": ["one", "two", "three", "four"]}).encode()}


def reader(*, captions_per_image=1, seed=0, name="train", **fields):
    data = DataConfig(sources={name: SourceConfig(shards=["0.tar"], **fields)})
    return CaptionReader(sources(data)[0], captions_per_image=captions_per_image, seed=seed)


def texts(captions, fields, *, epoch=0, sample_id=0):
    return captions.read(fields, epoch=epoch, sample_id=sample_id).texts


def test_captions_of_a_text_member_are_one_caption():
    assert decode_captions({"txt": "zwei\nZeilen, ä".encode()}, "txt") == ["zwei\nZeilen, ä"]


def test_the_first_alternative_that_is_present_counts():
    fields = {"caption": b"second", "json": json.dumps({"text": "third"}).encode()}
    assert decode_captions(fields, "txt;caption;json:text") == ["second"]
    assert decode_captions(fields, "json:absent;json:text") == ["third"]


def test_a_json_member_may_have_an_extension_of_two_parts():
    fields = {"txt": b"a dog", "syn.json": json.dumps({"syn_text": ["a brown dog"]}).encode()}
    captions = reader(caption_key={"txt": 1.0, "syn.json:syn_text": 1.0}, captions_per_image=2)
    assert set(texts(captions, fields)) == {"a dog", "a brown dog"}


def test_json_fields_hold_a_string_or_a_list_of_which_blank_ones_are_left_out():
    def fields(value):
        return {"json": json.dumps({"captions": value}).encode()}

    assert decode_captions(fields("one"), "json:captions") == ["one"]
    assert decode_captions(fields(["one", " ", "two"]), "json:captions") == ["one", "two"]


@pytest.mark.parametrize("decode", [decode_captions, lambda fields, key: texts(reader(caption_key={key: 1.0}), fields)])
@pytest.mark.parametrize(
    ("fields", "key", "reason"),
    [
        ({"jpg": b"", "cls": b"1"}, "txt", "'txt'; members: cls, jpg"),
        ({}, "txt;json:text", "'txt;json:text'; members: none"),
        ({"txt": b"\xff\xfe"}, "txt", "'txt' is not UTF-8"),
        ({"json": b"{"}, "json:text", "'json' is not JSON"),
        ({"json": b"[1]"}, "json:text", "a JSON list"),
        ({"json": b'{"text": null}'}, "json:text", "members: json"),
        ({"json": b'{"text": ["a", 3]}'}, "json:text", "is a int"),
        ({"json": b"[" * 100_000}, "json:text", "is not JSON"),
        ({"json": b'{"number": ' + b"1" * 5000 + b"}"}, "json:text", "is not JSON"),
        ({"json": b'{"text": "a \\ud83d"}'}, "json:text", "'json:text' holds half of a surrogate pair"),
    ],
)
def test_absent_and_broken_captions_are_undecodable_and_say_why(fields, key, reason, decode):
    with pytest.raises(UndecodableError) as raised:
        decode(fields, key)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_broken_caption_makes_a_bad_sample_whichever_key_is_drawn():
    captions = reader(caption_key={"txt": 1000.0, "json:text": 0.001})
    with pytest.raises(UndecodableError, match="'json' is not JSON"):
        texts(captions, {"txt": b"whole", "json": b"{"})
    assert texts(captions, {"txt": b"whole", "json": b"{}"}) == ("whole",)


@pytest.mark.parametrize("fields", [{"txt": b" \n\t"}, {"json": b'{"text": []}'}, {"json": b'{"text": ["", " "]}'}])
def test_blank_captions_are_empty(fields):
    key = "txt;json:text"
    with pytest.raises(UndecodableError, match="is empty"):
        decode_captions(fields, key)
    with pytest.raises(UndecodableError, match=f"no caption under '{key}' or 'caption'; members:"):
        texts(reader(caption_key={key: 1.0, "caption": 2.0}), fields)
    assert texts(reader(caption_key={key: 1000.0, "caption": 0.001}), fields | {"caption": b"there"}) == ("there",)


BLANK = ["&nbsp;", "\u200b", "\0", "\ufeff", "\u00ad\u00ad", "\x1b[0m", "\u3164"]


@pytest.mark.parametrize("blank", BLANK, ids=ascii)
def test_a_caption_that_cleans_to_nothing_is_absent(blank):
    with pytest.raises(UndecodableError, match="'txt' is empty"):
        texts(reader(), {"txt": blank.encode()})
    listed = {"json": json.dumps({"captions": [blank, "one", blank + " ", "two"]}).encode()}
    assert decode_captions(listed, "json:captions") == ["one", "two"]
    for epoch in range(8):
        assert set(texts(reader(caption_key="json:captions", captions_per_image=2), listed, epoch=epoch)) == {
            "one",
            "two",
        }
    weighted = reader(caption_key={"txt": 1000.0, "caption": 0.001})
    assert texts(weighted, {"txt": blank.encode(), "caption": b"there"}) == ("there",)


def test_a_bom_is_no_part_of_a_caption():
    whole = reader(equal_captions="ignored").read({"txt": b"a dog"}, epoch=0, sample_id=0)
    assert reader(equal_captions="ignored").read({"txt": "\ufeffa dog".encode()}, epoch=0, sample_id=0) == whole
    record = "\ufeff" + json.dumps({"captions": ["\ufeffone", "two"]})
    assert decode_captions({"json": record.encode()}, "json:captions") == ["one", "two"]
    numbers = reader(caption_key="cls", class_names=["cat", "dog"])
    assert texts(numbers, {"cls": "\ufeff1\r\n".encode()}) == ("dog",)


def test_a_bom_is_no_part_of_class_names_and_templates(tmp_path):
    (tmp_path / "names.txt").write_bytes("\ufeffcat\r\ndog\r\n".encode())
    (tmp_path / "templates.txt").write_bytes("\ufeffa {c}\r\n".encode())
    captions = reader(
        caption_key="cls", class_names=str(tmp_path / "names.txt"), templates=str(tmp_path / "templates.txt")
    )
    assert texts(captions, {"cls": b"0"}) == ("a cat",)
    with pytest.raises(InputError, match="entry 2 is blank"):
        reader(class_names=["cat", "&nbsp;"])


def test_first_present_follows_the_order_of_the_keys():
    assert first_present({"png": b"p", "jpg": b"j"}, "webp;jpg;png") == b"j"
    assert first_present({"png": b"p"}, "jpg;webp") is None


def test_an_extension_may_be_spelt_with_a_dot_or_in_capitals():
    assert first_present({"jpg": b"j"}, "png; .JPG") == b"j"
    assert decode_captions({"txt": b"t"}, ".TXT") == ["t"]
    assert decode_captions({"json": b'{"Text": "t"}'}, "JSON:Text") == ["t"]
    assert reader(caption_key={"JSON:Text;.TXT": 1.0, "alt": 2.0}).extensions == {"json", "txt", "alt"}


def test_a_single_caption_is_taken_as_it_is():
    found = reader().read({"txt": b"A  Dog\n"}, epoch=3, sample_id=4)
    assert found == (("A  Dog\n",), None)
    assert texts(reader(captions_per_image=3), {"txt": b"a"}) == ("a", "a", "a")


def test_what_is_drawn_depends_on_seed_epoch_and_sample_alone():
    first, second = (reader(caption_key="json:captions", templates=["{c}", "a {c}"], seed=1) for _ in range(2))
    for epoch in range(5):
        for sample_id in (0, 7, 5_000_000_000):
            args = {"epoch": epoch, "sample_id": sample_id}
            assert texts(first, FOUR, **args) == texts(second, FOUR, **args)
        texts(first, FOUR, epoch=epoch, sample_id=1)  # no state

    def draws(seed, **changes):
        return [
            texts(reader(caption_key="json:captions", seed=seed), FOUR, **changes | {"epoch": e}) for e in range(40)
        ]

    assert len({tuple(draws(seed, sample_id=sample)) for seed in (0, 1) for sample in (0, 1)}) == 4
    assert {text for (text,) in draws(0)} == {"one", "two", "three", "four"}


def test_every_caption_of_a_list_is_drawn_equally_often():
    captions = reader(caption_key="json:captions")
    count = Counter(texts(captions, FOUR, sample_id=sample)[0] for sample in range(4000))
    assert set(count) == {"one", "two", "three", "four"}
    assert all(abs(number - 1000) < 130 for number in count.values())  # 4.7 standard deviations


def test_keys_are_drawn_by_the_weights_of_those_that_are_there():
    fields = {"alt": b"alt", "json": b'{"long": ["long 1", "long 2"], "none": null, "blank": " "}'}
    weights = {"alt": 1.0, "json:long": 3.0, "json:none": 50.0, "json:blank": 50.0, "txt": 50.0}
    captions = reader(caption_key=weights)
    count = Counter(texts(captions, fields, sample_id=sample)[0] for sample in range(4000))
    assert set(count) == {"alt", "long 1", "long 2"}
    assert abs(count["alt"] - 1000) < 130
    assert abs(count["long 1"] - 1500) < 145


def test_several_captions_of_a_picture_differ_as_long_as_there_are_enough():
    captions = reader(caption_key="json:captions", captions_per_image=3)
    drawn = [texts(captions, FOUR, epoch=epoch) for epoch in range(40)]
    assert all(len(set(found)) == 3 for found in drawn)
    assert len(set(drawn)) > 10
    for found in (texts(reader(caption_key="json:captions", captions_per_image=10), FOUR, epoch=e) for e in range(20)):
        assert set(found[:4]) == {"one", "two", "three", "four"}
        assert found == (found[:4] * 3)[:10]


def test_several_captions_come_from_all_keys_the_first_by_weight():
    fields = {"txt": b"short", "json": b'{"a": ["short", "x"], "b": "y"}'}
    captions = reader(caption_key={"txt": 1.0, "json:a": 1.0, "json:b": 6.0}, captions_per_image=3)
    drawn = [texts(captions, fields, sample_id=sample) for sample in range(1000)]
    assert all(set(found) == {"short", "x", "y"} for found in drawn)  # of equal ones, one
    assert abs(sum(found[0] == "y" for found in drawn) - 750) < 65
    assert {found[0] for found in drawn} == {"short", "x", "y"}


LONG = "The first of them. A second one is here. And third comes this."
SENTENCES = {"The first of them.", "A second one is here.", "And third comes this."}
LONG_AND_SHORT = {"txt": b"short", "json": json.dumps({"long": LONG}).encode()}


def test_parts_are_drawn_beside_whole_captions_by_the_keys_weights():
    captions = reader(caption_key={"json:long": {"sentence": 1, "weight": 3}, "txt": 1})
    count = Counter(texts(captions, LONG_AND_SHORT, sample_id=sample)[0] for sample in range(4000))
    assert set(count) == SENTENCES | {"short"}
    assert all(abs(number - 1000) < 130 for number in count.values())
    alone = reader(caption_key={"json:long": PartsConfig(sentence=0, words=(5, 7))})
    assert {texts(alone, LONG_AND_SHORT, epoch=epoch)[0] for epoch in range(40)} == {
        "The first of them. A second one",  # 4 words are too few, 9 too many
        "A second one is here.",
    }


def test_parts_do_not_change_what_is_drawn_of_other_keys():
    weights = {"txt": 1.0, "json:captions": 2.0}
    fields = FOUR | {"txt": b"short"}
    for captions_per_image in (1, 3):
        plain = reader(caption_key=weights, captions_per_image=captions_per_image)
        parts = reader(caption_key=weights | {"json:captions": {"weight": 2}}, captions_per_image=captions_per_image)
        for epoch in range(40):
            assert texts(plain, fields, epoch=epoch) == texts(parts, fields, epoch=epoch)  # of words of their own


def test_several_parts_of_a_caption_differ_as_long_as_there_are_enough():
    captions = reader(caption_key={"json:long": {"sentence": 1}, "txt": 1}, captions_per_image=4)
    found = [texts(captions, LONG_AND_SHORT, epoch=epoch) for epoch in range(200)]
    assert all(set(drawn) == SENTENCES | {"short"} for drawn in found)
    assert len(set(found)) == 24  # every order
    more = reader(caption_key={"json:long": {"sentence": 1}}, captions_per_image=7)
    for drawn in (texts(more, LONG_AND_SHORT, epoch=epoch) for epoch in range(40)):
        assert set(drawn[:3]) == SENTENCES
        assert drawn == (drawn[:3] * 3)[:7]


def test_parts_of_a_picture_are_drawn_apart_from_each_other():
    """Of two captions with the same sentences in other words, the places that are drawn are not tied together."""
    first, second = LONG, LONG.upper()
    fields = {"json": json.dumps({"long": [first, second]}).encode()}
    captions = reader(caption_key={"json:long": {"sentence": 1}}, captions_per_image=2)
    found = Counter(texts(captions, fields, sample_id=sample) for sample in range(2000))
    tied = sum(count for (one, other), count in found.items() if one.lower() == other.lower())
    crossed = sum(count for (one, other), count in found.items() if one.isupper() != other.isupper())
    assert abs(tied - crossed / 3) < 100


def test_a_caption_that_is_drawn_whole_is_not_drawn_again():
    fields = {"txt": b"One. ", "json": b'{"long": ["One. ", "Two."]}'}
    captions = reader(caption_key={"json:long": {"weight": 1000}, "txt": 1}, captions_per_image=3)
    assert {texts(captions, fields, epoch=epoch) for epoch in range(40)} == {
        ("One. ", "Two.", "One. "),
        ("Two.", "One. ", "Two."),
    }


def test_equal_parts_have_equal_groups_without_being_asked_for():
    def groups(caption, **options):
        captions = reader(caption_key={"txt": {"sentence": 1}}, templates=["a {c}"], **options)
        found = [captions.read({"txt": caption}, epoch=epoch, sample_id=0) for epoch in range(60)]
        return {item.texts[0]: item.group_ids for item in found}

    first, second = groups(b"A dog runs. It is here."), groups(b"It is here. A cat sits.")
    assert first["a It is here."] == second["a It is here."]
    assert len({*first.values(), *second.values()}) == 3
    assert set(groups(b"A dog runs. It is here.", equal_captions="negatives").values()) == {None}


def test_only_sources_of_parts_ignore_equal_captions_by_default():
    data = DataConfig(
        sources={
            "plain": SourceConfig(shards=["0.tar"]),
            "parts": SourceConfig(shards=["0.tar"], caption_key={"txt": {}}),
            "asked": SourceConfig(shards=["0.tar"], caption_key={"txt": 2}, equal_captions="ignored"),
            "refused": SourceConfig(shards=["0.tar"], caption_key={"txt": {}}, equal_captions="negatives"),
        },
    )
    assert [source.equal_captions for source in sources(data)] == ["negatives", "ignored", "ignored", "negatives"]
    inherited = DataConfig(
        sources={
            "all": SourceConfig(shards=["0.tar"]),
            "plain": SourceConfig(shards=["0.tar"], caption_key="alt", equal_captions="auto"),
        },
        caption_key={"txt": {}},
        equal_captions="negatives",
    )
    assert [source.equal_captions for source in sources(inherited)] == ["negatives", "negatives"]
    assert [source.draws_parts for source in sources(inherited)] == [True, False]


@pytest.mark.parametrize(
    ("fields", "stored"),
    [
        ({}, True),
        ({"caption_key": {"txt": 1, "json:a": 2}}, True),
        ({"caption_key": {"txt": 1, "json:a": {}}}, False),
        ({"templates": ["a {c}"]}, False),
        ({"caption_key": "cls", "class_names": ["a"]}, False),
    ],
)
def test_a_source_knows_whether_its_texts_are_stored(fields, stored):
    assert sources(DataConfig(train=["0.tar"], **fields))[0].texts_are_stored == stored


def test_templates_are_drawn_for_every_text(tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text("a {c}\n{c} {x} {c}\n\n")
    for templates in (["a {c}", "{c} {x} {c}"], str(path)):
        captions = reader(captions_per_image=2, templates=templates)
        drawn = {texts(captions, {"txt": b"cat"}, epoch=epoch) for epoch in range(30)}
        assert drawn == {(one, two) for one in ("a cat", "cat {x} cat") for two in ("a cat", "cat {x} cat")}
    assert texts(reader(templates=["just {c}"]), {"txt": b"cat"}) == ("just cat",)


def test_a_number_stands_for_the_name_of_its_class(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("red fox\ncat\n dog \n")
    for names in (["red fox", "cat", "dog"], str(path)):
        labelled = reader(caption_key="cls;json:label", class_names=names, templates=["a photo of a {c}"])
        assert texts(labelled, {"cls": b" 2\n"}) == ("a photo of a dog",)
        assert texts(labelled, {"json": b'{"label": 0}'}) == ("a photo of a red fox",)
        assert texts(labelled, {"json": b'{"label": "1"}'}) == ("a photo of a cat",)
    several = reader(caption_key="json:label", class_names=["fox", "cat", "dog"], captions_per_image=2)
    assert set(texts(several, {"json": b'{"label": [2, 0]}'})) == {"dog", "fox"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"cls": b"3"}, "class is '3'; it must be a number from 0 to 2"),
        ({"cls": b"-1"}, "class is '-1'"),
        ({"cls": b"cat"}, "class is 'cat'"),
        ({"cls": "²".encode()}, "class is '²'"),
        ({"cls": "٢".encode()}, "class is '٢'"),
        ({"cls": b"1" * 5000}, "class is '1111"),
        ({"json": b'{"label": [0, 7]}'}, "class is '7'"),
        ({"json": b'{"label": true}'}, "is a bool"),
        ({"json": b'{"label": 1.0}'}, "is a float"),
        ({}, "no caption under 'cls;json:label'"),
    ],
)
def test_what_is_no_number_of_a_class_is_a_bad_sample(fields, reason):
    labelled = reader(caption_key="cls;json:label", class_names=["fox", "cat", "dog"])
    with pytest.raises(UndecodableError) as raised:
        texts(labelled, fields)
    assert reason in str(raised.value)
    assert len(str(raised.value)) < 200


def test_equal_captions_have_equal_groups_when_they_are_asked_for():
    def group(fields, **options):
        options = {"equal_captions": "ignored"} | options
        return reader(**options).read(fields, epoch=0, sample_id=0).group_ids

    (cat,) = group({"txt": b"a cat"})
    assert cat == 5_867_787_368_591_784_627  # the same on every machine
    assert group({"txt": b" A  cat\n"}, templates=["one {c}", "two {c}"]) == (cat,)
    assert group({"cls": b"1"}, caption_key="cls", class_names=["a dog", "a cat"]) == (cat,)
    assert group({"txt": b"a dog"}) != (cat,)
    assert 0 <= cat < 2**63
    assert group({"txt": b"a cat"}, equal_captions="negatives") is None


def test_each_of_several_captions_has_its_group():
    ignored = reader(caption_key="json:captions", captions_per_image=6, equal_captions="ignored", templates=["a {c}"])
    turned = {"json": b'{"captions": ["four", "two", "One", "three", "one "]}'}
    found = [ignored.read(fields, epoch=epoch, sample_id=0) for fields in (FOUR, turned) for epoch in range(4)]
    assert len({item.texts for item in found}) > 2
    texts = [(text[2:].strip().lower(), group) for item in found for text, group in zip(*item, strict=True)]
    assert len(set(texts)) == len({text for text, _ in texts}) == len({group for _, group in texts}) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_names": []}, "class_names=[] is empty"),
        ({"templates": []}, "templates=[] is empty"),
        ({"templates": ["a {c}", "a {}"]}, "templates: 'a {}' lacks {c}"),
        ({"class_names": "absent.txt"}, "absent.txt is missing; {name}.class_names needs it"),
        ({"templates": "empty.txt"}, "empty.txt is empty; {name}.templates needs it"),
        ({"class_names": "binary.txt"}, "binary.txt is not UTF-8"),
        ({"class_names": "folder"}, "folder cannot be read"),
        ({"class_names": "gap.txt"}, "class_names: line 2 of "),
        ({"class_names": ["a", "&nbsp;"]}, "class_names: entry 2 is blank"),
    ],
)
@pytest.mark.parametrize(("source", "name"), [("train", "data"), ("birds", "data.sources.birds")])
def test_bad_names_and_templates_are_bad_input(tmp_path, fields, message, source, name):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xff")
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    (tmp_path / "folder").mkdir()
    fields = {key: str(tmp_path / value) if isinstance(value, str) else value for key, value in fields.items()}
    with pytest.raises(InputError) as raised:
        reader(name=source, **fields)
    assert message.replace("{name}", name) in str(raised.value)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_text_of_megabytes_is_no_caption(monkeypatch):
    monkeypatch.setattr("clipx.data.captions.MAX_TEXT", 10)
    assert decode_captions({"txt": b"x" * 10}, "txt") == ["x" * 10]
    for key in ("txt", "txt:caption"):
        with pytest.raises(UndecodableError, match="caption under 'txt' has 11 bytes; at most 10 are a text"):
            decode_captions({"txt": b"x" * 11}, key)


def test_at_most_ten_members_are_named():
    with pytest.raises(UndecodableError, match=r"members: 00\.jpg, .*, 09\.jpg and 40 more$"):
        decode_captions({f"{i:02d}.jpg": b"" for i in range(50)}, "txt")
