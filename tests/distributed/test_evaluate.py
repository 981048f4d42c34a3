"""Evaluations are the same for every number of ranks, and every rank makes the same number of forward passes."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed.ranks import run_ranks
from shard_files import write_tar
from tiny_clip import encoded, picture, tiny_pretrained, write_classification_set, write_retrieval_set

from clipx.errors import InputError
from clipx.evaluate import evaluate_folder
from clipx.evaluate.sharing import share

NAMES = ["thing 0", "thing 1", "thing 2", "thing 3", "Thing 1"]  # the last and the second have equal prompts
TEMPLATES = ["a photo of a {c}.", "{c}"]


def figures_and_calls(folders, batch_size):
    """On one rank: the figures of each folder, and how often each tower ran."""
    pretrained = tiny_pretrained()
    calls = {"encode_image": 0, "encode_text": 0}

    def counted(name):
        method = getattr(pretrained, name)

        def call(inputs):
            calls[name] += 1
            return method(inputs)

        setattr(pretrained, name, call)

    counted("encode_image")
    counted("encode_text")
    group = dist.group.WORLD if dist.is_initialized() else None
    figures = [evaluate_folder(pretrained, Path(folder), batch_size=batch_size, group=group) for folder in folders]
    return figures, calls


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    labels = [i * i % 5 for i in range(17)]
    classification = write_classification_set(root / "c", labels, class_names=NAMES, templates=TEMPLATES)
    captions = [[f"picture {i}"] + (["twice", f"more {i}"] if i % 4 == 0 else []) for i in range(17)]
    return [str(classification), str(write_retrieval_set(root / "r", captions))]


@pytest.mark.parametrize("world_size", [2, 3])
def test_figures_and_forward_passes_are_equal_on_all_ranks(folders, world_size):
    alone, _ = figures_and_calls(folders, 4)
    results = run_ranks(figures_and_calls, world_size, folders, 4)
    for figures, calls in results:
        assert figures == alone
        assert calls == results[0][1]


def test_more_ranks_than_pictures(folders, tmp_path):
    folder = write_classification_set(tmp_path, [0, 1, 1], class_names=NAMES, templates=TEMPLATES)
    alone, _ = figures_and_calls([str(folder)], 4)
    results = run_ranks(figures_and_calls, 4, [str(folder)], 4)
    assert [figures for figures, _ in results] == [alone] * 4


def test_a_bad_picture_on_one_rank_ends_all_of_them(tmp_path):
    folder = write_classification_set(tmp_path, [0, 1], class_names=NAMES)
    members = [("x.png", encoded(picture(0))), ("x.cls", b"0"), ("y.png", b"none"), ("y.cls", b"0")]
    write_tar(folder / "test" / "1.tar", members)
    messages = run_ranks(_message, 2, str(folder))
    assert messages[0] == messages[1]
    assert "sample y of" in messages[0]


def _message(folder):
    try:
        evaluate_folder(tiny_pretrained(), Path(folder), batch_size=1, group=dist.group.WORLD)
    except InputError as error:
        return str(error)
    return "no error"


def _message_of_own_folder(folders):
    message = _message(folders[dist.get_rank()])
    in_step = torch.ones(1)  # ranks that had parted would not meet here
    dist.all_reduce(in_step)
    return message, in_step.item()


@pytest.mark.parametrize("damage", ["no folder", "half a shard"])
def test_what_one_rank_cannot_read_ends_all_of_them(tmp_path, damage):
    folders = [tmp_path / "seen by rank 0", tmp_path / "seen by rank 1"]
    write_retrieval_set(folders[0], [["a"], ["b"], ["c"]])
    if damage == "half a shard":
        write_retrieval_set(folders[1], [["a"], ["b"], ["c"]])
        shard = sorted((folders[1] / "test").glob("*.tar"))[-1]
        shard.write_bytes(shard.read_bytes()[:700])
    (one, _), (other, _) = found = run_ranks(_message_of_own_folder, 2, list(map(str, folders)), timeout_s=30)
    assert one == other != "no error"
    assert str(folders[1]) in one
    assert [in_step for _, in_step in found] == [2.0, 2.0]


def _shares(num_items, batch_size):
    return list(share(range(num_items), batch_size=batch_size, group=dist.group.WORLD))


def test_every_block_of_items_goes_to_one_rank():
    for num_items in (0, 1, 5, 6, 7, 13):
        shares = run_ranks(_shares, 2, num_items, 3) if num_items in (7, 13) else [list(_alone(num_items))]
        blocks = {}
        for rounds in shares:
            assert [block.count for block in rounds] == [block.count for block in shares[0]]
            blocks |= {block.start: block.local for block in rounds if block.local}
        assert blocks == {start: list(range(start, min(start + 3, num_items))) for start in range(0, num_items, 3)}
        assert sum(block.count for block in shares[0]) == num_items


def _alone(num_items):
    return share(range(num_items), batch_size=3, group=None)
