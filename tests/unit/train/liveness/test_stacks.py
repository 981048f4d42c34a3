"""Stacks of a process and of those that it has forked, on a signal and all in one piece."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from clipx.train.liveness.stacks import Stacks

FORK = multiprocessing.get_context("fork")


def wait_in_a_child(ready: int) -> None:
    os.write(ready, b"!")
    time.sleep(600)


def ignore_and_wait(ready: int) -> None:
    """As a process does that was started otherwise than by a fork within the context."""
    signal.signal(signal.SIGRTMAX - 1, signal.SIG_DFL)
    wait_in_a_child(ready)


@contextmanager
def child(target: Callable[[int], None]) -> Iterator[int]:
    """A process that has come to the place where it waits; its id."""
    reading, writing = os.pipe()
    process = FORK.Process(target=target, args=[writing])
    process.start()
    try:
        assert os.read(reading, 1) == b"!"
        assert process.pid is not None
        yield process.pid
        assert process.is_alive()
    finally:
        process.kill()
        process.join()
        os.close(reading)
        os.close(writing)


def wait_in_a_thread(until: threading.Event) -> None:
    until.wait()


def test_all_threads_and_forked_processes_are_shown() -> None:
    until = threading.Event()
    thread = threading.Thread(target=wait_in_a_thread, args=[until])
    thread.start()
    try:
        with Stacks() as stacks, child(wait_in_a_child) as pid:
            text = stacks.collect()
    finally:
        until.set()
        thread.join()
    own, of_child = text.split("--- process ")[1:]
    assert own.startswith(f"{os.getpid()}, the rank\n")
    assert "in wait_in_a_thread" in own
    assert "in test_all_threads_and_forked_processes_are_shown" in own
    assert of_child.startswith(f"{pid}, ForkProcess-")
    assert "in wait_in_a_child" in of_child
    assert "no answer" not in of_child


def test_a_process_that_does_not_know_the_signal_is_spared() -> None:
    with Stacks() as stacks, child(ignore_and_wait) as pid:
        assert stacks.collect().splitlines()[-1].startswith(f"--- process {pid}, ")


def test_a_stopped_process_gives_no_answer() -> None:
    with Stacks() as stacks, child(wait_in_a_child) as pid:
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)  # returns when it has stopped
        of_child = stacks.collect().split("--- process ")[2].splitlines()
    assert of_child[0].endswith("T (stopped)")
    assert of_child[1] == "no answer: it is stopped, or stuck in the kernel"


def test_a_person_can_ask_a_process_that_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    with Stacks():
        os.kill(os.getpid(), signal.SIGRTMAX)
    assert "in test_a_person_can_ask_a_process_that_goes_on" in capfd.readouterr().err
