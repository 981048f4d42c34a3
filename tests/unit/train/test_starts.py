"""starts.jsonl: one row for each start, whatever phases it has, and never a reason to lose the run."""

import json
from pathlib import Path

from tiny import tiny_config, write_scenes

from clipx.train.starts import STARTS
from clipx.train.trainer import run


def rows(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_dir / STARTS).read_text().splitlines()]


def test_a_row_for_each_start_and_none_for_a_phase(tmp_path: Path) -> None:
    shards = write_scenes(tmp_path / "scenes", num_train=60) / "train"
    staged = "stages={a: {until_step: 1, patch_drop: 0.5}}"
    run(tiny_config(tmp_path / "run", shards, "steps=2", staged))
    (first,) = rows(tmp_path / "run")
    assert (first["step"], first["micro_batch_size"]) == (0, 24)
    assert {host["device"] for host in first["hosts"]} == {"cpu"}  # type: ignore[attr-defined]
    assert "torch" in first["versions"]  # type: ignore[operator]
    run(tiny_config(tmp_path / "run", shards, "steps=2", staged))  # which has nothing to do
    assert len(rows(tmp_path / "run")) == 1
    run(tiny_config(tmp_path / "run", shards, "steps=3", staged))
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 2]
