"""Paths of a config and of the command line: a leading ~, and one place written in several ways."""

import os
import pwd
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from clipx.cli.config_files import load_arguments, with_home
from clipx.config.load import dump_config, load_config
from clipx.config.paths import cache_folder, expand_home, is_same_path
from clipx.errors import InputError

CONFIG = """
run_dir: ~/runs/a
steps: 1
global_batch_size: 2
start_from: ~/runs/b
checkpoint: {folder: ~/checkpoints}
data:
  sources:
    a:
      {shards: ['~/a/{0..1}.tar::~/b.tar', "pipe:cat ~/c.tar", s3://b/~/d.tar], index: ~/i, class_names: ~/n,
       templates: ~/t}
  index: ~/index
  class_names: ~/names
  templates: ~/templates
  cache: {folder: ~/cache}
model:
  image: {name: vit, pretrained: ~/weights}
  text: {type: huggingface, name: ~/bert, tokenizer: ~/tokenizer}
evaluate:
  z: {type: zeroshot, data: ~/z}
  r: {type: retrieval, data: "~/r.tar::~/s.tar"}
"""
EVERYWHERE = ("/h/runs/a", "/h/runs/b", "/h/checkpoints", "/h/a/{0..1}.tar::/h/b.tar", "/h/i", "/h/n", "/h/t")
EVERYWHERE += ("/h/index", "/h/names", "/h/templates", "/h/cache", "/h/weights", "/h/bert", "/h/tokenizer", "/h/z")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")


def strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif is_dataclass(node):
        yield from (text for field in fields(node) for text in strings(getattr(node, field.name)))
    elif isinstance(node, dict):
        yield from strings(list(node.values()))
    elif isinstance(node, list | tuple):
        yield from (text for item in node for text in strings(item))


def test_every_path_of_a_config(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    config = load_config([tmp_path / "c.yaml"])
    found = set(strings(config))
    assert found >= {*EVERYWHERE, "/h/r.tar::/h/s.tar", "pipe:cat ~/c.tar", "s3://b/~/d.tar"}
    assert not any(text.startswith("~") for text in found)
    (tmp_path / "d.yaml").write_text(dump_config(config))  # says what is meant, and is read without a home
    assert load_config([tmp_path / "d.yaml"]) == config


def test_overrides_too(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    config = load_config([tmp_path / "c.yaml"], ["run_dir=~/other", "checkpoint.folder=./~", "start_from=~root/x"])
    assert (config.run_dir, config.checkpoint.folder) == ("/h/other", "./~")
    assert config.start_from == pwd.getpwnam("root").pw_dir + "/x"


@pytest.mark.parametrize("value", [None, ""])
def test_without_home_the_account_s_counts(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """An empty HOME would make ~/x the path /x."""
    monkeypatch.delenv("HOME") if value is None else monkeypatch.setenv("HOME", value)
    assert expand_home("~/x") == pwd.getpwuid(os.getuid()).pw_dir + "/x"
    monkeypatch.setattr(pwd, "getpwuid", lambda number: {}[number])  # a container's number without an account
    with pytest.raises(InputError, match="~/x: the home folder is not known"):
        expand_home("~/x")


def test_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPX_CACHE", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/h/.cache/clipx")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path("/h/.cache/clipx")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/clipx")
    monkeypatch.setenv("CLIPX_CACHE", "~/c")
    assert cache_folder() == Path("/h/c")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("~/x", "/h/x"),
        ("--to=~/x", "/h/x"),
        ("--json=~", "/h"),
        ("run_dir=~/x", "run_dir=~/x"),  # the config's own
        ("--limit=3", "3"),
        ("a~/b", "a~/b"),
        ("", ""),
    ],
)
def test_arguments(argument: str, expected: str) -> None:
    assert with_home(argument).rpartition("=" if argument.startswith("--") else "\0")[2] == expected


@pytest.mark.parametrize("name", ["it's", 'a "b"', "$HOME `x`", "a #b", "x=y", "ünï 夏", "-x", "a: b", "[1]", "*"])
def test_a_folder_with_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "c.yaml").write_text(CONFIG)
    config = load_config([folder / "c.yaml"], [f"run_dir={folder}"] if name != "a: b" else [f"run_dir='{folder}'"])
    assert config.run_dir == str(folder)
    (folder / "d.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config([folder / "d.yaml"]) == config


def test_a_config_file_in_a_folder_named_like_an_override(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=3e-4").mkdir()
    Path("lr=3e-4/c.yaml").write_text(CONFIG)
    assert load_arguments(["lr=3e-4/c.yaml", "seed=3"]).seed == 3


@pytest.mark.parametrize("value", ["a\nb", '"a\\nb"', '"a\\rb"', '"a\\tb"'])
def test_a_path_has_one_line(tmp_path: Path, value: str) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    with pytest.raises(InputError, match="is no path: it has a line end or another control character"):
        load_config([tmp_path / "c.yaml"], [f"run_dir={value}"])


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("store", "./store", True),
        ("/data/store/", "/data//store", True),
        ("runs/../store", "store", True),
        ("store", "stores", False),
        ("s3://bucket/store/", "s3://bucket/store", True),
        ("s3://bucket/a//b", "s3://bucket/a/b", False),
        ("s3://bucket/store", "s3:/bucket/store", False),
    ],
)
def test_one_place_is_written_in_several_ways(one: str, other: str, is_same: bool) -> None:
    assert is_same_path(one, other) == is_same_path(other, one) == is_same
