import csv
from pathlib import Path

import data_order
import numpy as np
import pytest
from data_order import Lanes, Scale, even_batches, meetings, open_clip_batches, planning, reading, webdataset_stream
from webdataset.filters import _shuffle

SMALL = Scale(shards=40, per_shard=100, global_batch_size=64, world_size=2)


def test_meetings_count_the_other_pairs_of_the_same_shard() -> None:
    assert meetings(np.array([7, 7, 7, 1, 1, 2])) == ((3 * 2 + 2 * 1) / 6, 3)
    assert meetings(np.array([[7, 7, 7], [1, 1, 2]])) == meetings(np.array([7, 7, 7, 1, 1, 2]))


def test_ranks_and_processes_share_all_slots() -> None:
    slots = [SMALL.slots(rank, part, 3) for rank in range(2) for part in range(3)]
    assert [slot for part in slots for slot in part] == list(range(64))
    assert [len(part) for part in slots] == [10, 11, 11, 10, 11, 11]


@pytest.mark.parametrize("start", [0, 60])
def test_each_process_shuffles_as_webdataset_does(monkeypatch: pytest.MonkeyPatch, start: int) -> None:
    monkeypatch.setattr(data_order, "BUFFER", 20)
    monkeypatch.setattr(data_order, "INITIAL", 6)
    incoming_PN = np.arange(start + 300 + 20)[None]  # every sample another number
    monkeypatch.setattr(data_order, "_incoming", lambda *_: incoming_PN)
    draw = np.random.default_rng(SMALL.seed)

    class Draws:
        def randint(self, low: int, high: int) -> int:
            return int(draw.integers(low, high + 1, size=1)[0])

    theirs = list(_shuffle(iter(incoming_PN[0]), bufsize=20, initial=6, rng=Draws()))
    ours_PT = webdataset_stream(SMALL, start=start, length=300, processes=1)
    assert ours_PT[0].tolist() == theirs[start : start + 300]


def test_shards_are_dealt_to_the_processes_in_turn() -> None:
    incoming_PN = data_order._incoming(SMALL, 4, 150, np.random.default_rng(SMALL.seed))
    order = np.random.default_rng(SMALL.seed).permutation(40)
    assert incoming_PN[:, 0].tolist() == order[:4].tolist()
    assert incoming_PN[:, 149].tolist() == order[4:8].tolist()


def test_batches_of_webdataset_take_every_sample_once() -> None:
    stream_PT = np.arange(8 * 12).reshape(8, 12)
    even = list(even_batches(stream_PT, 16))
    assert even[1].tolist() == stream_PT[:, 2:4].tolist()
    assert sorted(np.concatenate(even, axis=None).tolist()) == list(range(96))
    turns = list(open_clip_batches(stream_PT, 8, ranks=2))  # 4 processes in each rank
    assert turns[0].tolist() == [[0, 1, 2, 3], [48, 49, 50, 51]]
    assert turns[1][0].tolist() == [12, 13, 14, 15]
    assert turns[4][0].tolist() == [4, 5, 6, 7]
    assert sorted(np.concatenate(turns, axis=None).tolist()) == list(range(96))


def test_a_window_is_one_request_of_what_is_used() -> None:
    row = reading(SMALL, workers=1, sample_bytes=10_000, lanes=Lanes(8, 16))  # a rank has 4 lanes of 8 slots each
    assert (row["lanes"], row["window"]) == (8, 16)
    assert row["read_over_used"] == pytest.approx((16 * 10_000 - 512) / (16 * 9_488), rel=0.02)
    assert row["requests_per_batch"] == pytest.approx(4 / 2, rel=0.2)  # two batches use a window up; some cross shards
    assert 4 <= row["open_shards"] < 8  # windows in use and the next ones
    assert 1 <= row["held_mb"] / (4 * 16 * 9_488 / 1e6) < 3.2  # a window from two batches before its first use on


def test_processes_that_share_a_lane_read_its_windows_several_times() -> None:
    shared = reading(SMALL, workers=8, sample_bytes=10_000, lanes=Lanes(8, 16))
    assert 1.6 < shared["read_over_used"] <= 2  # two processes on each of the rank's 4 lanes
    apart = reading(SMALL, workers=8, sample_bytes=3_000_000, lanes=Lanes(8, 16))
    assert apart["read_over_used"] == pytest.approx(1, abs=0.01)  # what lies between is too long to read through


def test_planning_reports_this_process() -> None:
    row = planning(SMALL, num_batches=3)
    assert (row["shards"], row["pairs"]) == (40, int(SMALL.counts().sum()))
    assert 0 < row["plan_s"] < row["resume_ms"] * 1000
    assert row["peak_mb"] >= 0


def test_the_script_writes_all_three_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_order, "BUFFER", 40)
    monkeypatch.setattr(data_order, "INITIAL", 20)
    monkeypatch.setattr(data_order, "FEW_SHARDS", (50, 100))
    sizes = ["--shards", "600", "--per-shard", "60", "--ranks", "4", "--workers", "1", "--batch", "512"]
    data_order.main([*sizes, "--more", "512x8", "--out", str(tmp_path)])
    with (tmp_path / "data_order.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["what"] for row in rows] == ["planning"] + ["reading"] * 3 + ["shuffling"] * 12
    shuffled = {(row["shards"], row["method"]): float(row["same_shard_pairs"]) for row in rows[4:]}
    assert shuffled["600", "clipx, 512 lanes x 128 (default)"] < shuffled["600", "webdataset, open_clip"]
    assert shuffled["50", "independent draws"] == pytest.approx(511 / 50, rel=0.1)
    assert ("600", "clipx, 512 lanes x 8") in shuffled
