"""A run on signed addresses: no file of it, no tracker and no line holds a secret; the next signature resumes it."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from servers import WebServer
from tiny import losses, tiny_config, write_scenes

from clipx.config.load import load_config
from clipx.errors import InputError
from clipx.train.trainer import train

SECRET, LATER = "s3cr3t-0f-today", "s3cr3t-0f-tomorrow"
QUERY = "?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date=20260101T000000Z"
QUERY += "&X-Amz-Security-Token={0}&X-Amz-Signature={0}"


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """Serves the same shards under both signatures; one sample is bad."""
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "cache"))
    shards = sorted((write_scenes(tmp_path / "scenes") / "train").glob("*.tar"))
    contents = {path.name: path.read_bytes() for path in shards}
    contents[shards[0].name] = contents[shards[0].name].replace(b"\xff\xd8\xff", b"\x00\x00\x00", 1)
    names = [f"d/{{name}}{QUERY.format(secret)}" for secret in (SECRET, LATER)]
    with WebServer({form.format(name=name): data for form in names for name, data in contents.items()}) as server:
        yield server


def addresses(web: WebServer, secret: str) -> str:
    host = web.url.removeprefix("http://")
    return f"'http://me:{secret}@{host}/d/{{00000..00003}}.tar{QUERY.format(secret)}'"


def written(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its path, which counts as content too."""
    return {
        str(path): str(path).encode() + path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "scenes" not in path.parts
    }


def test_a_run_on_signed_addresses_keeps_them_to_itself(
    tmp_path: Path, web: WebServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    common = ("data.max_bad_fraction=1", "checkpoint.every_steps=2", "data.workers=0")
    assert train(tiny_config(run_dir, addresses(web, SECRET), "steps=2", *common)) == 0
    (stored,) = yaml.safe_load((run_dir / "config.yaml").read_text())["data"]["train"]
    assert stored.endswith(".tar" + QUERY.format("REDACTED"))
    assert (run_dir / "quarantine.jsonl").read_text().count(".tar") == 1
    # the next day the addresses have another signature and password
    requests = len(web.requests)
    kept = f"data.cache.folder={tmp_path / 'kept'}"
    assert train(tiny_config(run_dir, addresses(web, LATER), "steps=4", kept, *common)) == 0
    assert len(losses(run_dir)) == 4
    assert (run_dir / "quarantine.jsonl").read_text().count(".tar") == 1
    assert requests < len(web.requests)
    for name, content in written(tmp_path).items():
        for secret in (SECRET, LATER):
            assert secret.encode() not in content, name
    shown = "".join(capfd.readouterr()) + "\n".join(map(logging.Formatter("%(message)s").format, caplog.records))
    assert "the config holds secrets (http://me:REDACTED@" in shown
    assert SECRET not in shown
    with pytest.raises(InputError, match=r"a secret was left out of it when it was stored; give it with \$\{NAME\}"):
        train(load_config([run_dir / "config.yaml"], ["run_dir=" + str(tmp_path / "other")]))


def test_references_to_the_environment_stay_references(
    tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DAY_SECRET", SECRET)
    run_dir = tmp_path / "run"
    given = addresses(web, "${DAY_SECRET}")
    assert train(tiny_config(run_dir, given, "steps=2", "data.workers=0", "data.max_bad_fraction=1")) == 0
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["data"]["train"] == [given.strip("'")]
    assert not any(SECRET.encode() in content for content in written(tmp_path).values())
    assert not any("holds secrets" in message for message in caplog.messages)
    monkeypatch.delenv("DAY_SECRET")
    with pytest.raises(InputError, match="the environment has no DAY_SECRET; set it"):
        train(tiny_config(tmp_path / "other", given, "steps=2"))
    assert "DAY_SECRET" not in os.environ
