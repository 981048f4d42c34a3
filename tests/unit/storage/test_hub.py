"""Models at the hub: what is in the cache, what a server that stands for the hub has, and what goes wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

from servers import WebServer

from clipx.storage.hub import HubModel, hub_model

COMMIT = "a" * 40
TOKEN = "hf_secretsecretsecretsecret"

SCRIPT = """
import json, sys, time
from clipx.errors import InputError
from clipx.storage.hub import hub_folder, hub_model
found = []
for address, weights in json.loads(sys.argv[1]):
    try:
        folder = hub_folder(hub_model(address), weights=weights)
        found.append(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))
    except InputError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def ask(home: Path, *questions: tuple[str, bool], **environment: str) -> list[list[str] | str]:
    """What a process of its own, whose cache is in `home`, gets for each address with or without weights."""
    own = {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN} | environment
    command = [sys.executable, "-c", SCRIPT, json.dumps(questions)]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=True, timeout=120)
    assert TOKEN not in done.stdout + done.stderr
    found: list[list[str] | str] = json.loads(done.stdout)
    assert all(isinstance(each, list) or "\n" not in each for each in found)
    return found


def put_into_cache(home: Path, *names: str) -> None:
    """A model org/name as huggingface_hub keeps it."""
    repository = home / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for name in names:
        path = repository / "snapshots" / COMMIT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def test_addresses_of_models_are_told_from_those_of_shards() -> None:
    assert hub_model("hf://org/name") == HubModel("org/name", None)
    assert hub_model("hf://org/na.me-2@v1.0") == HubModel("org/na.me-2", "v1.0")
    assert hub_model("hf://org/name@refs/pr/1") == HubModel("org/name", "refs/pr/1")
    others = [
        "hf://datasets/org/name",
        "hf://datasets/name",
        "hf://org/name/step-1",
        "hf://org",
        "s3://org/name",
        "org/name",
    ]
    assert [hub_model(address) for address in others] == [None] * len(others)


WHOLE = ("config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors")


def test_offline_the_cache_is_enough_or_one_line_says_how_to_fill_it(tmp_path: Path) -> None:
    absent = ask(tmp_path, ("hf://org/name", False), ("hf://org/name@v2", True))
    why = "is not in the cache (HF_HOME), and HF_HUB_OFFLINE forbids to ask the hub; where there is a network, run"
    assert absent == [
        f"hf://org/name{at} {why} `hf download org/name{more}`, and bring its HF_HOME here"
        for at, more in (("", ""), ("@v2", " --revision v2"))
    ]
    put_into_cache(tmp_path, *WHOLE[:3])
    config, weights = ask(tmp_path, ("hf://org/name", False), ("hf://org/name", True))
    assert config == sorted(WHOLE[:3])
    assert str(weights).startswith("hf://org/name is in the cache (HF_HOME) without all of its weights, and HF_HUB_OFF")
    put_into_cache(tmp_path, *WHOLE)
    assert ask(tmp_path, ("hf://org/name", True), (f"hf://org/name@{COMMIT}", True)) == [sorted(WHOLE)] * 2


def test_weights_in_several_files_are_whole_or_not_there(tmp_path: Path) -> None:
    put_into_cache(tmp_path, *WHOLE[:3], "model.safetensors.index.json", "model-00001-of-00002.safetensors")
    index = tmp_path / "hub" / "models--org--name" / "snapshots" / COMMIT / "model.safetensors.index.json"
    parts = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index.write_text(json.dumps({"weight_map": {"a": parts[0], "b": parts[1]}}))
    assert "without all of its weights" in ask(tmp_path, ("hf://org/name", True))[0]
    put_into_cache(tmp_path, parts[1])
    assert parts[1] in ask(tmp_path, ("hf://org/name", True))[0]


def serve(server: WebServer, name: str, files: dict[str, bytes], revision: str = "main") -> None:
    """Makes the server the hub of a model."""
    answer = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
    for path in (f"api/models/{name}", f"api/models/{name}/revision/{revision}"):
        server.files[path] = json.dumps(answer).encode()
    for file, content in files.items():
        server.files[f"{name}/resolve/{revision}/{file}"] = content
    server.headers = {"X-Repo-Commit": COMMIT, "ETag": '"1"'}


