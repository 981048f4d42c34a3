"""Kept class embeddings: found by content, never trusted when broken, bounded."""

import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_clip import tiny_pretrained

from clipx.errors import InputError
from clipx.pretrained import Pretrained
from clipx.use import class_cache
from clipx.use.class_cache import embed_class_list
from clipx.use.class_list import ClassList

CLASSES = ClassList(names=("cat", "dog"), templates=("a {c}", "the {c}"), origin="--classes")


@pytest.fixture(scope="module")
def pretrained() -> Pretrained:
    return tiny_pretrained()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows whenever embeddings are computed."""
    calls: list[int] = []
    original = class_cache.mean_embeddings

    def counted(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(class_cache, "mean_embeddings", counted)
    return calls


def test_they_are_computed_once_and_equal_what_the_model_gives(
    pretrained: Pretrained, computed: list[int], tmp_path: Path
) -> None:
    expected = pretrained.class_embeddings(CLASSES.names, CLASSES.templates)
    for _ in range(2):
        found = embed_class_list(pretrained, CLASSES, cache=tmp_path)
        assert found.names == expected.names
        assert torch.equal(found.embedding_CD, expected.embedding_CD)
        assert torch.equal(found.reference_RD, expected.reference_RD)
    assert len(computed) == 1


def test_they_are_found_by_their_content_alone(pretrained: Pretrained, computed: list[int], tmp_path: Path) -> None:
    embed_class_list(pretrained, CLASSES, cache=tmp_path)
    embed_class_list(tiny_pretrained(), replace(CLASSES, origin="elsewhere"), cache=tmp_path)  # an equal model
    assert len(computed) == 1
    other = [
        (tiny_pretrained(seed=1), CLASSES),
        (pretrained, replace(CLASSES, names=("dog", "cat"))),
        (pretrained, replace(CLASSES, templates=("a {c}",))),
    ]
    for model, classes in other:
        found = embed_class_list(model, classes, cache=tmp_path)
        expected = model.class_embeddings(classes.names, classes.templates)
        assert torch.equal(found.embedding_CD, expected.embedding_CD)
    assert len(computed) == 4
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("fault", ["cut", "bit", "empty", "head", "folder"])
def test_a_broken_file_is_made_again(pretrained: Pretrained, computed: list[int], tmp_path: Path, fault: str) -> None:
    expected = embed_class_list(pretrained, CLASSES, cache=tmp_path)
    [path] = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if fault == "folder":
        path.unlink()
        path.mkdir()
    else:
        content[-1] ^= fault == "bit"
        broken = {"cut": content[:-4], "bit": content, "empty": b"", "head": b"{" * 5000 + content}[fault]
        path.write_bytes(broken)
    for _ in range(2):
        assert torch.equal(embed_class_list(pretrained, CLASSES, cache=tmp_path).embedding_CD, expected.embedding_CD)
    assert len(computed) == (3 if fault == "folder" else 2)
    assert [other.name for other in tmp_path.iterdir()] == [path.name]  # no temporary file


def test_without_a_cache_or_a_place_for_it_they_are_computed(
    pretrained: Pretrained, computed: list[int], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for cache in (None, tmp_path / "file" / "below"):
        embed_class_list(pretrained, CLASSES, cache=cache)
    assert len(computed) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_those_used_longest_ago_make_room(
    pretrained: Pretrained, computed: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = [replace(CLASSES, names=(f"a{i}", f"b{i}")) for i in range(3)]
    (tmp_path / "notes.txt").write_text("mine" * 10_000)  # nobody's business, and no part of the bound
    paths = []
    for i in (0, 1):
        embed_class_list(pretrained, lists[i], cache=tmp_path)
        [path] = {*tmp_path.glob("*.classes")} - {*paths}
        os.utime(path, (1000 + i, 1000 + i))
        paths.append(path)
    monkeypatch.setattr(class_cache, "MAX_BYTES", int(2.5 * paths[0].stat().st_size))
    embed_class_list(pretrained, lists[0], cache=tmp_path)  # used now
    embed_class_list(pretrained, lists[2], cache=tmp_path)
    assert [path.exists() for path in paths] == [True, False]
    monkeypatch.setattr(class_cache, "MAX_BYTES", 100)
    embed_class_list(pretrained, replace(CLASSES, names=("x", "y")), cache=tmp_path)
    assert len(list(tmp_path.glob("*.classes"))) == 2  # too large to be kept, and nothing went for it
    assert (tmp_path / "notes.txt").exists()


def test_of_a_set_equal_classes_count_once_and_of_a_person_they_are_refused(
    pretrained: Pretrained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    twins = replace(CLASSES, names=("crane", "missile", "Missile", "crane"), origin="IMAGES")
    with caplog.at_level(logging.WARNING):
        found = embed_class_list(pretrained, replace(twins, is_set=True), cache=tmp_path)
    assert found.names == ("crane", "missile")
    assert "IMAGES: 2 classes are equal to earlier ones to this model" in caplog.text
    with pytest.raises(InputError, match="IMAGES: entries 1 and 4, 'crane' and 'crane', are the same class"):
        embed_class_list(pretrained, twins, cache=tmp_path)
    cut = replace(CLASSES, names=("word " * 30 + "a", "word " * 30 + "b"))
    with pytest.raises(InputError, match=r"--classes: entries 1 and 2, .* are the same class to this model"):
        embed_class_list(pretrained, cut, cache=tmp_path)
