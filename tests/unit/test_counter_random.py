import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipx.counter_random import Stream, fold, key, permutation, start, uniform

INT64 = st.integers(min_value=-(2**63), max_value=2**63 - 1)


@given(st.lists(INT64, min_size=1, max_size=5), INT64, INT64)
def test_numpy_and_torch_draw_the_same(bits: list[int], first: int, second: int) -> None:
    host = fold(np.array(bits, dtype=np.int64), first, second)
    device = fold(torch.tensor(bits, dtype=torch.int64), first, second)
    assert host.tolist() == device.tolist()


def test_values_are_fixed_for_ever() -> None:
    # a changed value silently changes the data order of every run that resumes
    assert fold(np.arange(3), 7, 8).tolist() == [4226922219821352084, 1868581197662327859, 8701940948463266882]
    assert key(0, Stream.AUGMENT, 1, 2) == key(0, Stream.AUGMENT, 1, 2)


@given(INT64, st.sampled_from(Stream), st.lists(INT64, max_size=3))
def test_a_key_is_the_hash_of_arrays_without_its_lowest_bit(seed: int, stream: Stream, keys: list[int]) -> None:
    whole = int(fold(start(seed, stream), *keys)[0]) % 2**64
    assert key(seed, stream, *keys) == whole >> 1


def test_every_key_matters() -> None:
    draws = {
        key(seed, stream, epoch, sample)
        for seed in (0, 1, -1, 2**63)
        for stream in (Stream.AUGMENT, Stream.CAPTION)
        for epoch in range(4)
        for sample in range(50)
    }
    assert len(draws) == 4 * 2 * 4 * 50


def test_uniform_fills_the_unit_interval_evenly() -> None:
    draws = uniform(fold(start(3, Stream.WINDOW), np.arange(200_000)))
    assert draws.min() >= 0
    assert draws.max() < 1
    counts, _ = np.histogram(draws, bins=50, range=(0, 1))
    expected = 200_000 / 50
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 100  # 49 degrees of freedom: above 100 with probability 2e-5


def test_permutations_are_permutations_and_all_orders_occur() -> None:
    rows = permutation(fold(start(0, Stream.WINDOW), np.arange(6_000)), 3)
    assert (np.sort(rows, axis=1) == np.arange(3)).all()
    _, counts = np.unique(rows, axis=0, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 850  # of 1,000 expected, standard deviation 29