def online(server: WebServer) -> dict[str, str]:
    return {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0"}


def test_what_a_model_needs_is_fetched_once(tmp_path: Path) -> None:
    files = dict.fromkeys([*WHOLE, "pytorch_model.bin", "flax_model.msgpack", "README.md", "onnx/model.onnx"], b"{}")
    with WebServer() as server:
        serve(server, "org/name", files)
        config, weights, again = ask(
            tmp_path, ("hf://org/name", False), ("hf://org/name", True), ("hf://org/name", True), **online(server)
        )
        asked = [path for path, _ in server.requests]
    assert (config, weights, again) == (sorted(WHOLE[:3]), sorted(WHOLE), sorted(WHOLE))
    assert sum(path.endswith("model.safetensors") for path in asked) == 1  # the first time, of two
    assert ask(tmp_path, ("hf://org/name", True)) == [sorted(WHOLE)]  # offline again


def test_the_library_whose_config_counts_decides_which_weights(tmp_path: Path) -> None:
    both = [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "open_clip_config.json",
        "open_clip_pytorch_model.bin",
    ]
    exported = [*both[:4], "clipx_config.yaml", "open_clip_model.safetensors", "text_encoder/config.json"]
    with WebServer() as server:
        for name, files in (("org/open", both), ("org/export", exported)):
            serve(server, name, dict.fromkeys(files, b"{}"))
        found = ask(tmp_path, ("hf://org/open", True), ("hf://org/export", True), **online(server))
    assert found == [sorted({*both} - {"model.safetensors"}), sorted({*exported} - {"open_clip_model.safetensors"})]


REFUSALS = [
    (
        404,
        "RepoNotFound",
        "hf://org/0@v1: the hub has no such model (status 404); correct the name, or, if it is private",
    ),
    (
        401,
        "RepoNotFound",
        "hf://org/1@v1: the hub has no such model (status 401); correct the name, or, if it is private",
    ),
    (404, "RevisionNotFound", "hf://org/2 has no revision v1; give a branch, a tag or a commit"),
    (403, "GatedRepo", "hf://org/3@v1 is gated: ask for access on its page at the hub, then log in by `hf auth login`"),
    (403, "", "hf://org/4@v1: the hub refuses access (status 403); log in by `hf auth login`, or set HF_TOKEN"),
    (503, "", "hf://org/5@v1 is not in the cache (HF_HOME), and the hub answers with status 503; where there is a"),
]


def test_a_hub_that_says_no_is_one_line(tmp_path: Path) -> None:
    with WebServer() as server:
        for number, (status, code, _) in enumerate(REFUSALS):
            said = {"X-Error-Code": code, "X-Error-Message": f"of {TOKEN}"} if code else {}
            server.refusals[f"api/models/org/{number}/revision/v1"] = (status, said)
        addresses = [(f"hf://org/{number}@v1", False) for number in range(len(REFUSALS))]
        found = ask(tmp_path, *addresses, **online(server))
    for (*_, message), answer in zip(REFUSALS, found, strict=True):
        assert str(answer).startswith(message)


def test_without_a_network_it_ends(tmp_path: Path) -> None:
    with WebServer() as server:
        pass  # nobody listens at its port any more
    put_into_cache(tmp_path / "part", "config.json", "model.safetensors")
    (found,) = ask(tmp_path, ("hf://org/name", True), **online(server))
    assert str(found).startswith(
        "hf://org/name is not in the cache (HF_HOME), and the hub does not answer (ConnectError);"
    )
    assert ask(tmp_path / "part", ("hf://org/name", True), **online(server)) == [["config.json", "model.safetensors"]]


def test_a_hub_that_is_silent_is_given_up(tmp_path: Path) -> None:
    script = SCRIPT.replace("found = []", "import clipx.storage.hub as hub; hub._TIMEOUT_S = 0.3; found = []")
    with WebServer() as server:
        server.mode = "silent"
        own = {"HF_HOME": str(tmp_path)} | online(server)
        command = [sys.executable, "-c", script, json.dumps([("hf://org/name", True)])]
        done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=True, timeout=120)
    assert "and the hub does not answer (ReadTimeout)" in done.stdout


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    with WebServer() as server:
        serve(server, "org/words", {"README.md": b""})
        serve(server, "org/flax", {"config.json": b"{}", "flax_model.msgpack": b""})
        found = ask(
            tmp_path, ("hf://org/words", True), ("hf://org/flax", True), ("hf://org/a..b", True), **online(server)
        )
    assert str(found[0]).startswith("hf://org/words has none of clipx_config.yaml, open_clip_config.json, config.json")
    assert str(found[1]).startswith("hf://org/flax has no weights that clipx reads (open_clip_model.safetensors, ")
    assert str(found[2]).startswith("hf://org/a..b is no name at the hub")
