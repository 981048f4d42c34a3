import json
from pathlib import Path

import pytest

from clipx.errors import RunError
from clipx.train.metrics.quarantine import Quarantine
from clipx.types import BadSample


def bad(number: int, shard: str = "a.tar") -> BadSample:
    return BadSample("train", shard, f"key{number}", "broken", number)


def test_each_bad_sample_is_listed_and_counted_once(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.jsonl", resumed_step=0)
    quarantine.add([bad(1), bad(2), bad(1)], step=3, write=True)
    quarantine.add([bad(2), bad(1, "b.tar")], step=4, write=True)
    rows = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert [(row["step"], row["shard"], row["key"]) for row in rows] == [
        (3, "a.tar", "key1"),
        (3, "a.tar", "key2"),
        (4, "b.tar", "key1"),
    ]
    assert len(quarantine) == 3


def test_other_ranks_count_and_do_not_write(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.jsonl", resumed_step=0)
    quarantine.add([bad(1)], step=3, write=False)
    assert len(quarantine) == 1
    assert not (tmp_path / "q.jsonl").exists()


def test_a_resumed_run_counts_what_it_meets_again_without_listing_it_twice(tmp_path: Path) -> None:
    first = Quarantine(tmp_path / "q.jsonl", resumed_step=0)
    first.add([bad(1)], step=3, write=True)
    first.add([bad(2)], step=8, write=True)
    resumed = Quarantine(tmp_path / "q.jsonl", resumed_step=5)
    assert len(resumed) == 1
    resumed.add([bad(2)], step=8, write=True)
    assert len(resumed) == 2
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("number", "samples_seen", "num_samples", "stops"),
    [
        (1, 99, 1000, False),
        (2, 100, 1000, True),
        (1, 100, 1000, False),
        (3, 10_000, 200, True),
        (2, 10_000, 200, False),
    ],
)
def test_too_many_of_the_distinct_samples(
    tmp_path: Path, number: int, samples_seen: int, num_samples: int, stops: bool
) -> None:
    quarantine = Quarantine(tmp_path / "q.jsonl", resumed_step=0)
    quarantine.add([bad(i) for i in range(number)], step=1, write=True)

    def check() -> None:
        quarantine.check(samples_seen=samples_seen, num_samples=num_samples, max_bad_fraction=0.01)

    if stops:
        with pytest.raises(RunError, match=rf"^{number} of {min(samples_seen, num_samples)} distinct samples are bad"):
            check()
    else:
        check()


def test_rows_of_runs_that_knew_no_sources_count_as_their_one_source(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"step": 1, "shard": "a.tar", "key": "key1", "reason": "r", "sample_id": 1}\n')
    quarantine = Quarantine(tmp_path / "q.jsonl", resumed_step=5)
    assert (len(quarantine), quarantine.count("train")) == (1, 1)
    quarantine.add([bad(1)], step=6, write=True)
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 1
