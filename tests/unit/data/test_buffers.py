import os
from types import SimpleNamespace

import pytest
import torch

from clipx.data import buffers as buffers_module
from clipx.data.buffers import ImageBuffers

SHAPE = (4, 2, 2, 3)


def test_what_a_child_writes_the_parent_reads():
    buffers = ImageBuffers(2, SHAPE)
    buffer = buffers.take()
    child = os.fork()
    if child == 0:
        buffers.rows(buffer, slice(1, 3)).fill_(7)
        os._exit(0)
    os.waitpid(child, 0)
    assert buffers.lend(buffer).flatten(1).tolist() == [[0] * 12, [7] * 12, [7] * 12, [0] * 12]


def test_a_buffer_is_free_when_its_last_view_is_gone():
    buffers = ImageBuffers(1, SHAPE)
    assert buffers.take() == 0
    assert buffers.take() is None
    lent = buffers.lend(0)
    view = lent[1:].permute(0, 3, 1, 2)[0]
    del lent
    assert buffers.take() is None
    del view
    assert buffers.take() == 0


class _Copy:
    """A copy to the device that is under way until `done`."""

    done = False

    def record(self):
        pass

    def query(self):
        return self.done


@pytest.fixture
def copies(monkeypatch):
    made = []

    class Recorded(_Copy):
        def __init__(self):
            made.append(self)

    monkeypatch.setattr(buffers_module, "_lock_pages", lambda pictures: True)
    monkeypatch.setattr(torch.cuda, "Event", Recorded)
    return made


def test_a_pinned_buffer_waits_for_the_copies_from_it(copies):
    buffers = ImageBuffers(1, SHAPE, pin_memory=True)
    buffers.take()
    lent = buffers.lend(0)
    del lent
    (copy,) = copies
    assert buffers.take() is None
    copy.done = True
    assert buffers.take() == 0


def test_a_machine_that_locks_no_pages_costs_speed_and_not_the_run(monkeypatch, caplog):
    refusal = SimpleNamespace(cudaHostRegister=lambda *_: 801)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: refusal)
    monkeypatch.setattr(torch.cuda, "CudaError", "operation not supported ({})".format)
    buffers = ImageBuffers(1, SHAPE, pin_memory=True)
    assert "image buffers cannot be locked for CUDA (operation not supported (801))" in caplog.text
    buffers.take()
    lent = buffers.lend(0)
    del lent  # marks no event: a copy from pages that are not locked has ended when it returns
    assert buffers.take() == 0


@pytest.mark.gpu
def test_pages_are_locked_and_free_again():
    buffers = ImageBuffers(2, (64, 32, 32, 3), pin_memory=True)
    lent = buffers.lend(buffers.take())
    assert lent.is_pinned()
    lent.fill_(5)
    assert int(lent.to("cuda", non_blocking=True).sum()) == 5 * lent.numel()
    del lent
    torch.cuda.synchronize()
    assert {buffers.take(), buffers.take()} == {0, 1}
