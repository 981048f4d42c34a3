"""What is looked at before a step is built."""

from torch import nn

from clipx.train.build_stepper import odd_sizes


def test_widths_that_tensor_cores_cannot_fill_are_named() -> None:
    blocks = [nn.Sequential(nn.Linear(128, 200), nn.GELU(), nn.Linear(200, 128)), nn.Linear(64, 100)]
    assert odd_sizes(blocks) == [100, 200]
    assert odd_sizes([nn.Linear(768, 3072)]) == []
