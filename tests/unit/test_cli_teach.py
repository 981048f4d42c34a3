"""`clipx data teach` as a person calls it; what it computes is tested beside the library."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from teacher_stores import write_noise
from tiny_clip import tiny_pretrained

from clipx import cli
from clipx.cli.teach import _named
from clipx.config.load import load_config
from clipx.data.teachers import open_teachers
from clipx.errors import InputError


@pytest.fixture
def teach(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `clipx data teach ARGUMENTS`, every model a tiny one; gives exit code, stdout, stderr."""
    for name in ("CLIPX_DEBUG", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(import_module("clipx.cli.teach"), "require_model", lambda model: None)
    monkeypatch.setattr("clipx.pretrained.load", lambda model, **options: tiny_pretrained(seed=len(model)))

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipx", "data", "teach", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        output = capsys.readouterr()
        assert isinstance(exit_info.value.code, int)
        return exit_info.value.code, output.out, output.err

    return run


def test_it_says_what_it_made_and_what_it_left_out(teach: Any, tmp_path: Path) -> None:
    shards, out = write_noise(tmp_path / "s", bad=[3]), tmp_path / "out"
    arguments = (*shards, "--model", "runs/big", "--model", "b=hf://ORG/NAME@main", "--views", 2, "--out", out)
    code, text, _ = teach(*arguments)
    lines = text.splitlines()
    assert code == 0
    assert lines[0].startswith(f"{out}: 2 views of 17 pictures and 17 captions, as big (24 numbers), b (24 numbers)")
    assert lines[1].startswith("18 samples in ")
    assert lines[1].endswith(" views per second")
    assert lines[2] == f"1 samples left out; each of them: {out}/left_out.jsonl"
    assert open_teachers(str(out)).names == ("big", "b")
    code, text, _ = teach(*arguments)
    assert (code, text.splitlines()[1]) == (0, "all of them were there")


def test_a_config_says_how_a_run_reads(teach: Any, tmp_path: Path) -> None:
    shards, out = write_noise(tmp_path / "s"), tmp_path / "out"
    tiny = Path(__file__).parents[1] / "tiny.yaml"
    overrides = [f"data.train=[{','.join(shards)}]", "seed=9", "data.augment.flip=0.5", "data.caption_key=json:long"]
    assert load_config([tiny], overrides).seed == 9
    code, text, _ = teach(tiny, *overrides, "--model", "runs/big", "--views", 1, "--out", out)
    description = open_teachers(str(out)).description
    assert (code, description.seed, description.readings[0].augment["flip"]) == (0, 9, 0.5)
    assert "1 views of 18 pictures and 36 captions" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--views", "0"], "Invalid value for '--views': Input should be greater than or equal to 1"),
        (["--model", "x/big"], "--model: two teachers are called 'big'; name each, as --model NAME=runs/big"),
        (["none.tar"], "none.tar"),
        (["--out", "s3://bucket/out"], "--out s3://bucket/out: embeddings are read from a local disk"),
    ],
)
def test_bad_input_is_one_line(teach: Any, tmp_path: Path, arguments: list[str], message: str) -> None:
    shards = write_noise(tmp_path / "s")
    code, _, error = teach(*shards, "--model", "runs/big", "--out", tmp_path / "out", *arguments)
    assert code == 2
    assert message in " ".join(error.split())


def test_nothing_good_is_an_error(teach: Any, tmp_path: Path) -> None:
    shards = write_noise(tmp_path / "s", (2,), bad=[0, 1])
    code, _, error = teach(*shards, "--model", "runs/big", "--out", tmp_path / "out")
    assert code == 2
    assert "no sample could be taught; the first is 000000: picture of 10 bytes" in error


def test_teachers_are_called_by_the_end_of_their_address(tmp_path: Path) -> None:
    named = ["runs/big", "runs/big2/", "hf://ORG/NAME@v1", "a=runs/c", "s3://bucket/x y"]
    assert [teacher.name for teacher in _named(named)] == ["big", "big2", "NAME", "a", "x_y"]
    assert [teacher.model for teacher in _named(named)][2:4] == ["hf://ORG/NAME@v1", "runs/c"]
    (tmp_path / "lr=3").mkdir()
    assert _named([f"{tmp_path}/lr=3"])[0].name == "lr_3"
    with pytest.raises(InputError, match="two teachers are called 'big'"):
        _named(["runs/big", "other/big"])
    with pytest.raises(InputError, match="a teacher cannot be called 'a b': a name is of letters"):
        _named(["a b=runs/c"])
    assert _named(["s3://bucket/lr=3"])[0].name == "lr_3"
