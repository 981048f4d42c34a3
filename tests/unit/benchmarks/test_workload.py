from pathlib import Path

import pytest
import torch
from workload import MODELS, benchmark_config, captions, make_batch

from clipx.config.load import load_config
from clipx.data.tokenizer import ClipTokenizer


def test_captions_have_sixteen_tokens_in_the_mean() -> None:
    _, lengths_B = ClipTokenizer(77).encode(captions(4000, seed=0))
    assert lengths_B.float().mean().item() == pytest.approx(16, abs=0.7)
    assert lengths_B.min() >= 4
    assert lengths_B.max() == 77
    assert (lengths_B == 77).float().mean() < 0.002  # next to none is cut


def test_batches_are_whole_and_their_own(tmp_path: Path) -> None:
    config = benchmark_config("demo", 6, precision="fp32", folder=tmp_path)
    one, again, other, neighbour = (
        make_batch(config, 6, index=index, rank=rank) for index, rank in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert one.images_IHWC.shape == (6, 48, 48, 3)
    assert one.tokens_T.shape[0] == one.lengths_B.sum()
    assert one.max_length == one.lengths_B.max() <= config.model.text.context_length
    assert one.images_IHWC.equal(again.images_IHWC)
    assert one.tokens_T.equal(again.tokens_T)
    assert not one.images_IHWC.equal(other.images_IHWC)
    assert not one.images_IHWC.equal(neighbour.images_IHWC)
    assert set(one.slot_I.tolist()).isdisjoint(neighbour.slot_I.tolist())
    assert len(torch.cat([one.sample_id_I, neighbour.sample_id_I]).unique()) == 12  # all are each other's negatives


@pytest.mark.parametrize("model", MODELS)
def test_model_and_optimizer_are_those_of_the_shipped_config(model: str, tmp_path: Path) -> None:
    shipped = load_config([MODELS[model]])
    config = benchmark_config(model, 4, precision="fp32", folder=tmp_path)
    assert (config.model, config.loss, config.optim) == (shipped.model, shipped.loss, shipped.optim)
    assert config.micro_batch_size == config.global_batch_size == 4
