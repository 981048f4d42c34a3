"""`clipx doctor` on several ranks: they are measured, compared, and one that hangs holds up nobody."""

import os
import threading
import time
from pathlib import Path

import pytest
from distributed.ranks import run_ranks
from tiny import CONFIG

from clipx.config.load import load_config
from clipx.doctor import compare, ranks, run_checks, storage
from clipx.doctor.finding import Finding, Verdict
from clipx.doctor.process_groups import ProcessGroups
from clipx.doctor.run_checks import Report


def _check(folder: str, hangs: str = "") -> Report:
    """Short checks; the code of rank 1 differs, and it hangs in the way that `hangs` names."""
    ranks._LARGE["cpu"] = 1 << 16
    ranks._MAX_S = storage._PIECES = storage._MAX_READS = 1
    if hangs:
        run_checks._RANKS_S, run_checks._GATHER_S = (0.5, 8.0) if hangs == "measured" else (3.0, 3.0)
    if os.environ["RANK"] == "1":
        compare._code_digest = lambda: "an old copy"
        if hangs == "early":
            ProcessGroups().join()
            time.sleep(60)
        if hangs == "measured":
            ranks.measure_bandwidth = lambda *_, **__: time.sleep(60)
        if hangs == "late":
            run_checks._merge_ranks = lambda *_: time.sleep(60)
    config = load_config([CONFIG], [f"run_dir={folder}/run", f"data.train=[{folder}/none.tar]"])
    return run_checks.run_checks(config, folder=Path(folder), announce=lambda what: None)


def _check_or_leave(folder: str, hangs: str) -> Report | None:
    """Rank 1 is left where it hangs."""
    if os.environ["RANK"] == "0":
        return _check(folder, hangs)
    threading.Thread(target=_check, args=(folder, hangs), daemon=True).start()
    return None  # the process stays until all have a result


def _lines(report: Report) -> dict[str, Finding]:
    return {finding.name: finding for finding in report.findings}


def test_ranks_are_measured_and_compared(tmp_path: Path) -> None:
    first, second = run_ranks(_check, 2, str(tmp_path))
    assert (first.is_main, second.is_main, first.hung) == (True, False, False)
    assert len(first.hosts) == 2
    assert [finding.verdict for finding in first.findings] == [finding.verdict for finding in second.findings]
    lines = _lines(first)
    assert {"bandwidth", "decoding", "memory", "write run_dir"} <= set(lines)
    assert lines["shared folder"].verdict is Verdict.OK
    assert lines["agreement"].verdict is Verdict.PROBLEM
    assert lines["agreement"].value.startswith("clipx's code: an old copy on rank 1 on ")
    assert "match no tar file" in lines["read train"].value
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("hangs", "line", "value"),
    [
        ("early", "between ranks", "Ranks 1 failed to pass monitoredBarrier"),
        pytest.param("measured", "between ranks", "no answer within", marks=pytest.mark.full),
        pytest.param(
            "late", "findings of all ranks", "Ranks 1 failed to pass monitoredBarrier", marks=pytest.mark.full
        ),
    ],
)
def test_a_rank_that_hangs_holds_up_nobody(tmp_path: Path, hangs: str, line: str, value: str) -> None:
    report, _ = run_ranks(_check_or_leave, 2, str(tmp_path), hangs, timeout_s=60)
    lines = _lines(report)
    assert (lines[line].verdict, value in lines[line].value) == (Verdict.PROBLEM, True)
    assert lines["findings of all ranks"].verdict is Verdict.PROBLEM
    assert report.hung is (hangs == "measured")
    assert "versions" in lines
