import importlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu_plan
import pytest
from gpu_plan import STEPS, WHOLE_S, Step, run_plan
from gpu_report import Report, closing_table, read_rows
from gpu_worker import Said

TOYS = """
import os, subprocess, sys, time
def good(report): report.say(what="good", pid=os.getpid())
def bad(report): report.say(what="bad", pid=os.getpid()); raise ValueError("bad\\nluck")
def wrong(report): report.check(False, "two is not three")
def dead(report): os._exit(3)
def slow(report):
    report.say(what="slow", child=subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid)
    time.sleep(60)
"""


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    (tmp_path / "toys.py").write_text(TOYS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folder = tmp_path / "out"
    folder.mkdir()
    return Report(folder, rehearse=False)


def steps(*names: str) -> list[Step]:
    return [Step(name, f"toys:{name.split()[0]}", limit_s=1.5 if name == "slow" else 20) for name in names]


def test_a_step_that_fails_dies_or_hangs_costs_itself_alone(report: Report) -> None:
    outcomes = dict(run_plan(steps("slow", "good", "bad", "good again", "dead", "wrong", "good at last"), report))
    assert list(outcomes.values()) == [
        "stopped after 2 s",
        "ok",
        "failed: ValueError: bad luck",
        "ok",
        "died with 3",
        "wrong: two is not three",
        "ok",
    ]
    rows = read_rows(report.folder)
    pids = [row["pid"] for row in rows if "pid" in row]
    assert pids[0] == pids[1]  # one process as long as all is well
    assert len(set(pids)) == 3
    assert [row["step"] for row in rows if "outcome" in row] == list(outcomes)
    assert "ValueError: bad" in (report.folder / "gpu_plan.log").read_text()  # with its traceback
    assert not is_running(next(row["child"] for row in rows if "child" in row))


def is_running(pid: object) -> bool:
    """Whether the process is there and no zombie."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_plan_that_is_ended_from_outside_leaves_its_table_and_no_process(tmp_path: Path) -> None:
    """The step waits in a worker when SIGTERM comes; what was found before it stands in the table."""
    (tmp_path / "toys.py").write_text(TOYS)
    steps_ = 'gpu_plan.STEPS = (gpu_plan.Step("good", "toys:good", 20), gpu_plan.Step("slow", "toys:slow", 60))'
    program = f"import sys, gpu_plan; {steps_}; sys.exit(gpu_plan.main(['--out', '{tmp_path}']))"
    folders = os.pathsep.join([str(Path(gpu_plan.__file__).parent), str(tmp_path)])
    with subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": folders}) as plan:
        while not any(row.get("what") == "slow" for row in read_rows(tmp_path)):
            time.sleep(0.05)
        plan.terminate()
    assert plan.returncode == 128 + signal.SIGTERM
    assert (tmp_path / "gpu_table.txt").read_text().startswith("good: ok\n\n")
    children = {row["child"] for row in read_rows(tmp_path) if "child" in row}
    assert not any(map(is_running, children))


def test_what_clipx_warns_of_and_what_a_trial_chose_are_rows(report: Report) -> None:
    heard = Said(report)
    for name, level in (
        ("clipx.losses.backend", 30),
        ("clipx.models.attention.trial", 20),
        ("clipx.train.trainer", 20),
    ):
        heard.emit(logging.LogRecord(name, level, "", 0, "%s of %d", ("text", 3), None))
    assert [(row["what"], row["mode"]) for row in read_rows(report.folder)] == [
        ("warning", "text of 3"),
        ("info", "text of 3"),
    ]


def test_where_a_step_hangs_stands_in_the_log(report: Report) -> None:
    dict(run_plan(steps("slow"), report))
    assert 'toys.py", line 9 in slow' in (report.folder / "gpu_plan.log").read_text()


def test_nothing_runs_after_an_essential_step_that_fails(report: Report) -> None:
    outcomes = dict(run_plan([Step("bad", "toys:bad", 20, essential=True), *steps("good")], report))
    assert outcomes == {"bad": "failed: ValueError: bad luck"}


def test_an_essential_step_that_is_late_ends_nothing(report: Report) -> None:
    outcomes = dict(run_plan([Step("slow", "toys:slow", 1.5, essential=True), *steps("good")], report))
    assert outcomes == {"slow": "stopped after 2 s", "good": "ok"}


def test_time_that_was_saved_is_lent_to_later_steps_up_to_as_much_again(report: Report) -> None:
    outcomes = dict(run_plan(steps("good", "slow"), report))
    assert outcomes["slow"] == "stopped after 3 s"


def test_a_step_that_leaves_settings_behind_is_the_last_of_its_worker(report: Report) -> None:
    dict(run_plan([Step("good", "toys:good", 20, last_of_worker=True), *steps("good again")], report))
    first, second = (row["pid"] for row in read_rows(report.folder) if "pid" in row)
    assert first != second


def test_values_are_not_looked_at_in_a_rehearsal(report: Report) -> None:
    outcomes = dict(run_plan(steps("wrong"), Report(report.folder, rehearse=True)))
    assert outcomes == {"wrong": "ok"}


def test_steps_are_there_and_fit_the_lease() -> None:
    assert sum(step.limit_s for step in STEPS) <= WHOLE_S
    assert len({step.name for step in STEPS}) == len(STEPS)
    for step in STEPS:
        module, _, function = step.entry.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
    assert len(gpu_plan.FILES) <= 8


def test_closing_table_lays_what_came_beside_what_was_predicted(tmp_path: Path) -> None:
    predictions = tmp_path / "budget.csv"
    predictions.write_text(
        "what,mode,batch,gpu,gpus,ms,mfu,times_open_clip\n"
        "b32,eager,2048,H200,1,190,0.33,\n"
        "b32,eager,2048,H100,1,210,0.3,\n"
        "b32,eager,2048,H200,8,191,0.33,\n"
        "b32,floor,2048,H200,1,136,0.46,\n"
        "b32,before,2048,H200,1,184,0.34,\n"
        "l14,in turn,256,H200,1,600,,1.2\n"
        "b16,eager,1024,H200,1,290,,\n"
    )
    rows = [
        {"step": "b32", "what": "b32", "mode": "eager", "batch": 2048, "ms": 209.0, "mfu": 0.3},
        {"step": "l14 peer", "what": "l14", "mode": "in turn", "batch": 256, "ms": "nan"},
        {"step": "ceilings", "what": "copy", "tb_per_s": 4.3},
        {"step": "b32", "what": "warning", "mode": "it fell back"},
        {"step": "b32", "outcome": "ok"},
    ]
    text = closing_table(rows, {"b32": "ok", "cache": "died with -9"}, predictions=predictions)
    ends, others, missing, table = text.split("\n\n")
    assert ends == "b32: ok\ncache: died with -9"
    assert others == "copy: tb_per_s 4.3\nwarning it fell back"
    assert missing == "did not come: b16 eager 1024"
    assert [line.split() for line in table.splitlines()] == [
        ["figure", "predicted", "came", "ratio", "goal"],
        ["b32", "eager", "2048", "ms", "190", "209", "1.10"],
        ["b32", "eager", "2048", "mfu", "0.33", "0.3", "0.91", "0.25"],
        ["l14", "in", "turn", "256", "ms", "600", "nan", "-"],
        ["l14", "in", "turn", "256", "times_open_clip", "1.2", "-", "-", "1.15"],
    ]


def test_a_row_that_was_cut_off_is_passed_over(report: Report) -> None:
    report.say(what="whole", loss=float("nan"))
    with (report.folder / "gpu_plan.jsonl").open("a") as file:
        file.write('{"what": "cut o')
    assert [(row["what"], row["loss"]) for row in read_rows(report.folder)] == [("whole", "nan")]


@pytest.mark.full
def test_the_script_stops_at_once_where_there_is_no_gpu(tmp_path: Path) -> None:
    script = Path(gpu_plan.__file__).with_name("gpu.sh")
    assert os.access(script, os.X_OK)
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OUT": str(tmp_path)}
    command = [str(script), "start", "losses"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nothing was run: failed: RuntimeError: torch finds no CUDA device here" in done.stderr
    assert "losses" not in (tmp_path / "gpu_plan.jsonl").read_text()
    assert set(gpu_plan.FILES) >= {path.name for path in tmp_path.iterdir()}


def test_an_unknown_step_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_plan.main(["b33"])
    assert "no step 'b33'; steps are start, losses" in capsys.readouterr().err
