"""Names that strangers chose reach a terminal, a table or a drawing as text, and nothing else."""

import io
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from shard_files import pair, write_tar

from clipx import cli
from clipx.checkpoint.store import CheckpointStore
from clipx.cli.data_tables import print_counts
from clipx.cli.zeroshot_tables import print_results
from clipx.config.load import dump_config, load_config, warn_of_secrets
from clipx.data.suite_sets import SetPlace
from clipx.doctor.finding import Finding, Verdict
from clipx.doctor.report import as_json, print_report
from clipx.errors import InputError
from clipx.evaluate.options import Evaluation
from clipx.evaluate.result_files import ModelName
from clipx.evaluate.suite import SetResult
from clipx.printable import printable
from clipx.storage.standard_error import shown_warnings
from clipx.train.metrics import trackers
from clipx.train.metrics.monitor import logging_to_stderr
from clipx.train.metrics.quarantine import Quarantine
from clipx.types import BadSample

NASTY = "[red]a\x1b[2J\u202eb\x9b31m[/red] :smile:"
VISIBLE = r"[red]a\x1b[2J\u202eb\x9b31m[/red] :smile:"
SECRET = "https://u:s3cr3t@h/0.tar"


@pytest.fixture
def clipx(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `clipx ARGUMENTS` in this process; gives its exit code and all that it printed."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["clipx", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        return exit_info.value.code, "".join(capsys.readouterr())

    return run


def assert_clean(text: str) -> None:
    assert all(printable(line) == line for line in text.split("\n"))
    assert "s3cr3t" not in text


def test_check_prints_and_reports_keys_of_strangers_as_text(clipx: Any, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [(f"{NASTY}.txt", b"x"), ("a.png", pair(1)["png"]), ("a.txt", b"a")])
    code, text = clipx("data", "check", tmp_path, "--report", tmp_path / "report.jsonl", "--workers", 1)
    assert code == 1
    assert VISIBLE in text
    assert_clean(text)
    report = (tmp_path / "report.jsonl").read_text()
    assert_clean(report)
    assert json.loads(report)["key"] == NASTY


def test_a_name_with_a_line_break_adds_no_line(clipx: Any, tmp_path: Path) -> None:
    """Which would look like a message of ours."""
    name = "a\nclipx: error: b"
    write_tar(tmp_path / "0.tar", [(f"{name}.txt", b"x"), (f"0.{name}", b"y"), ("0.txt", b"x")])
    _, text = clipx("data", "check", tmp_path, "--workers", 1)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / f"{name}.png").write_bytes(b"no picture")
    (folder / f"{name}.txt").write_text("a")
    _, error = clipx("data", "make", folder, "--out", tmp_path / "out", "--workers", 1)
    assert text.count(r"a\nclipx: error: b") == 2
    assert error.count(r"a\nclipx: error: b") == 1
    assert "\nclipx: error: b" not in text + error


def test_an_error_names_them_as_text_with_its_traceback(clipx: Any, tmp_path: Path) -> None:
    for arguments in (["data", "check", tmp_path / NASTY], ["--debug", "data", "check", tmp_path / NASTY]):
        code, text = clipx(*arguments)
        assert code == 2
        assert r"a\x1b[2J" in text
        assert_clean(text)


