"""Means equal a textbook in float64; the two ends are the tensors themselves."""

import pytest
import torch

from clipx.average.mean import RunningMean, between
from clipx.pretrained.fingerprint import checksum


def state(seed: int, *, steps: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(64, 33, generator=generator),
        "log_logit_scale": torch.randn(1, generator=generator),
        "num_batches_tracked": torch.tensor(steps),
        "mask": torch.tensor([True, steps > 0]),
    }


def test_a_running_mean_is_the_textbooks_to_1e_12() -> None:
    weights = [0.3, 2.0, 0.0, 0.25, 7.0]
    states = [state(seed) for seed in range(5)]
    mean = RunningMean()
    for tensors, weight in zip(states, weights, strict=True):
        mean.add(tensors, weight)
    found = dict(mean.mean())
    for name in ("weight", "log_logit_scale"):
        stacked = torch.stack([tensors[name].double() for tensors in states])
        shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        expected = torch.tensordot(shares, stacked, dims=1)
        assert found[name].dtype == torch.float64
        assert (found[name] - expected).abs().max() < 1e-12


def test_a_trial_changes_nothing() -> None:
    mean = RunningMean()
    mean.add(state(0), 1.0)
    for seed in (1, 2):
        before = checksum(dict(mean.mean()))
        trial = dict(mean.mean_with(state(seed), 1.0))
        assert checksum(dict(mean.mean())) == before
        mean.add(state(seed), 1.0)
        assert checksum(dict(mean.mean())) == checksum(trial) != before


def test_counters_are_those_of_the_first_or_of_one_that_outweighs_all_before_it() -> None:
    mean = RunningMean()
    found = []
    for seed, weight in enumerate((1.0, 1.0, 3.0, 4.0)):
        mean.add(state(seed, steps=seed), weight)
        found.append(dict(mean.mean())["num_batches_tracked"].item())
    assert found == [0, 0, 2, 2]


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 3.0)])
def test_a_weight_of_0_leaves_the_other_as_it_is(weights: tuple[float, float]) -> None:
    mean = RunningMean()
    for seed, weight in enumerate(weights):
        mean.add(state(seed), weight)
    assert checksum(dict(mean.mean())) == checksum(state(weights.index(max(weights))))


def odd(sign: float, count: int) -> dict[str, torch.Tensor]:
    """What rounding or 0 times something would change."""
    return {
        "zeros": torch.tensor([0.0, -0.0]) * sign,
        "tiny": torch.full((2,), 1e-45) * sign,
        "infinite": torch.full((1,), torch.inf) * sign,
        "half": torch.tensor([1.0, 3.0], dtype=torch.bfloat16) * sign,
        "count": torch.tensor(2**60 + count),
        "on": torch.tensor([count > 0]),
    }


def test_the_ends_are_bit_for_bit() -> None:
    start, end = odd(1.0, 0), odd(-1.0, 1)
    assert checksum(start) != checksum(end)
    assert checksum(dict(between(start, end, alpha=0.0))) == checksum(start)
    assert checksum(dict(between(start, end, alpha=1.0))) == checksum(end)
    assert checksum(dict(between(start, end, alpha=0))) == checksum(start)


def test_between_is_in_float64_and_goes_beyond() -> None:
    start, end = state(0, steps=4), state(1, steps=9)
    for alpha in (0.1, 0.5, 1.5, -0.5):
        mixed = dict(between(start, end, alpha=alpha))
        expected = (1 - alpha) * start["weight"].double() + alpha * end["weight"].double()
        assert (mixed["weight"] - expected).abs().max() < 1e-12
        assert mixed["num_batches_tracked"].item() == (9 if alpha > 0.5 else 4)
        assert mixed["mask"].dtype == torch.bool


def test_a_checksum_knows_name_dtype_shape_and_bytes_but_no_layout() -> None:
    tensor = torch.arange(6.0).view(2, 3)
    assert checksum({"a": tensor}) == checksum({"a": tensor.t().contiguous().t()})
    others = [{"b": tensor}, {"a": tensor.view(3, 2)}, {"a": tensor + 1}, {"a": tensor.view(torch.int32)}]
    assert len({checksum(other) for other in [{"a": tensor}, *others]}) == 5
