"""Whether Weights & Biases can be reached as the config wants it."""

import netrc
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from clipx.doctor.findings import Finding, ok, problem

_SERVER = "https://api.wandb.ai"
_CONNECT_S = 5.0
_PORTS = {"https": 443, "http": 80}


class Tracker(NamedTuple):
    """What a run in mode `online` needs."""

    server: str
    has_key: bool
    """Whether somebody has logged in."""
    reached_in_s: float | None
    """Seconds until the server, or the proxy before it, took a connection; None where none did."""
    failure: str = ""
    """Why not."""


def look_at_wandb(mode: Literal["offline", "online", "disabled"]) -> Finding:
    """As `judge_wandb`, asking the server only where a run would."""
    if mode != "online":
        return judge_wandb(mode, None)
    server = os.environ.get("WANDB_BASE_URL", _SERVER)
    has_key = has_login(server, os.environ, Path(os.environ.get("NETRC", Path.home() / ".netrc")))
    try:
        return judge_wandb(mode, Tracker(server, has_key, _connect(server, os.environ)))
    except OSError as error:
        return judge_wandb(mode, Tracker(server, has_key, None, error.strerror or str(error)))


def judge_wandb(mode: Literal["offline", "online", "disabled"], tracker: Tracker | None) -> Finding:
    """Whether figures arrive where the config sends them.

    Args:
        mode: track.wandb.
        tracker: in mode online what was found.
    """
    if tracker is None:
        later = "nothing is needed now; `wandb sync` uploads later" if mode == "offline" else "not used"
        return ok("wandb", f"{mode}: {later}")
    if tracker.reached_in_s is None:
        advice = "open the network or set HTTPS_PROXY, or set track.wandb=offline and `wandb sync` later"
        return problem("wandb", f"online: {tracker.server} is not reached ({tracker.failure})", advice)
    found = f"online: {tracker.server} answers in {1e3 * tracker.reached_in_s:.0f} ms"
    if not tracker.has_key:
        return problem("wandb", f"{found}, nobody is logged in", "wandb login, or export WANDB_API_KEY")
    return ok("wandb", f"{found}, logged in")


def has_login(server: str, env: Mapping[str, str], netrc_file: Path) -> bool:
    """Whether a key for the server is in the environment or in the file that `wandb login` writes."""
    if env.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(netrc_file).authenticators(urlsplit(server).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _connect(server: str, env: Mapping[str, str]) -> float:
    """Seconds until the server, or the proxy that the environment names for it, takes a connection.

    Raises:
        OSError: it does not.
    """
    address = urlsplit(server)
    names = (f"{address.scheme}_proxy".upper(), f"{address.scheme}_proxy")
    if proxy := next((env[name] for name in names if env.get(name)), None):
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    began = time.perf_counter()
    with socket.create_connection((address.hostname, address.port or _PORTS.get(address.scheme, 443)), _CONNECT_S):
        return time.perf_counter() - began
