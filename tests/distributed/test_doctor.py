"""`clipx doctor` on several ranks: they are measured, compared, and one that hangs holds up nobody."""

import os
import threading
import time
from pathlib import Path

import pytest
from distributed.ranks import run_ranks
from tiny import CONFIG

from clipx.config.load import load_config
from clipx.doctor import data, examine, ranks, run_folder
from clipx.doctor.examine import Report
from clipx.doctor.findings import Finding, Verdict
from clipx.doctor.meeting import Meeting


def _look(folder: str, hangs: str = "") -> Report:
    """A short examination; rank 1 sets a variable of its own, and `hangs` as it is told."""
    ranks._LARGE["cpu"] = ranks._BLOCK["cpu"] = 1 << 16
    ranks._MOST_S = run_folder._PIECES = data._MOST_READS = 1
    if hangs:
        examine._RANKS_S, examine._GATHER_S = (0.5, 8.0) if hangs == "measured" else (3.0, 3.0)
    if os.environ["RANK"] == "1":
        os.environ["NCCL_TEST"] = "1"
        if hangs == "early":
            Meeting().join()
            time.sleep(60)
        if hangs == "measured":
            ranks.measure_ranks = lambda *_, **__: time.sleep(60)
        if hangs == "late":
            examine._of_all = lambda *_: time.sleep(60)
    config = load_config([CONFIG], [f"run_dir={folder}/run", f"data.train=[{folder}/none.tar]", "global_batch_size=25"])
    return examine.examine(config, folder=Path(folder), announce=lambda what: None)


def _look_or_leave(folder: str, hangs: str) -> Report | None:
    """Rank 1 is left where it hangs."""
    if os.environ["RANK"] == "0":
        return _look(folder, hangs)
    threading.Thread(target=_look, args=(folder, hangs), daemon=True).start()
    return None  # the process stays until all have a result


def _lines(report: Report) -> dict[str, Finding]:
    return {finding.name: finding for finding in report.findings}


def test_ranks_are_measured_and_compared(tmp_path: Path) -> None:
    first, second = run_ranks(_look, 2, str(tmp_path))
    assert (first.is_main, second.is_main, first.hung) == (True, False, False)
    assert len(first.hosts) == 2
    assert [finding.verdict for finding in first.findings] == [finding.verdict for finding in second.findings]
    lines = _lines(first)
    assert {"latency", "bandwidth", "links", "clocks", "shared folder", "decoding"} <= set(lines)
    assert lines["shared folder"].verdict is Verdict.OK
    assert lines["clocks"].verdict is Verdict.OK
    assert "the gradient takes" in lines["bandwidth"].found
    assert lines["NCCL_TEST differs"].found.startswith("not set on rank 0")
    assert "match no tar file" in lines["read train"].found
    assert "global_batch_size=25 is not divisible by the 2 processes" in lines["global batch"].found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("hangs", "line", "found"),
    [
        ("early", "between ranks", "Ranks 1 failed to pass monitoredBarrier"),
        ("measured", "between ranks", "no answer within"),
        pytest.param(
            "late", "findings of all ranks", "Ranks 1 failed to pass monitoredBarrier", marks=pytest.mark.full
        ),
    ],
)
def test_a_rank_that_hangs_holds_up_nobody(tmp_path: Path, hangs: str, line: str, found: str) -> None:
    report, _ = run_ranks(_look_or_leave, 2, str(tmp_path), hangs, timeout_s=60)
    lines = _lines(report)
    assert (lines[line].verdict, found in lines[line].found) == (Verdict.PROBLEM, True)
    assert lines["findings of all ranks"].verdict is Verdict.PROBLEM
    assert report.hung is (hangs == "measured")
    assert "versions" in lines
