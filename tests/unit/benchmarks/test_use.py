import csv
from pathlib import Path

import pytest
import use
from shard_files import write_shards
from tiny_clip import tiny_pretrained

from clipx.export import huggingface
from clipx.export.options import ExportOptions


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    huggingface.write(tiny_pretrained(), folder, ExportOptions())
    return str(folder)


@pytest.mark.parametrize(
    ("row", "options", "peers"),
    [
        ("pictures", ["--agree", "5"], ["clipx pil", "transformers", "transformers, torchvision decodes"]),
        ("captions", [], ["transformers", "transformers, its own tokenizer"]),
    ],
)
def test_rows(tmp_path: Path, model: str, row: str, options: list[str], peers: list[str]) -> None:
    """Both sides compute the same, or there is no row."""
    shards = write_shards(tmp_path / "shards", [5])
    few = ["--count", "4", "--batch", "3", "--repetitions", "2", *options]
    use.main([row, model, "--from", *shards, *few, "--out", str(tmp_path)])
    with (tmp_path / "use.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(found["row"], found["peer"], found["count"]) for found in rows] == [(row, peer, "4") for peer in peers]
    assert all(0 < float(found["ratio_p20"]) <= float(found["ratio_p80"]) for found in rows)
    if row == "pictures":
        assert all(float(found["cosine_min"]) > 0.999 and int(found["pixels_max"]) <= 2 for found in rows)
