"""Work spread over processes comes back in order; what goes wrong there is said here."""

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from clipx.data.parallel import in_processes, in_threads, num_cores
from clipx.errors import RunError


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_the_order_of_the_jobs(workers: int) -> None:
    assert list(in_processes(abs, [-3, 1, -2], workers=workers)) == [3, 1, 2]
    with pytest.raises(ValueError, match="invalid literal"):
        list(in_processes(int, ["1", "x", "2"], workers=workers))


def test_a_process_that_dies_is_an_error_with_a_mend() -> None:
    with pytest.raises(RunError, match=r"a process died, .*fewer --workers"):
        list(in_processes(os._exit, [1, 1], workers=2))


def test_cores_are_at_least_one() -> None:
    assert 1 <= num_cores() <= (os.cpu_count() or 1)


def test_threads_keep_the_order_and_drop_what_was_not_begun() -> None:
    barrier = threading.Barrier(2, timeout=30)

    def work(job: int) -> int:
        if job < 2:
            barrier.wait()  # both run at once
        return -job

    assert list(in_threads(work, iter(range(100)))) == [-job for job in range(100)]
    begun: list[int] = []
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda job: begun.append(job) or 1 // job, range(10_000)))
    assert len(begun) < 1000


@pytest.mark.parametrize("run", [in_threads, partial(in_processes, workers=2)])
def test_jobs_are_taken_when_their_turn_comes_near(run: Callable[..., Iterator[int]]) -> None:
    taken = []
    results = run(abs, (taken.append(job) or job for job in range(10_000)))
    assert next(results) == 0
    assert 0 < len(taken) < 100
    results.close()


def test_a_single_job_needs_no_process() -> None:
    assert list(in_processes(lambda job: (job, os.getpid()), iter([7]), workers=8)) == [(7, os.getpid())]
