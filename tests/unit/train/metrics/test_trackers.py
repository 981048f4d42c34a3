import pytest

from clipx.train.metrics.trackers import least_tracking


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
