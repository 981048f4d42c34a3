"""What is looked at before a step is built."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from clipx.config.parallel import DdpConfig, Fsdp2Config
from clipx.train.build_stepper import copied_dtype, odd_sizes


def test_widths_that_tensor_cores_cannot_fill_are_named() -> None:
    blocks = [nn.Sequential(nn.Linear(128, 200), nn.GELU(), nn.Linear(200, 128)), nn.Linear(64, 100)]
    assert odd_sizes(blocks) == [100, 200]
    assert odd_sizes([nn.Linear(768, 3072)]) == []


def test_weights_are_copied_where_autocast_would_cast_them_on_cuda() -> None:
    def dtype(precision: str, device: str = "cuda", parallel: Any = None) -> torch.dtype | None:
        config: Any = SimpleNamespace(precision=precision, parallel=parallel or DdpConfig())
        runtime: Any = SimpleNamespace(device=torch.device(device))
        return copied_dtype(config, runtime)

    assert (dtype("bf16"), dtype("fp16")) == (torch.bfloat16, torch.float16)
    assert (dtype("fp32"), dtype("fp8")) == (None, None)
    assert dtype("bf16", device="cpu") is None
    assert dtype("bf16", parallel=Fsdp2Config()) is None
