"""The embedded set is what the demo's scores are about: it must be reproducible, honest and well-formed."""

import hashlib
import io
import itertools
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipx.demo import scenes
from clipx.demo.scenes import (
    ALL_CLASSES,
    COLOUR_RGB,
    COLOURS,
    RELATION_OFFSETS,
    SEEN_CLASSES,
    SHAPES,
    SIZES,
    TEMPLATES,
    UNSEEN_CLASSES,
    make_scene,
    render,
    write_synthetic_set,
)
from clipx.errors import InputError

NUM_EVAL_PER_CLASS = 2


@pytest.fixture(scope="module")
def train_scenes():
    return [make_scene(0, "train", index) for index in range(3000)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic") / "set"
    _write(out)
    return out


def _write(out: Path, **overrides: int) -> None:
    settings = {
        "num_train": 25,
        "image_size": 32,
        "seed": 0,
        "shard_size": 10,
        "num_eval_per_class": NUM_EVAL_PER_CLASS,
    }
    write_synthetic_set(out, **(settings | overrides))


def _read_tar(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_classes_split_into_48_seen_and_8_unseen():
    assert len(ALL_CLASSES) == len(set(ALL_CLASSES)) == len(COLOURS) * len(SHAPES) == 56
    assert len(SEEN_CLASSES) == 48
    assert len(UNSEEN_CLASSES) == 8
    assert set(SEEN_CLASSES) | set(UNSEEN_CLASSES) == set(ALL_CLASSES)


def test_every_colour_is_left_out_once_and_every_shape_at_least_once():
    colours, shapes = zip(*(name.split() for name in UNSEEN_CLASSES), strict=True)
    assert sorted(colours) == sorted(COLOURS)
    assert set(shapes) == set(SHAPES)


@pytest.mark.parametrize("word", [*COLOURS, *SIZES])
def test_words_after_the_article_take_a_and_not_an(word):
    assert word[0] not in "aeiou"


@pytest.mark.parametrize("split", ["train", "heldout", "unseen"])
def test_scene_and_picture_depend_on_nothing_but_their_arguments(split):
    scene = make_scene(3, split, 17)
    picture = render(scene, 48)
    np.random.default_rng(0).random(5)
    make_scene(3, split, 18)
    assert make_scene(3, split, 17) == scene
    assert render(scene, 48).tobytes() == picture.tobytes()
    assert (picture.mode, picture.size) == ("RGB", (48, 48))


def test_seed_split_and_index_each_change_the_scene():
    arguments = itertools.product((0, 1), ("train", "heldout", "unseen"), range(20))
    scenes = [make_scene(*key) for key in arguments]
    assert len(set(scenes)) == len(scenes)


def test_training_shows_every_seen_class_and_no_unseen_one(train_scenes):
    shown = {item.class_name for scene in train_scenes for item in scene.objects}
    assert shown == set(SEEN_CLASSES)


def test_no_training_caption_names_an_unseen_class(train_scenes):
    assert not any(name in scene.caption for scene in train_scenes for name in UNSEEN_CLASSES)


def test_heldout_rounds_show_every_class_once_and_alternate_between_one_and_two_objects():
    for start, num_objects in ((0, 1), (48, 2), (96, 1)):
        scenes = [make_scene(0, "heldout", index) for index in range(start, start + 48)]
        assert Counter(scene.objects[0].class_name for scene in scenes) == dict.fromkeys(SEEN_CLASSES, 1)
        assert {len(scene.objects) for scene in scenes} == {num_objects}


def test_unseen_scenes_show_only_unseen_classes_equally_often():
    names = Counter(make_scene(0, "unseen", index).objects[0].class_name for index in range(24))
    assert names == dict.fromkeys(UNSEEN_CLASSES, 3)


def test_captions_name_what_is_shown(train_scenes):
    for scene in train_scenes:
        named = [scene.caption.find(item.class_name) for item in scene.objects]
        assert -1 not in named
        assert named == sorted(named)
        words = scene.caption.split()
        assert {word for word in words if word in SIZES} <= {item.size for item in scene.objects}
        assert any(scene.caption.startswith(template.replace("{c}", "")) for template in TEMPLATES)


def test_relation_is_true_of_the_picture_and_clear(train_scenes):
    pairs = [scene for scene in train_scenes if scene.relation]
    assert {scene.relation for scene in pairs} == set(RELATION_OFFSETS)
    for scene in pairs:
        first, second = scene.objects
        dx, dy = RELATION_OFFSETS[scene.relation]
        along = (first.x - second.x) * dx + (first.y - second.y) * dy
        across = abs((first.x - second.x) * dy) + abs((first.y - second.y) * dx)
        assert along > 1.5 * across
        assert first.class_name != second.class_name


def test_objects_lie_inside_the_picture_and_apart(train_scenes):
    for scene in train_scenes:
        masks = [np.asarray(scenes._mask(item, 96)) > 127 for item in scene.objects]
        assert sum(masks).max() == 1
        for mask in masks:
            assert mask.any()
            if scene.relation:
                border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
                assert not border.any()


def test_size_word_is_decided_by_the_radius(train_scenes):
    for is_pair in (False, True):
        items = [item for scene in train_scenes if (scene.relation is not None) == is_pair for item in scene.objects]
        radii = [[item.radius for item in items if item.size == size] for size in SIZES]
        assert max(radii[0]) < min(radii[1])
        assert max(radii[1]) < min(radii[2])


def test_drawn_colour_is_nearest_to_its_name_and_far_from_the_ground(train_scenes):
    palette = np.array(list(COLOUR_RGB.values()), dtype=float)
    for scene in train_scenes[:300]:
        pixels = np.asarray(render(scene, 48), dtype=float)
        for item in scene.objects:
            inside = np.asarray(scenes._mask(item, 48)) == 255
            drawn = pixels[inside].mean(0)
            assert COLOURS[np.linalg.norm(palette - drawn, axis=1).argmin()] == item.colour
        outside = np.all([np.asarray(scenes._mask(item, 48)) == 0 for item in scene.objects], axis=0)
        ground = pixels[outside].mean(0)
        assert np.linalg.norm(palette - ground, axis=1).min() > 50


def test_training_shards_hold_pictures_with_their_captions(written):
    shards = sorted((written / "train").iterdir())
    assert [shard.name for shard in shards] == ["00000.tar", "00001.tar", "00002.tar"]
    members = {name: data for shard in shards for name, data in _read_tar(shard).items()}
    assert list(members) == [f"{key:08}.{ending}" for key in range(25) for ending in ("jpg", "txt")]
    for index in range(25):
        scene = make_scene(0, "train", index)
        assert members[f"{index:08}.txt"].decode() == scene.caption
        picture = Image.open(io.BytesIO(members[f"{index:08}.jpg"]))
        assert picture.size == (32, 32)
        assert np.abs(np.asarray(picture, dtype=float) - np.asarray(render(scene, 32), dtype=float)).mean() < 4


@pytest.mark.parametrize(
    ("folder", "listed", "shown"),
    [("wds_scenes", SEEN_CLASSES, SEEN_CLASSES), ("wds_scenes_unseen", ALL_CLASSES, UNSEEN_CLASSES)],
)
def test_labelled_folders_have_the_benchmark_layout_and_equal_classes(written, folder, listed, shown):
    names = (written / folder / "classnames.txt").read_text().splitlines()
    assert tuple(names) == tuple(listed)
    templates = (written / folder / "zeroshot_classification_templates.txt").read_text().splitlines()
    assert tuple(templates) == TEMPLATES
    assert (written / folder / "test/nshards.txt").read_text().strip() == "1"
    members = _read_tar(written / folder / "test/0.tar")
    labels = Counter(names[int(data)] for name, data in members.items() if name.endswith(".cls"))
    assert labels == dict.fromkeys(shown, NUM_EVAL_PER_CLASS)
    assert sum(name.endswith(".jpg") for name in members) == labels.total()


def test_retrieval_captions_are_distinct(written):
    folder = written / "wds_scenes_retrieval"
    assert (folder / "dataset_type.txt").read_text().strip() == "retrieval"
    assert (folder / "test/nshards.txt").read_text().strip() == "1"
    captions = [data.decode() for name, data in _read_tar(folder / "test/0.tar").items() if name.endswith(".txt")]
    assert len(set(captions)) == len(captions) == scenes.NUM_RETRIEVAL
    assert any(" a " in caption.split(" a ", 1)[-1] for caption in captions)


def test_equal_arguments_give_equal_bytes_and_another_seed_others(written, tmp_path):
    _write(tmp_path / "again")
    assert _digests(tmp_path / "again") == _digests(written)
    _write(tmp_path / "other", seed=1)
    assert _digests(tmp_path / "other")["train/00000.tar"] != _digests(written)["train/00000.tar"]


def test_existing_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/precious.txt").write_text("keep")
    with pytest.raises(InputError, match="remove it or write"):
        _write(tmp_path / "set")
    assert (tmp_path / "set/precious.txt").read_text() == "keep"


@pytest.mark.parametrize("place", ["file/set", "/proc/set"])
def test_folder_that_cannot_be_made_is_bad_input(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"set cannot be made: .*another folder"):
        _write(tmp_path / place)


def test_interrupted_write_leaves_no_folder_and_can_be_repeated(tmp_path, monkeypatch, written):
    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(scenes, "_write_retrieval", fail)
        with pytest.raises(InputError, match="set cannot be made: disk full"):
            _write(tmp_path / "set")
    assert not (tmp_path / "set").exists()
    _write(tmp_path / "set")
    assert _digests(tmp_path / "set") == _digests(written)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_folder_of_others_in_the_way_stays(tmp_path):
    (tmp_path / ".set.unfinished").mkdir()
    (tmp_path / ".set.unfinished" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"\.set\.unfinished is in the way, and clipx did not make it; move it away"):
        _write(tmp_path / "set")
    assert (tmp_path / ".set.unfinished" / "thesis.txt").read_text() == "mine"
