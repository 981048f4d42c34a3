from pathlib import Path
from unittest.mock import Mock

import pytest

from clipx.train.metrics.trackers import least_tracking, start_trackers


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("offline", {}, "offline"),
        ("offline", {"WANDB_MODE": "online"}, "offline"),  # never more than the config says
        ("offline", {"WANDB_MODE": "disabled"}, "disabled"),
        ("online", {"WANDB_MODE": "offline"}, "offline"),
        ("online", {"WANDB_MODE": "dryrun"}, "offline"),
        ("online", {"WANDB_DISABLED": "true"}, "disabled"),
        ("online", {"WANDB_MODE": "online", "WANDB_DISABLED": "false"}, "online"),
        ("online", {"WANDB_MODE": "shared"}, "online"),
        ("online", {"WANDB_MODE": ""}, "online"),
    ],
)
def test_the_environment_makes_tracking_less_and_never_more(
    mode: str, environment: dict[str, str], expected: str
) -> None:
    assert least_tracking(mode, environment) == expected


@pytest.mark.parametrize(
    ("mode", "environment", "ignored"),
    [
        ("offline", {"WANDB_MODE": "online", "WANDB_PROJECT": "theirs"}, "WANDB_MODE, WANDB_PROJECT"),
        ("online", {"WANDB_MODE": "offline"}, ""),
        ("disabled", {"WANDB_PROJECT": "theirs"}, ""),
    ],
)
def test_what_is_ignored_is_said_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    mode: str,
    environment: dict[str, str],
    ignored: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    runtime = Mock()
    for _ in range(2):
        start_trackers(runtime, project="ours", config={}, wandb_mode=mode, wandb_id="id", run_dir=tmp_path)
    said = [f"wandb goes by the config; ignored from the environment: {ignored}"] if ignored else []
    assert [record.getMessage() for record in caplog.records] == said
    assert runtime.accelerator.init_trackers.call_args.args == ("ours",)
