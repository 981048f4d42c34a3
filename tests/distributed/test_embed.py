"""A folder of embeddings has the same bytes however many processes made it, and however often they were killed."""

import os
import signal

import pytest
import torch.distributed as dist
from distributed.ranks import run_ranks
from embedding_folders import contents, write_pairs
from tiny_clip import tiny_pretrained

from clipx.errors import InputError
from clipx.use.embed import EmbedOptions, embed
from clipx.use.embeddings import open_embeddings


def embed_share(shards, out, *, components=None, killed_at=None, delete=None, seed=0):
    """On one rank: embeds, or dies on the way; returns the rows that all ranks embedded."""

    def on_progress(done, total):
        if done >= killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    if delete is not None and dist.get_rank() == 1:
        shards = [shard for shard in shards if shard != delete]
    options = EmbedOptions(batch_size=4, rows_per_shard=4, components=components)
    group = dist.group.WORLD if dist.is_initialized() else None
    show = on_progress if killed_at is not None else None
    pretrained = tiny_pretrained(seed=seed * dist.get_rank() if seed else 0)
    return embed(pretrained, shards, out, options=options, model="tiny", group=group, on_progress=show).num_new


def embed_by(options, shards, out):
    return embed_share(shards, out, **options)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize("components", [None, 5])
def test_two_ranks_make_what_one_makes(shards, tmp_path, components):
    alone = embed_share(shards, tmp_path / "one", components=components)
    assert (
        run_ranks(embed_by, 2, {"components": components}, shards, str(tmp_path / "two")) == [alone, alone] == [30, 30]
    )
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_killed_twice_it_goes_on(shards, tmp_path):
    embed_share(shards, tmp_path / "whole")
    out = tmp_path / "out"
    for rows in (9, 16):  # in the third shard; and in the fourth, whose four rows it had not written
        with pytest.raises(RuntimeError, match="died without a word"):
            run_ranks(embed_by, 1, {"killed_at": rows}, shards, str(out))
        with pytest.raises(InputError, match="is half-written"):
            open_embeddings(out)
    assert run_ranks(embed_by, 2, {}, shards, str(out)) == [19, 19]  # 12 rows were done, one of them broken
    assert contents(out) == contents(tmp_path / "whole")


def test_an_error_of_one_rank_ends_all(shards, tmp_path):
    with pytest.raises(InputError, match="ranks see other inputs"):
        run_ranks(embed_by, 2, {"delete": shards[-1]}, shards, str(tmp_path / "out"))
    with pytest.raises(InputError, match="ranks loaded other weights"):
        run_ranks(embed_by, 2, {"seed": 1}, shards, str(tmp_path / "out"))
