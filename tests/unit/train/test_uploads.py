"""What arrives on the device is what was sent, and pixels are not overwritten while anything still reads them."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from clipx.train.uploads import Uploads, packed, unpacked

MIXED = [
    torch.arange(7),
    torch.tensor([True, False, True]),
    torch.empty(0, dtype=torch.float64),
    torch.tensor([1.5, -2.5], dtype=torch.float64),
    torch.arange(5, dtype=torch.int16),
    torch.rand(9)[::2],
]


def test_on_a_cpu_nothing_is_copied() -> None:
    uploads, images = Uploads(torch.device("cpu")), torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    assert uploads.pixels(images) is images
    assert all(sent is tensor for sent, tensor in zip(uploads.together(MIXED), MIXED, strict=True))


def test_packed_tensors_come_out_as_they_went_in() -> None:
    memory = packed(MIXED, pin_memory=False)
    assert memory.dtype == torch.uint8
    for tensor, view in zip(MIXED, unpacked(memory, MIXED), strict=True):
        assert view.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()
        torch.testing.assert_close(view, tensor, rtol=0, atol=0)


def test_a_change_in_place_is_no_change_of_the_others() -> None:
    sent = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    tokens, labels = unpacked(packed(sent, pin_memory=False), sent)
    result = functional.embedding(tokens, torch.ones(2, 3, requires_grad=True)).sum()
    labels.masked_fill_(labels == 3, -100)
    result.backward()  # an objective may do so on a CPU, where the tensors never were one
    assert tokens.tolist() == [0, 1]


class _Recorded(TorchDispatchMode):
    """Writes down the copies."""

    def __init__(self, happened: list[str]) -> None:
        super().__init__()
        self._happened = happened

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten.copy_.default, torch.ops.aten.clone.default):
            self._happened.append(function._schema.name.removeprefix("aten::"))
        return function(*args, **(kwargs or {}))


class _Stream:
    def __init__(self, name: str, happened: list[str]) -> None:
        self.name, self._happened = name, happened

    def wait_stream(self, other: "_Stream") -> None:
        self._happened.append(f"{self.name} waits for {other.name}")


def test_streams_wait_for_each_other_around_the_two_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    uploads: Any = Uploads(torch.device("cpu"))
    uploads._stream = _Stream("copying", happened)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: _Stream("computing", happened))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    sent = [torch.randint(256, (size, 2, 2, 3), dtype=torch.uint8) for size in (3, 4, 2)]
    with _Recorded(happened):
        kept = [uploads.pixels(images) for images in sent]
    assert happened == 3 * ["copy_", "computing waits for copying", "clone", "copying waits for computing"]
    for images, arrived in zip(sent, kept, strict=True):  # also those that were followed by others
        torch.testing.assert_close(arrived, images, rtol=0, atol=0)


@pytest.mark.gpu
def test_pixels_arrive_while_the_device_is_busy() -> None:
    device = torch.device("cuda")
    uploads, x = Uploads(device), torch.randn(4096, 4096, device=device)
    sent = [torch.randint(256, (256, 64, 64, 3), dtype=torch.uint8).pin_memory() for _ in range(4)]
    sums: list[Tensor] = []
    for images in sent:
        arrived = uploads.pixels(images)
        for _ in range(20):
            x = x @ x
        sums.append(arrived.sum())  # after work that takes longer than the next copy
    assert [int(value) for value in sums] == [int(images.sum()) for images in sent]


@pytest.mark.gpu
def test_small_tensors_arrive_together() -> None:
    uploads = Uploads(torch.device("cuda"))
    for _ in range(3):
        arrived = uploads.together(MIXED)
        torch.cuda._sleep(10_000_000)
        for tensor, moved in zip(MIXED, arrived, strict=True):
            torch.testing.assert_close(moved.cpu(), tensor, rtol=0, atol=0)
