"""Files of others in a run folder are named before anything is written; a run's own are gone over."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import tiny_config

from clipx.config.load import dump_config
from clipx.errors import InputError
from clipx.train.run_folder import _MARK, _result_step, check_folder
from clipx.train.trainer import train

COMMENTED = "# my run, do not lose\nsteps: 3\n"
OTHERS = {
    "config.yaml": COMMENTED,
    "metrics.jsonl": '{"epoch": 1, "loss": 2.0}\n',
    "quarantine.jsonl": '{"file": "a.jpg"}\n',
    "rollbacks.jsonl": "not json\n",
    "starts.jsonl": '{"began_at": "monday"}\n',
    "status.json": '{"status": "green"}',
    ".lock": "held by another tool",
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_clipx_has_not_written_is_refused_by_name_and_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(OTHERS[name])
    for _ in range(2):
        with pytest.raises(InputError, match=rf"holds {name}, not written by clipx, .* move what is there or"):
            train(tiny_config(tmp_path, tmp_path / "none.tar"))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, OTHERS[name])]


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"holds {name}, not written by clipx"):
        check_folder(tmp_path)


def test_all_of_them_are_named(tmp_path: Path) -> None:
    for name, text in OTHERS.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=r"holds config.yaml, .lock, status.json, metrics.jsonl, quar"):
        check_folder(tmp_path)


def resolved(run_dir: Path) -> str:
    return dump_config(tiny_config(run_dir, "none.tar", "optim.eps=1e-7", "track.project='yes'"))


OWN: dict[str, Callable[[Path], str]] = {
    "marked": lambda run_dir: _MARK + resolved(run_dir),
    "of an earlier version": resolved,
}


@pytest.mark.parametrize("kind", OWN)
def test_what_a_run_has_written_is_its_own(tmp_path: Path, kind: str) -> None:
    own = {
        "config.yaml": OWN[kind](tmp_path),
        "metrics.jsonl": '{"step": 1, "samples_seen": 8, "data_wait_s": 0.1}\n{"st',
        "quarantine.jsonl": '{"step": 3, "sha',
        "rollbacks.jsonl": '{"step": 3, "back_to": 1}\n',
        "samples.jsonl": '{"step": 1, "ba\n{"step": 2, "batch": 1, "samples": [3, 5]}\n',
        "starts.jsonl": '{"began_at": "2026-11-30T02:00:00", "step": 0, "hosts": []}\n',
        "status.json": '{"status": "again", "step": 2}',
        ".lock": "process 12 on node-3",
        "notes.txt": "mine",
    }
    for name, text in own.items():
        (tmp_path / name).write_text(text)
    check_folder(tmp_path)


def test_a_config_with_comments_of_a_persons_is_not_the_dumpers(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(resolved(tmp_path) + "# keep lr below 1e-3\n")
    with pytest.raises(InputError, match=r"holds config\.yaml, not written"):
        check_folder(tmp_path)
    check_folder(tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "text", "step"),
    [
        ("scenes-00000012.json", '{"step": 12, "name": "scenes", "acc1": 0.5}', 12),
        ("scenes-00000012.json", '{"step": 3, "name": "scenes"}', 0),
        ("scenes-00000012.json", "[1]", 0),
        ("figure-1b.json", "{}", 0),
        ("figure-12.json", '{"step": 12, "name": "figure"}', 0),
    ],
)
def test_results_are_known_by_what_is_in_them(tmp_path: Path, name: str, text: str, step: int) -> None:
    (tmp_path / name).write_text(text)
    assert _result_step(tmp_path / name) == step
