import json
from pathlib import Path

import pytest
import torch

from clipx.errors import InputError, RunError
from clipx.train.liveness.status import LostContactError, Status, explain, write_failure, write_status

CAUSE = RunError("shard x.tar cannot be read")
CONSEQUENCE = LostContactError("lost contact with another process")


def reason(run_dir: Path) -> str:
    content = json.loads((run_dir / "status.json").read_text())
    assert content["status"] == "failed"
    return str(content["reason"])


@pytest.mark.parametrize("order", [[CAUSE, CONSEQUENCE], [CONSEQUENCE, CAUSE]])
def test_the_cause_stands_against_its_consequences(tmp_path: Path, order: list[Exception]) -> None:
    for error in order:
        write_failure(tmp_path, error, step=3, rank=1)
    assert reason(tmp_path) == "rank 1: shard x.tar cannot be read"


@pytest.mark.parametrize(("error", "exit_code"), [(InputError("shard x.tar is missing"), 2), (CAUSE, 1)])
def test_bad_input_is_told_from_other_failures_where_a_launcher_tells_no_more(
    tmp_path: Path, error: Exception, exit_code: int
) -> None:
    write_failure(tmp_path, error, step=3, rank=1)
    assert json.loads((tmp_path / "status.json").read_text())["exit_code"] == exit_code


def test_an_unknown_error_is_better_than_none(tmp_path: Path) -> None:
    write_failure(tmp_path, KeyError("x"), step=3, rank=0)
    assert reason(tmp_path) == "rank 0: 'x'"


def test_a_disk_that_refuses_does_not_hide_the_error(tmp_path: Path) -> None:
    write_failure(tmp_path / "nowhere", CAUSE, step=3, rank=0)
    assert not (tmp_path / "nowhere").exists()


def test_words_and_exit_codes_are_what_launchers_read(tmp_path: Path) -> None:
    assert {status.word: status.exit_code for status in Status} == {"complete": 0, "again": 85, "failed": 1}
    write_status(tmp_path, Status.AGAIN, step=7, reason="SIGTERM")
    assert json.loads((tmp_path / "status.json").read_text()) == {"status": "again", "step": 7, "reason": "SIGTERM"}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), RunError),
        (
            RuntimeError("[/x/gloo/transport/tcp/pair.cc:561] Connection closed by peer [::1]:20"),
            LostContactError,
        ),
        (torch.distributed.DistNetworkError("timed out"), LostContactError),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), RunError),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), RunError),
        (MemoryError(), RunError),
    ],
)
def test_failures_from_outside_get_one_line(error: Exception, kind: type[RunError]) -> None:
    explained = explain(error)
    assert type(explained) is kind
    assert "\n" not in str(explained)


@pytest.mark.parametrize("error", [InputError("x"), RuntimeError("shapes do not match"), KeyError("x")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    assert explain(error) is error
