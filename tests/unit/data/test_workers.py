import pytest
import torch

from clipx.data import workers
from clipx.data.workers import choose_workers, measure_image


def choose(image_s=0.001, **changes):
    return choose_workers(image_s, **({"cores": 16.0, "pace": 5000.0, "slots": 64, "on_cpu": False} | changes))


class Clock:
    """Time that passes only in `read`: the first picture takes a second, the others what is said."""

    def __init__(self, monkeypatch, *, cpu_s, wall_s):
        self.cpu = self.wall = 100.0
        self.cpu_s, self.wall_s = cpu_s, wall_s
        self.read_numbers, self.threads = [], set()
        monkeypatch.setattr(workers, "process_time", lambda: self.cpu)
        monkeypatch.setattr(workers, "monotonic", lambda: self.wall)

    def read(self, number):
        self.read_numbers.append(number)
        self.threads.add(torch.get_num_threads())
        self.cpu += 1.0 if number == 0 else self.cpu_s
        self.wall += 1.0 if number == 0 else self.wall_s


def test_the_mean_cost_is_measured_without_the_first_picture(monkeypatch):
    clock = Clock(monkeypatch, cpu_s=0.003, wall_s=0.004)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert measure_image(clock.read) == pytest.approx(0.003)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert clock.read_numbers == list(range(65))
    assert clock.threads == {1}


@pytest.mark.parametrize(("wall_s", "pictures"), [(0.5, 4), (30.0, 1)])
def test_slow_pictures_are_measured_for_about_two_seconds(monkeypatch, wall_s, pictures):
    clock = Clock(monkeypatch, cpu_s=0.2, wall_s=wall_s)
    assert measure_image(clock.read) == pytest.approx(0.2)
    assert len(clock.read_numbers) == 1 + pictures


def test_as_many_as_keep_up_with_a_margin():
    workers, why = choose()
    assert workers == 7  # 5,000/s at 1 ms is 5 processes; a quarter more is 7
    assert why == (
        "data.workers: 7, the fewest that keep up: a picture takes 1.00 ms of CPU, and this rank uses at most "
        "5,000 pictures/s"
    )
    assert choose(pace=3.0).workers == 1


def test_a_core_is_left_to_training():
    workers, why = choose(cores=4.9)
    assert workers == 3
    assert why == (
        "data.workers: 3, all that can be spared of 4.9 cores, too few to keep up: a picture takes 1.00 ms of CPU, and "
        "this rank uses at most 5,000 pictures/s, of which they load some 2,400"
    )
    assert choose(cores=2.0).workers == 1


@pytest.mark.parametrize("cores", [0.5, 1.0, 1.9])
@pytest.mark.parametrize("on_cpu", [False, True])
def test_with_one_core_pictures_are_loaded_where_training_runs(cores, on_cpu):
    workers, why = choose(cores=cores, on_cpu=on_cpu)
    assert workers == 0
    assert f"this rank has {cores:.3g} cores" in why


def test_no_more_than_pictures():
    assert choose(slots=2).workers == 2
    assert choose(slots=2, pace=None).workers == 2


def test_an_unknown_pace_takes_what_can_be_spared():
    workers, why = choose(pace=None)
    assert workers == 15
    assert "pace of training is unknown" in why


def test_training_on_the_same_cores_leaves_one():
    workers, why = choose(pace=None, on_cpu=True)
    assert workers == 1
    assert why == "data.workers: 1, since training takes the same 16 cores: a picture takes 1.00 ms of CPU"
