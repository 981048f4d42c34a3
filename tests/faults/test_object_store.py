"""Checkpoints in an object store: written anew after a kill, and waited for when the store does not answer."""

import os
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import fsspec
import pytest
from faults.harness import STEPS, Scenario
from faults.processes import wait_until
from servers import object_store

IN_BUCKET = "checkpoint.folder=s3://bucket/run"


class Relay:
    """Passes connections on to a server, unless it shall break them; the address is fixed, the server may be gone."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.breaks = 0
        """So many coming connections are closed at once."""
        self.broken = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.broken < self.breaks:
                self.broken += 1
                client.close()
                continue
            server = socket.create_connection((self._target.hostname, self._target.port))
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        target.close()


@pytest.fixture
def store() -> Iterator[Relay]:
    """An S3 server with an empty bucket, behind a relay."""
    with object_store() as url:
        relay = Relay(url)
        yield relay
        relay.close()


def variables(store: Relay) -> dict[str, str]:
    """What processes need to find it."""
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")} | {
        "AWS_ENDPOINT_URL": store.url
    }


def steps_in_bucket() -> list[int]:
    """Those whose manifest is there."""
    found = fsspec.filesystem("s3", use_listings_cache=False).glob("bucket/run/step-*/manifest.json")
    return sorted(int(path.split("/")[-2].removeprefix("step-")) for path in found)


def fetch(scenario: Scenario) -> None:
    """Puts the newest where a local run has it, to be compared."""
    name = f"step-{STEPS:08d}"
    fsspec.filesystem("s3").get(f"bucket/run/{name}", str(scenario.checkpoint_folder / name), recursive=True)


def test_kill_9_with_checkpoints_in_a_bucket(scenario: Scenario, store: Relay) -> None:
    given = variables(store)
    job = scenario.start(IN_BUCKET, faults=[("die_at_step", {"step": 10})], **given)
    assert job.wait() == [-9], job.text
    assert steps_in_bucket() == [4, 8]
    scenario.recover(IN_BUCKET, outcome="went on from the bucket", variables=given)
    assert scenario.row["lost"] == 0
    fetch(scenario)
    scenario.assert_as_undisturbed()


@pytest.mark.full
def test_a_bucket_that_fails_and_recovers(scenario: Scenario, store: Relay) -> None:
    gate = scenario.gate(6)
    job = scenario.start(IN_BUCKET, faults=[gate], **variables(store))
    gate.wait(job)
    store.breaks = 3
    gate.open()
    assert job.wait(timeout_s=120) == [0], job.text
    assert store.broken == 3
    assert steps_in_bucket() == [4, 8, 12]
    scenario.report("asked again; nothing was lost", lost=0)
    fetch(scenario)
    scenario.assert_as_undisturbed()


@pytest.mark.full
def test_a_bucket_that_is_gone(scenario: Scenario, store: Relay) -> None:
    given = variables(store)
    gate = scenario.gate(6)
    job = scenario.start(IN_BUCKET, faults=[gate], **given)
    gate.wait(job)
    store.breaks = 1_000_000
    gate.open()
    wait_until(lambda: job.ended, "the end", timeout_s=240)
    assert job.wait() == [1]
    assert "CHECKPOINT OF STEP 8 FAILED" in job.text
    assert "the newest good one is step 4" in job.errors[-1]
    store.breaks = 0
    assert steps_in_bucket() == [4]
    scenario.recover(IN_BUCKET, outcome="ended with the reason; went on from the last good one", variables=given)
    fetch(scenario)
    scenario.assert_as_undisturbed()
