"""Classes of pictures are the same for every number of ranks, which share the work."""

from pathlib import Path

import pytest
import torch.distributed as dist
from distributed.ranks import run_ranks
from tiny_clip import encoded, picture, tiny_pretrained

from clipx.data.inputs import open_inputs
from clipx.errors import InputError
from clipx.use.classify import ClassifyOptions, classify_inputs

NAMES = [f"thing {i}" for i in range(7)]


def found_and_share(addresses):
    """On one rank: each picture with its classes, what is left out, and how many inputs this rank read."""
    pretrained = tiny_pretrained()
    group = dist.group.WORLD if dist.is_initialized() else None
    totals = [0]
    found = classify_inputs(
        pretrained,
        open_inputs(addresses),
        pretrained.class_embeddings(NAMES),
        ClassifyOptions(batch_size=2, top=3),
        group=group,
        on_progress=lambda done, total: totals.append(total),
    )
    return list(found), found.left_out, totals[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(9):
        (folder / f"{i}.png").write_bytes(b"" if i == 4 else encoded(picture(i)))
    return folder


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_rank_has_what_one_process_finds(folder: Path, world_size: int) -> None:
    found, left_out, total = found_and_share([str(folder)])
    assert (len(found), [row.row for row in left_out], total) == (8, [4], 9)
    ranks = run_ranks(found_and_share, world_size, [str(folder)])
    assert [rank[:2] for rank in ranks] == [(found, left_out)] * world_size
    assert sum(rank[2] for rank in ranks) == 9
    assert all(0 < rank[2] < 9 for rank in ranks)


def test_a_rank_may_have_nothing_to_do(folder: Path) -> None:
    address = str(folder / "3.png")
    ranks = run_ranks(found_and_share, 2, [address])
    assert [rank[:2] for rank in ranks] == [found_and_share([address])[:2]] * 2
    with pytest.raises(InputError, match="give a picture"):
        run_ranks(found_and_share, 2, [str(folder / "4.png")])
