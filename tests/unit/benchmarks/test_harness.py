import argparse
import csv
from pathlib import Path

import pytest
import torch
from harness import (
    CIRCUMSTANCES,
    Timing,
    alternate,
    batches,
    device_argument,
    peak_memory,
    prepare,
    print_results,
    print_table,
    ratio,
    speed_rows,
    write_rows,
)

CPU = torch.device("cpu")
MB = 1024 * 1024


def test_every_repetition_runs_all_contenders_and_begins_with_another() -> None:
    calls: list[str] = []
    contenders = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    timings = alternate(contenders, repetitions=3, warmup=1, device=CPU)
    assert ["".join(calls[i : i + 3]) for i in range(0, 12, 3)] == ["cab", "abc", "bca", "cab"]
    assert [timing.count for timing in timings.values()] == [3, 3, 3]
    assert all(0 < timing.p20 <= timing.p50 <= timing.p80 for timing in timings.values())


def test_percentiles_are_those_of_the_samples() -> None:
    timing = Timing.of([5.0, 1.0, 3.0, 2.0, 4.0, 6.0])
    assert (timing.p20, timing.p50, timing.p80, timing.count) == (2.0, 3.5, 5.0, 6)


def test_ratio_is_taken_repetition_by_repetition() -> None:
    # whatever slowed the second repetition of both does not show
    assert ratio(Timing.of([2.0, 20.0, 2.0]), Timing.of([1.0, 10.0, 1.0])) == Timing.of([2.0, 2.0, 2.0])


def test_speeds_are_those_of_the_first_beside_each_other() -> None:
    times = {"clipx": Timing.of([1.0, 2.0]), "one": Timing.of([2.0, 6.0]), "other": Timing.of([0.5, 1.0])}
    one, other = speed_rows(times, 30)
    assert (one["ours"], one["peer"], one["count"], one["repetitions"]) == ("clipx", "one", 30, 2)
    assert (one["ours_per_s"], one["peer_per_s"], one["ratio_p50"]) == (20.0, 7.5, 2.5)
    assert (other["peer_per_s"], other["ratio_p50"]) == (40.0, 0.5)


def test_batches_are_consecutive_and_the_last_is_what_is_left() -> None:
    assert list(batches([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]


def test_peak_memory_counts_what_lives_at_the_same_time_above_the_start() -> None:
    before = torch.zeros(MB)

    def one_after_the_other() -> None:
        for _ in range(3):
            torch.zeros(MB).add_(before)

    assert peak_memory(one_after_the_other, CPU) == 4 * MB
    assert peak_memory(lambda: [torch.zeros(MB) for _ in range(3)], CPU) == 12 * MB


def test_peak_memory_counts_gradients_and_temporaries_of_the_backward_pass() -> None:
    weight = torch.zeros(MB, requires_grad=True)

    def train() -> None:
        (weight * weight).sum().backward()

    # w·w goes as soon as it is summed; then w·g twice, of which the sum takes the place of one
    assert peak_memory(train, CPU) == pytest.approx(2 * 4 * MB, abs=100)
    assert weight.grad is not None


def test_rows_carry_their_circumstances_and_new_columns_join_old_ones(tmp_path: Path) -> None:
    write_rows("topic", [{"a": 1, "b": 0.123456789}], tmp_path)
    write_rows("topic", [{"a": 2, "b": 3.0}], tmp_path)
    path = write_rows("topic", [{"a": 4, "c": "x, y"}], tmp_path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["a"], row["b"], row["c"]) for row in rows] == [
        ("1", "0.123457", ""),
        ("2", "3", ""),
        ("4", "", "x, y"),
    ]
    assert all(row[name] for row in rows for name in CIRCUMSTANCES if name not in ("commit", "cuda"))
    assert f"{torch.get_num_threads()} of " in rows[0]["hardware"]
    assert [file.name for file in tmp_path.iterdir()] == ["topic.csv"]


def test_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"name": "ours", "ms": 1.23456}, {"name": "x"}], ["name", "ms"])
    assert capsys.readouterr().out == "name     ms\n----  -----\nours  1.235\n   x       \n"


def test_results_are_those_since_a_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows("topic", [{"pairs": 17}], tmp_path)
    print_results(tmp_path, since="2000-01-01")
    assert "17" in capsys.readouterr().out
    print_results(tmp_path, since="9999")
    assert capsys.readouterr().out == ""


def test_cuda_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parser = argparse.ArgumentParser()
    device_argument(parser)
    with pytest.raises(SystemExit, match="--device cuda: torch finds no CUDA device here; use --device cpu"):
        prepare(parser.parse_args(["--device", "cuda"]))
