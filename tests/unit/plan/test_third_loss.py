"""A loss that clipx does not have: planned by its own cost, and no loss at all without one."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from plan_assumptions import ASSUMPTIONS, CLUSTER
from tiny import tiny_config
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.config.phases import Phase
from clipx.config.schema import RunConfig
from clipx.losses.cost import LossCost, LossShape, Transfer
from clipx.models.clip import build_model
from clipx.objectives.build import build_objective
from clipx.objectives.contrastive import ContrastiveObjective
from clipx.objectives.flops import ModelFlops
from clipx.objectives.objective import BuildObjective, Objective
from clipx.plan.run import PhasePlan, make_plan
from clipx.types import Embeddings

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, kw_only=True)
class MarginConfig:
    type: Literal["margin"] = "margin"
    margin: float = 0.2


class MarginLoss:
    """Each pair against the next rank's pairs: two products of B x B x D, and one shift of both sides."""

    def __init__(self, *, margin: float) -> None:
        self.margin = margin

    def __call__(
        self,
        embeddings: Embeddings,
        *,
        group: ProcessGroup | None = None,
        ids_B: Tensor | None = None,
        positive_ids_B: Tensor | None = None,
    ) -> Tensor:
        similarity_BB = embeddings.image_BD @ embeddings.text_BD.T
        return (self.margin - similarity_BB.diagonal()[:, None] + similarity_BB).relu().mean()

    def check(self, device: torch.device) -> None:
        """Runs anywhere."""

    def cost(self, shape: LossShape) -> LossCost:
        both = 2 * shape.element_bytes * shape.global_batch_size * shape.embed_dim
        return LossCost(
            flops=4.0 * shape.rank_batch_size**2 * shape.embed_dim,
            gathered_bytes=0,
            working_bytes=4 * shape.rank_batch_size**2,
            transfers=(Transfer(part="neighbours", collective="shift", payload=both, times=1),),
        )


def build(config: RunConfig, phase: Phase, *, vocab_size: int) -> Objective:
    model = build_model(config.model, vocab_size=vocab_size, seed=config.seed)
    loss = MarginLoss(margin=MarginConfig().margin)
    return ContrastiveObjective(model, loss=loss, flops=ModelFlops.of(model, phase), seed=config.seed)


def planned(config: RunConfig, builder: BuildObjective) -> PhasePlan:
    return make_plan(config, ASSUMPTIONS, world_size=4, build=builder).asked.heaviest


def test_is_planned_by_its_own_cost(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "none.tar", "global_batch_size=4096", "micro_batch_size=64", "precision=bf16")
    own, usual = planned(config, build), planned(config, build_objective)
    assert own.pace.loss_s == pytest.approx(4 * 1024**2 * 16 / (0.5 * CLUSTER.gpu.bf16_flops))
    assert usual.pace.loss_s == pytest.approx(4 * 2 * 1024 * 4096 * 16 / (0.5 * CLUSTER.gpu.bf16_flops))
    assert (own.memory.parts.texts, own.memory.parts.loss) == (0, 4 * 1024**2)
    moved = {part.part: part.sent_bytes for part in own.pace.communication}
    assert moved.keys() == {"gradients", "neighbours"}
    assert moved["neighbours"] == 2 * 2 * 4096 * 16 / 4
    assert replace(own.memory.parts, texts=0, loss=0, activations=0) == replace(
        usual.memory.parts, texts=0, loss=0, activations=0
    )


@pytest.mark.full  # mypy reads all of torch
def test_without_a_cost_it_is_a_type_error(tmp_path: Path) -> None:
    pytest.importorskip("mypy")  # of the checks, not of the tests
    source = Path(__file__).read_text()
    start, stop = source.index("    def cost("), source.index("\n\ndef build(")
    files = {"with_cost.py": source, "without_cost.py": source[:start] + source[stop:]}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    environment: dict[str, Any] = {"MYPYPATH": str(ROOT / "tests")}
    given = [str(tmp_path / name) for name in files]
    found = subprocess.run([*command, *given], cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert found.returncode == 1, found.stderr
    assert '"MarginLoss" is missing following "ContrastiveLoss" protocol member' in found.stdout
    assert {Path(line.split(":")[0]).name for line in found.stdout.splitlines() if ": error:" in line} == {
        "without_cost.py"
    }, found.stdout
