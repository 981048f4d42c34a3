"""A run that an earlier clipx began goes on with the losses that it would have had there.

`old_run/run.tar.xz` holds the run folder of `CONFIG` at step 30 and its tokenizer, written at commit 4c4fcc3, before
there were objectives; `curve.txt` loss and gradient norm of the steps that the same commit went on with.
"""

import tarfile
from pathlib import Path

import pytest
from tiny import metrics, tiny_config, write_scenes

from clipx.train.trainer import train

FOLDER = Path(__file__).parent / "old_run"
CONFIG = (
    "steps=36",
    "model.text.tokenizer=tokenizer",
    "model.text.width=8",
    "model.image.options={patch_size: 16, embed_dim: 8, depth: 1, num_heads: 2}",
    "optim.lr=3e-3",
    "ema.decay=0.6",
    "spikes.window=8",
    "micro_batch_size=8",
    "data.max_bad_fraction=0.5",
    "checkpoint.every_steps=30",
    "checkpoint.keep_last=9",
)


def test_goes_on_with_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_scenes(Path("scenes"))
    with tarfile.open(FOLDER / "run.tar.xz") as archive:
        archive.extractall(filter="data")
    assert train(tiny_config(Path("run"), Path("scenes/train"), *CONFIG)) == 0
    rows = metrics(Path("run"))
    assert [row["step"] for row in rows] == list(range(1, 37))
    expected = [list(map(float, line.split())) for line in (FOLDER / "curve.txt").read_text().splitlines()]
    # equal to the last digit on the machine that wrote them, and to rounding on others
    assert [[row["loss"], row["grad_norm"]] for row in rows[30:]] == [pytest.approx(row, rel=1e-5) for row in expected]
