"""Sections of a step add up, repeat and nest."""

import time

import pytest
import torch

from clipx.train.metrics.step_metrics import Clock, sections


def testsections_repeat_and_nest() -> None:
    clock = Clock(torch.device("cpu"))
    for _ in range(2):
        with clock.measure("outer"):
            time.sleep(0.02)
            with clock.measure("inner"):
                time.sleep(0.03)
    seconds = clock.seconds()
    assert seconds.keys() == {"outer", "inner"}
    assert seconds["inner"] >= 0.06
    assert seconds["outer"] >= seconds["inner"] + 0.04


def test_the_backward_pass_is_what_forward_and_loss_leave() -> None:
    parts = sections({"model and loss": 10.0, "forward": 3.0, "loss": 2.0, "optimizer": 1.0})
    assert parts == {"forward": 3.0, "loss": 2.0, "backward": 5.0, "optimizer": 1.0, "communication": 0.0}


@pytest.mark.gpu
def test_cuda_times_are_the_devices() -> None:
    device = torch.device("cuda")
    clock = Clock(device)
    x = torch.randn(4096, 4096, device=device)
    with clock.measure("long"):
        for _ in range(200):
            x = x @ x
    torch.cuda.synchronize()
    assert clock.seconds()["long"] > 0.01  # the host alone is done in far less
