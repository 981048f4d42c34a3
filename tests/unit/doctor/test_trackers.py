"""Whether wandb can be reached: judged on made-up values, asked of a socket on loopback."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipx.doctor.findings import Verdict
from clipx.doctor.trackers import Tracker, has_login, judge_wandb, look_at_wandb

OK, WARNING, PROBLEM = Verdict
REACHED = Tracker("https://api.wandb.ai", has_key=True, reached_in_s=0.02)


@pytest.mark.parametrize(
    ("tracker", "verdict", "advice"),
    [
        (None, OK, ""),
        (REACHED, OK, ""),
        (REACHED._replace(has_key=False), PROBLEM, "wandb login"),
        (REACHED._replace(reached_in_s=None, failure="refused"), PROBLEM, "track.wandb=offline"),
    ],
)
def test_online_needs_a_server_and_a_key(tracker: Tracker | None, verdict: Verdict, advice: str) -> None:
    finding = judge_wandb("online", tracker)
    assert finding.verdict is verdict
    assert advice in finding.advice


def test_a_key_of_the_environment_or_of_netrc(tmp_path: Path) -> None:
    server, file = "https://wandb.example.org:8080", tmp_path / "netrc"
    assert has_login(server, {"WANDB_API_KEY": "x"}, file)
    assert not has_login(server, {}, file)
    file.write_text("machine api.wandb.ai login user password x\n")
    assert not has_login(server, {}, file)
    file.write_text("machine wandb.example.org login user password x\n")
    assert has_login(server, {}, file)
    file.write_text("no such thing")
    assert not has_login(server, {}, file)


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "x")


def test_the_server_is_asked_only_when_online(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert look_at_wandb("offline").verdict is OK
    assert look_at_wandb("disabled").found == "disabled: not used"
    assert look_at_wandb("online").found == "online: http://127.0.0.1:9 is not reached (Connection refused)"
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    assert look_at_wandb("online").verdict is OK
    assert judge_wandb("online", REACHED).found == "online: https://api.wandb.ai answers in 20 ms, logged in"


def test_a_proxy_is_asked_instead(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.invalid")
    assert look_at_wandb("online").verdict is PROBLEM
    monkeypatch.setenv("https_proxy", f"127.0.0.1:{port}")
    assert look_at_wandb("online").verdict is OK