def test_an_unexpected_error_is_clean_too(clipx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError(f"{NASTY} {SECRET}")

    monkeypatch.setattr(cli, "load_arguments", fail)
    code, text = clipx("config", tmp_path / "x.yaml")
    assert code == 1
    assert "https://u:REDACTED@h/0.tar" in text
    assert_clean(text)


def test_tables_show_markup_and_emoji_as_text(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    print_counts("left out", "samples", {NASTY: 3})
    evaluation = Evaluation(task="zeroshot_classification", metrics={"acc1": 0.5})
    place = SetPlace(key="set", title=NASTY[:13], path="set")
    result = SetResult(place=place, name="set", main_metric="acc1", evaluation=evaluation)
    print_results([(ModelName(model="vit", pretrained="model"), result)], suite=None)
    text = capsys.readouterr().out
    assert VISIBLE in text
    assert text.count(r"[red]a\x1b[2J") == 2
    assert_clean(text)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_doctor_shows_and_stores_findings_as_text(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = Finding(area="data", name=f"read {NASTY}", verdict=Verdict.OK, value=f"{NASTY} {SECRET}", hint=NASTY)
    file = io.StringIO()
    monkeypatch.setattr(
        "clipx.doctor.report.Console", lambda **_: Console(file=file, width=300, force_terminal=terminal)
    )
    print_report([finding], file, seconds=1)
    shown = Console(file=io.StringIO()).render_str(file.getvalue()).plain if terminal else file.getvalue()
    assert r"\x1b[2J\u202e" in file.getvalue()
    assert "\u202e" not in shown
    assert "s3cr3t" not in file.getvalue() + json.dumps(as_json([finding], hosts=["h"]))


def test_the_log_of_a_run_is_clean(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    kept, root.handlers = root.handlers, []
    try:
        with logging_to_stderr(is_main=True):
            logging.getLogger("clipx").warning("shard %s, key %s", SECRET, NASTY)
    finally:
        root.handlers = kept
    assert capsys.readouterr().err == f"shard https://u:REDACTED@h/0.tar, key {VISIBLE}\n"


def test_warnings_of_a_command_are_clean(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    before = logging.lastResort
    with shown_warnings():
        logging.getLogger("clipx").warning("shard %s, key %s", SECRET, NASTY)
        logging.getLogger("clipx").info("not for people")
    assert logging.lastResort is before
    assert capsys.readouterr().err == f"shard https://u:REDACTED@h/0.tar, key {VISIBLE}\n"


def test_quarantine_names_shards_without_secrets_and_each_once(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    samples = [
        BadSample("train", f"https://h/get?key=s3cr3t{shard}", NASTY, "no picture", sample_id=shard) for shard in (0, 1)
    ]
    for _ in range(2):
        quarantine = Quarantine(path, resumed_step=9)
        quarantine.add(samples, step=3, write=True)
        assert len(quarantine) == 2
    text = path.read_text()
    assert_clean(text)
    assert [json.loads(line)["key"] for line in text.splitlines()] == [NASTY] * 2


def config(**data: object) -> Any:
    return {"run_dir": "r", "steps": 1, "global_batch_size": 2, "data": data, "model": {"image": {"name": "vit"}}}


def test_a_config_is_dumped_without_secrets_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config(train=[SECRET, "https://${U}:${P}@h/1.tar", "a.tar"])))
    loaded = load_config([tmp_path / "c.yaml"])
    assert loaded.data.train is not None
    assert loaded.data.train[0] == SECRET
    stored = yaml.safe_load(dump_config(loaded))
    assert stored["data"]["train"] == ["https://u:REDACTED@h/0.tar", "https://${U}:${P}@h/1.tar", "a.tar"]
    warn_of_secrets(loaded)
    (message,) = caplog.messages
    assert "the config holds secrets (https://u:REDACTED@h/0.tar): they are used" in message
    assert "${NAME}" in message


def test_the_command_config_prints_none(clipx: Any, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config(train=[SECRET, NASTY])))
    code, text = clipx("config", tmp_path / "c.yaml")
    assert code == 0
    assert "https://u:REDACTED@h/0.tar" in text
    assert_clean(text)


@pytest.mark.parametrize(("override", "hidden"), [("data.train=[https://u:s3cr3t@h/0.tar]", True), ("steps=3", False)])
def test_wandb_gets_no_command_line_with_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, override: str, hidden: bool
) -> None:
    taken: dict[str, Any] = {}
    accelerator = SimpleNamespace(init_trackers=lambda _project, **options: taken.update(options))
    monkeypatch.setattr(sys, "argv", ["clipx", "train", "c.yaml", override])
    monkeypatch.setenv("WANDB_SILENT", "true")
    trackers.start_trackers(
        SimpleNamespace(accelerator=accelerator),  # type: ignore[arg-type]
        project="p",
        config={},
        wandb_mode="offline",
        wandb_id="i",
        run_dir=tmp_path,
    )
    assert taken["init_kwargs"]["wandb"]["settings"] == {"x_disable_meta": hidden}


def test_a_drawing_takes_any_name(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from clipx.prepare.plots import draw_stats

    rows = np.ones(4)
    measured: Any = {name: SimpleNamespace(values=lambda _: rows) for name in (r"a $\no{such}$ b", "_hidden", NASTY)}
    draw_stats(measured, tmp_path / "stats.png", context_length=8, image_size=16)
    assert Image.open(tmp_path / "stats.png").size[0] > 0


def test_the_name_of_a_stored_folder_in_an_error_is_text(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        raise InputError(f"{CheckpointStore(tmp_path / NASTY)}: no good checkpoint")
    assert_clean(str(raised.value))
