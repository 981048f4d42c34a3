"""Checks that raise or hang become lines; the report as a table, as plain lines and as JSON."""

import io
import json
import threading
import time

import pytest
from rich.console import Console

from clipx.doctor import report
from clipx.doctor.finding import (
    Finding,
    Measurement,
    Verdict,
    num_bytes,
    ok,
    problem,
    rounded,
    speed,
    warning,
    worst,
)
from clipx.doctor.process_groups import ProcessGroups
from clipx.doctor.report import as_json, print_report
from clipx.doctor.run_checks import Check, Runner, _join
from clipx.doctor.timeouts import HungError, Worker
from clipx.errors import InputError

OK, WARNING, PROBLEM = Verdict
FINDINGS = [
    Finding("versions", "Python 3.11", OK, area="software"),
    Finding("memory", "1 GiB [free]", WARNING, "buy some", Measurement(1.0), area="machine"),
]


def _run(check, *, area: str = "machine") -> tuple[Finding, Runner]:
    runner = Runner(lambda what: None)
    [finding] = runner.run(Check(area, "thing", check, timeout_s=0.2))
    return finding, runner


def _raise(error: Exception):
    def check() -> Finding:
        raise error

    return check


@pytest.mark.parametrize(
    ("error", "area", "verdict", "message"),
    [
        (ValueError("odd\nvalue"), "machine", WARNING, "could not be checked: ValueError: odd value"),
        (InputError("x=1: no"), "storage", PROBLEM, "x=1: no"),
        (PermissionError(13, "Permission denied"), "storage", PROBLEM, "Permission denied"),
        (OSError("odd"), "storage", PROBLEM, "odd"),
        (RuntimeError("Connection closed by peer"), "ranks", PROBLEM, "RuntimeError: Connection closed by peer"),
    ],
)
def test_a_check_that_raises_is_a_line(error: Exception, area: str, verdict: Verdict, message: str) -> None:
    finding, runner = _run(_raise(error), area=area)
    assert (finding.name, finding.area, finding.verdict) == ("thing", area, verdict)
    assert message in finding.value
    assert finding.hint
    assert not runner.hung


def test_a_check_that_hangs_is_a_line_and_the_next_one_runs() -> None:
    release = threading.Event()
    finding, runner = _run(lambda: release.wait(60))
    assert (finding.verdict, finding.value) == (PROBLEM, "no answer within 0.2 s")
    assert runner.hung
    assert runner.run(Check("machine", "next", lambda: ok("next", "1")))[0].value == "1"
    release.set()


def test_findings_get_their_area() -> None:
    runner = Runner(lambda what: None)
    found = runner.run(Check("data", "two", lambda: [ok("a", "1"), ok("b", "2")]))
    assert [(finding.name, finding.area) for finding in found] == [("a", "data"), ("b", "data")]


def test_a_worker_keeps_its_thread_and_is_done_once_it_hangs() -> None:
    worker, release = Worker(), threading.Event()
    assert worker.call(threading.get_ident, 5) == worker.call(threading.get_ident, 5) != threading.get_ident()
    with pytest.raises(KeyError):
        worker.call(lambda: {}["x"], 5)
    began = time.monotonic()
    with pytest.raises(HungError, match=r"no answer within 0\.1 s"):
        worker.call(lambda: release.wait(60), 0.1)
    with pytest.raises(HungError, match="earlier check"):
        worker.call(lambda: 1, 60)
    assert time.monotonic() - began < 30
    release.set()


def test_plain_lines_when_piped() -> None:
    file = io.StringIO()
    print_report(FINDINGS, file, seconds=2.4)
    assert file.getvalue().splitlines() == [
        "ok       software    versions: Python 3.11",
        "warning  machine     memory: 1 GiB [free] -> buy some",
        "1 warning, 1 ok; 2 s",
    ]


def test_a_table_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(report, "Console", lambda **options: Console(force_terminal=True, width=60, **options))
    print_report([*FINDINGS, *FINDINGS], file, seconds=1)
    text = file.getvalue()
    assert "\x1b[33mbuy some\x1b[0m" in text
    assert "1 GiB [free]" in text  # no markup
    assert "2 warnings, 2 ok" in text


def test_json_holds_all() -> None:
    content = json.loads(json.dumps(as_json(FINDINGS, hosts=["a", "b"])))
    assert (content["verdict"], content["hosts"]) == ("warning", ["a", "b"])
    assert content["findings"][1] == {
        "name": "memory",
        "found": "1 GiB [free]",
        "verdict": "warning",
        "advice": "buy some",
        "figure": 1.0,
        "area": "machine",
    }


def test_the_worst_counts() -> None:
    assert worst([]) is OK
    assert worst(FINDINGS) is WARNING
    assert worst([*FINDINGS, problem("x", "y", "z"), warning("x", "y", "z")]) is PROBLEM


def test_units() -> None:
    assert [num_bytes(1536 << 20), num_bytes(64 << 20)] == ["1.5 GiB", "64 MiB"]
    assert [speed(9.54e9), speed(120e6)] == ["9.54 GB/s", "120 MB/s"]
    assert [rounded(1234.5), rounded(0.01234), rounded(10, 2), rounded(98_765)] == ["1,230", "0.0123", "10", "98,800"]


def test_half_a_launcher_is_named_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    lost = _join(ProcessGroups(), {})
    assert lost is not None
    assert (lost.area, lost.verdict) == ("ranks", Verdict.PROBLEM)
    assert lost.value.startswith("WORLD_SIZE=2 without RANK and LOCAL_RANK")
    assert "firewall" not in lost.hint
