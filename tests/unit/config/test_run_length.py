"""Steps and pairs of a run whose global batch may have changed its size."""

from clipx.config.run_length import RunLength

PLAIN = RunLength(global_batch_size=24, steps=None, samples=500)
SIZES = [8] * 5 + [24] * 3 + [16] * 12
CHANGED = RunLength(global_batch_size=16, steps=None, samples=200, changes=((5, 40), (8, 112)))


def test_one_size() -> None:
    assert PLAIN.num_steps == 21  # 504 pairs
    assert [PLAIN.samples_seen(step) for step in (0, 1, 21)] == [0, 24, 504]
    assert [PLAIN.in_steps(samples) for samples in (0, 1, 24, 25)] == [0, 1, 1, 2]
    assert all(PLAIN.in_batches(step) == step for step in range(100))
    assert RunLength(global_batch_size=24, steps=7, samples=None).num_steps == 7


def test_every_step_counts_with_the_size_that_it_had() -> None:
    assert [CHANGED.samples_seen(step) for step in range(21)] == [sum(SIZES[:step]) for step in range(21)]
    assert CHANGED.num_steps == 14  # 5 x 8, 3 x 24 and 6 x 16 make 208
    assert CHANGED.in_batches(8) == 7.0


def test_pairs_in_steps_are_the_first_step_that_has_seen_them() -> None:
    seen = [CHANGED.samples_seen(step) for step in range(30)]
    for samples in range(260):
        assert CHANGED.in_steps(samples) == next(step for step in range(30) if seen[step] >= samples)
