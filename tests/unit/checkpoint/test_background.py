import threading

import pytest

from clipx.checkpoint.background import Background


def test_one_job_at_a_time_beside_the_caller() -> None:
    background = Background[str](None, timeout_s=1)
    assert background.idle
    released = threading.Event()

    def job() -> str:
        released.wait(10)
        return threading.current_thread().name

    background.start(job)
    assert not background.idle
    assert not background.done
    with pytest.raises(TimeoutError):
        background.take(0.01)
    with pytest.raises(AssertionError, match="one job at a time"):
        background.start(job)
    released.set()
    assert background.take(10) == "checkpoint"
    assert background.idle
    background.close()


def test_an_error_comes_out_where_the_result_would() -> None:
    background = Background[int](None, timeout_s=1)
    background.start(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        background.take(10)
