"""A model and a set so small that a whole run takes seconds; shared by the tests of training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from clipx.checkpoint.store import CheckpointStore
from clipx.config.load import load_config
from clipx.config.schema import RunConfig
from clipx.demo.scenes import write_synthetic_set

CONFIG = Path(__file__).with_name("tiny.yaml")


def write_scenes(folder: Path, *, num_train: int = 150) -> Path:
    """The synthetic set at its smallest; returns the folder with train/ and the evaluation sets."""
    write_synthetic_set(folder, num_train=num_train, num_eval_per_class=1, image_size=32, seed=0, shard_size=40)
    return folder


def tiny_config(run_dir: Path, shards: Path | str, *overrides: str) -> RunConfig:
    """The run of tiny.yaml in `run_dir` on `shards`."""
    config = load_config([CONFIG], [f"run_dir={run_dir}", f"data.train=[{shards}]", *overrides])
    assert isinstance(config, RunConfig)
    return config


def losses(run_dir: Path) -> list[float]:
    """The loss of every step, in order; asserts that each step has one row."""
    rows = metrics(run_dir)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def status(run_dir: Path) -> dict[str, Any]:
    """The content of status.json."""
    content: dict[str, Any] = json.loads((run_dir / "status.json").read_text())
    return content


def checkpoints(run_dir: Path) -> list[Path]:
    """The folders of a run's checkpoints, oldest first, broken ones too."""
    found = CheckpointStore(run_dir / "checkpoints").checkpoints()
    return [Path(checkpoint.folder.address) for checkpoint in found]


def saved_steps(run_dir: Path | str) -> list[int]:
    """The steps that a run has checkpoints of, in order."""
    return [int(path.name.removeprefix("step-")) for path in checkpoints(Path(run_dir))]


def results(run_dir: Path | str, name: str) -> dict[int, dict[str, Any]]:
    """What an evaluation of a run has found, by step."""
    contents = [json.loads(path.read_text()) for path in sorted(Path(run_dir, "eval").glob(f"{name}-*"))]
    return {content["step"]: content for content in contents}


def newest_checkpoint(run_dir: Path) -> Path:
    """The folder of the newest one that is whole."""
    newest = CheckpointStore(run_dir / "checkpoints").newest()
    assert newest is not None
    return Path(newest.folder.address)


def saved_tensors(checkpoint: Path, scratch: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, of model and optimizer, by name."""
    scratch.mkdir(parents=True, exist_ok=True)
    whole = scratch / f"{checkpoint.parent.parent.name}.pt"
    dcp_to_torch_save(checkpoint, whole)
    found: dict[str, Tensor] = {}
    _collect(torch.load(whole), (), found)
    return found


def _collect(node: Any, path: Sequence[str], found: dict[str, Tensor]) -> None:
    if isinstance(node, dict):
        for name, child in node.items():
            _collect(child, (*path, str(name)), found)
    elif isinstance(node, Tensor):
        found["/".join(path)] = node
