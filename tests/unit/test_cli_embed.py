"""`clipx embed` as a person calls it; what it computes is tested beside the library."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from embedding_folders import write_pairs
from shard_files import png
from tiny_clip import tiny_pretrained

from clipx import cli
from clipx.use.embeddings import open_embeddings


@pytest.fixture
def embed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `clipx embed MODEL ARGUMENTS` with a tiny model; gives exit code, stdout, stderr."""
    for name in ("CLIPX_DEBUG", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    pretrained = tiny_pretrained()
    monkeypatch.setattr(import_module("clipx.cli.embed"), "require_model", lambda model: None)
    monkeypatch.setattr("clipx.pretrained.loading.load", lambda model, **options: pretrained)

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipx", "embed", "MODEL", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        output = capsys.readouterr()
        assert isinstance(exit_info.value.code, int)
        return exit_info.value.code, output.out, output.err

    return run


def test_it_says_what_it_made_and_what_it_left_out(embed: Any, tmp_path: Path) -> None:
    shards, out = write_pairs(tmp_path / "s"), tmp_path / "out"
    code, text, _ = embed(*shards, "--out", out, "--reduce", "pca:6", "--dtype", "fp32", "--beside")
    assert code == 0
    lines = text.splitlines()
    assert lines[0] == f"{out}: embeddings of 30 pictures and 29 texts, 6 numbers each, float32"
    assert lines[1].startswith("30 rows in ")
    assert lines[2].startswith("6 of 24 components keep ")
    assert lines[3] == f"2 rows left out; each of them: {out}/left_out.jsonl"
    assert lines[4].startswith("cosines beside 3 shards")
    manifest = open_embeddings(out).manifest
    assert (manifest.model, manifest.embed_dim, manifest.dtype) == ("MODEL", 6, "float32")
    assert all(Path(shard).with_suffix(".parquet").is_file() for shard in shards)
    code, text, _ = embed(*shards, "--out", out, "--reduce", "pca:6", "--dtype", "fp32")
    assert (code, text.splitlines()[1]) == (0, "all of them were there")


def test_other_captions_and_no_texts(embed: Any, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a cat\na dog\n")
    assert embed(tmp_path / "lines.txt", "--out", tmp_path / "lines")[0] == 0
    assert open_embeddings(tmp_path / "lines").manifest.columns == ("text",)
    shards = write_pairs(tmp_path / "s")
    assert embed(*shards, "--out", tmp_path / "pictures", "--no-texts", "--decode", "pil")[0] == 0
    manifest = open_embeddings(tmp_path / "pictures").manifest
    assert (manifest.columns, manifest.decode, manifest.dtype) == (("image",), "pil", "float16")


def test_what_a_person_gets_wrong_is_one_line(embed: Any, tmp_path: Path) -> None:
    shards, out = write_pairs(tmp_path / "s"), tmp_path / "out"
    (tmp_path / "page.png").write_bytes(b"<html>")
    (tmp_path / "lines.txt").write_text("a cat\n")
    assert embed(*shards, "--out", out)[0] == 0
    for arguments, message in (
        ((shards[0], "--out", out), f"--out {out} has embeddings of another request: the inputs are others"),
        ((tmp_path / "page.png", "--out", tmp_path / "o"), "no row could be embedded; the first is"),
        ((tmp_path / "lines.txt", "--out", tmp_path / "o2", "--beside"), "--beside writes beside shards"),
        (("http://127.0.0.1:9/a.png", "--out", tmp_path / "o3"), "http://127.0.0.1:9/a.png cannot be read"),
    ):
        code, text, error = embed(*arguments)
        assert (code, text) == (2, "")
        assert error.startswith(f"clipx: error: {message}")
        assert error.count("\n") == 1


def test_columns_of_a_table_by_their_names(embed: Any, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(2):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(png(number))
    (tmp_path / "table.csv").write_text("photo,says\n0.png,a dog\n1.png,two cats\n")
    named = ("--image-column", "photo", "--caption-column", "says", "--image-folder", tmp_path / "pictures")
    code, out, err = embed(tmp_path / "table.csv", "--out", tmp_path / "out", *named)
    assert (code, err) == (0, "")
    assert "2 pictures and 2 texts" in out
    assert [row.caption for row in open_embeddings(tmp_path / "out").keys([0, 1])] == ["a dog", "two cats"]
    code, _, err = embed(tmp_path / "table.csv", "--out", tmp_path / "other")
    assert code == 2
    assert "--image-column" in err
