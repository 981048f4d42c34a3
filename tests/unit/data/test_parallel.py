"""Work spread over processes comes back in order; what goes wrong there is said here."""

import os

import pytest

from clipx.data.parallel import in_processes, num_cores
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
