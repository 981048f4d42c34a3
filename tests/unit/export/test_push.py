"""`clipx push`: what is put on the hub, what is refused, and that no token is told."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import huggingface_hub
import pytest
from typer.testing import CliRunner

from clipx.cli import app
from clipx.config.yaml_text import read_yaml, write_yaml
from clipx.errors import ClipxError, InputError, RunError
from clipx.export.folder import exported_files, publish
from clipx.export.push import push
from clipx.storage.drafts import draft_of

TOKEN = "hf_" + "secret" * 6
ROW = {"checked": True, "limit": 1e-4, "largest_difference": {"logits": 2e-6}}
HOLDS = {"clipx": "0.1", "consumers": {"transformers CLIPModel": ROW, "open_clip": {"checked": False}}}


def export(to: Path, parity: dict[str, Any] = HOLDS, beside: str = "onnx/model.onnx") -> Path:
    with draft_of(to) as draft:
        for name in ("README.md", "config.json", beside):
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).write_text(f"content of {name}")
        publish(draft, to, json.loads(json.dumps(parity)))
    return to


class Hub:
    """What `HfApi` does with one model's page."""

    files: ClassVar[dict[str, bytes]]
    calls: ClassVar[list[tuple[str, dict[str, Any]]]]
    private: ClassVar[bool | None]

    def create_repo(self, name: str, **options: Any) -> str:
        self.calls.append(("create_repo", options))
        if Hub.private is None:
            Hub.private = options["private"]
        return f"https://hub/{name}"

    def create_branch(self, name: str, **options: Any) -> None:
        self.calls.append(("create_branch", options))

    def list_repo_files(self, name: str, *, revision: str | None) -> list[str]:
        return list(self.files)

    def hf_hub_download(self, name: str, file: str, *, revision: str | None, local_dir: str) -> str:
        path = Path(local_dir) / file
        path.write_bytes(self.files[file])
        return str(path)

    def create_commit(self, name: str, operations: Any, **options: Any) -> None:
        self.calls.append(("create_commit", options))
        for change in operations:
            if hasattr(change, "path_or_fileobj"):
                content = change.path_or_fileobj
                self.files[change.path_in_repo] = content if isinstance(content, bytes) else Path(content).read_bytes()
            else:
                del self.files[change.path_in_repo]

    def model_info(self, name: str) -> Any:
        return SimpleNamespace(private=Hub.private)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    Hub.files, Hub.calls, Hub.private = {}, [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return Hub


def test_an_export_goes_whole_and_nothing_else_with_it(tmp_path: Path, hub: type[Hub]) -> None:
    folder = export(tmp_path / "export")
    (folder / "diary.txt").write_text("mine")
    (folder / "onnx" / "diary.onnx").write_text("mine")
    pushed = push(folder, "hf://me/model@tuned")
    assert set(hub.files) == {"README.md", "config.json", "onnx/model.onnx", "parity.json"}
    assert hub.files["onnx/model.onnx"] == b"content of onnx/model.onnx"
    assert [name for name, _ in hub.calls] == ["create_repo", "create_branch", "create_commit"]
    assert hub.calls[0][1] == {"private": True, "exist_ok": True}
    assert hub.calls[1][1]["branch"] == hub.calls[2][1]["revision"] == "tuned"
    assert (pushed.num_files, pushed.uploaded.private) == (4, True)
    assert pushed.left_out == ["diary.txt"]


def test_what_an_earlier_export_had_goes_and_what_others_put_there_stays(tmp_path: Path, hub: type[Hub]) -> None:
    push(export(tmp_path / "one", beside="pt2/image_encoder.pt2"), "hf://me/model")
    hub.files["picture.png"] = b"of the owner"
    pushed = push(export(tmp_path / "two"), "hf://me/model", private=False)
    assert set(hub.files) == {"README.md", "config.json", "onnx/model.onnx", "parity.json", "picture.png"}
    assert pushed.uploaded.removed == ["pt2/image_encoder.pt2"]
    assert pushed.uploaded.private  # a page that is there stays as it is
    hub.files["parity.json"] = b"[somebody's own"
    assert push(tmp_path / "two", "hf://me/model").uploaded.removed == []


def test_the_card_may_be_edited(tmp_path: Path, hub: type[Hub]) -> None:
    folder = export(tmp_path / "export")
    (folder / "README.md").write_text("license: mit")
    push(folder, "hf://me/model")
    assert hub.files["README.md"] == b"license: mit"


def test_folders_of_this_machine_stay_here_and_what_is_pushed_is_whole(tmp_path: Path, hub: type[Hub]) -> None:
    shards = [
        "/data/secret/{0..9}.tar::/data/secret/b.tar",
        "pipe:cat /data/secret/c.tar",
        "s3://bucket/secret_not/d.tar",
    ]
    config = {"run_dir": "/data/secret/run/", "steps": 3, "data": {"train": shards, "model": "org/name"}}
    with draft_of(tmp_path / "export") as draft:
        (draft / "clipx_config.yaml").write_text(write_yaml(config))
        (draft / "open_clip_config.json").write_text('{"hf_model_name": "/data/secret/export/text_encoder"}')
        (draft / "config.json").write_text("{}")
        publish(draft, tmp_path / "export", json.loads(json.dumps(HOLDS)))
    result = CliRunner().invoke(app, ["push", str(tmp_path / "export"), "hf://me/model"])
    assert "went by their last part alone: clipx_config.yaml, open_clip_config.json" in result.output
    assert not [name for name, content in hub.files.items() if b"secret/" in content]
    pushed = read_yaml(hub.files["clipx_config.yaml"].decode())
    kept = ["{0..9}.tar::b.tar", "pipe:cat c.tar", "s3://bucket/secret_not/d.tar"]
    assert pushed == {"run_dir": "run/", "steps": 3, "data": {"train": kept, "model": "org/name"}}
    assert json.loads(hub.files["open_clip_config.json"]) == {"hf_model_name": "text_encoder"}
    (tmp_path / "there").mkdir()
    for name, content in hub.files.items():
        (tmp_path / "there" / name).write_bytes(content)
    assert exported_files(tmp_path / "there")[1] == sorted(hub.files)
    assert b"/data/secret" in (tmp_path / "export" / "clipx_config.yaml").read_bytes()


def change(folder: Path) -> None:
    (folder / "config.json").write_text("other")


def lose(folder: Path) -> None:
    (folder / "onnx" / "model.onnx").unlink()


def edit_parity(folder: Path) -> None:
    (folder / "parity.json").write_text((folder / "parity.json").read_text().replace("2e-06", "1e-06"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (change, "with config.json changed since"),
        (lose, "without onnx/model.onnx"),
        (edit_parity, "no parity.json that holds"),
        (lambda folder: (folder / "parity.json").unlink(), "no parity.json that holds"),
    ],
)
def test_what_is_not_as_it_was_compared_is_refused(tmp_path: Path, hub: type[Hub], spoil: Any, said: str) -> None:
    folder = export(tmp_path / "export")
    spoil(folder)
    with pytest.raises(InputError, match=said):
        push(folder, "hf://me/model")
    assert not hub.calls


@pytest.mark.parametrize(
    ("consumers", "said"),
    [
        ({"a": ROW | {"largest_difference": {"logits": 2e-3}}, "b": ROW}, ": a computes something else"),
        ({"a": ROW | {"largest_difference": {"logits": float("nan")}}}, ": a computes something else"),
        ({"a": {"checked": False}}, "nobody who loads it was compared"),
        ({"a": {"checked": True}}, "another version of clipx"),
        ([1], "another version of clipx"),
    ],
)
def test_parity_that_does_not_hold_is_refused(tmp_path: Path, hub: type[Hub], consumers: Any, said: str) -> None:
    folder = export(tmp_path / "export", {"consumers": consumers})
    with pytest.raises(InputError, match=said):
        push(folder, "hf://me/model")
    assert not hub.calls


@pytest.mark.parametrize("address", ["me/model", "hf://model", "hf://datasets/me/model", "s3://me/model", "hf://a/b/c"])
def test_another_address_is_refused(tmp_path: Path, hub: type[Hub], address: str) -> None:
    with pytest.raises(InputError, match="no model at the hub; give hf://ORG/NAME"):
        push(export(tmp_path / "export"), address)


def test_the_list_of_files_leads_nowhere_else(tmp_path: Path, hub: type[Hub]) -> None:
    (tmp_path / "secret.json").write_text("{}")
    folder = export(tmp_path / "export")
    with draft_of(tmp_path / "bad") as draft:
        (draft / "config.json").write_text("{}")
        publish(draft, tmp_path / "bad", json.loads(json.dumps(HOLDS)))
    from clipx.export.folder import _mark  # a stranger can make a mark, too

    parity = json.loads((folder / "parity.json").read_text())
    parity.pop("mark")
    for name in ("../secret.json", str(tmp_path / "secret.json")):
        parity["files"][name] = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of {}
    (folder / "parity.json").write_text(json.dumps(parity | {"mark": _mark(parity)}))
    push(folder, "hf://me/model")
    assert not [name for name in hub.files if "secret" in name]


class _Refusing(BaseHTTPRequestHandler):
    status = 500

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.dumps({"error": f"bad token {self.headers.get('Authorization')}"}).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A hub that refuses, and a token for it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, InputError, "does not know who asks; log in by `hf auth login`"),
        (403, InputError, "does not let this account write there"),
        (404, InputError, "no such place"),
        (418, RunError, "status 418; nothing was changed there"),
    ],
)
def test_a_refusal_of_the_hub_is_one_line_without_the_token(
    tmp_path: Path,
    server: ThreadingHTTPServer,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    kind: type[ClipxError],
    said: str,
) -> None:
    monkeypatch.setattr(_Refusing, "status", status)
    with pytest.raises(kind, match=said) as caught:
        push(export(tmp_path / "export"), "hf://me/model")
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_network_it_is_one_line(
    tmp_path: Path, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export(tmp_path / "export")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match="the hub does not answer") as caught:
        push(folder, "hf://me/model")
    assert "\n" not in str(caught.value)


def test_the_command_says_where_it_is_and_who_sees_it(tmp_path: Path, hub: type[Hub]) -> None:
    folder = export(tmp_path / "export")
    result = CliRunner().invoke(app, ["push", str(folder), "hf://me/model", "--public"])
    assert result.exit_code == 0, result.output
    assert "4 files, 0.0 MB, at https://hub/me/model (public)" in result.output
    again = CliRunner().invoke(app, ["push", str(folder), "hf://me/model"])
    assert "stays public" in again.output
