"""Teachers that know nothing: unit rows drawn from a sample's name, as columns and side by side; shared by tests."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from clipx.config.schema import RunConfig
from clipx.data.columns import ColumnSpec, RawSample
from clipx.data.teacher_columns import image_column, text_column
from clipx.losses.distill import DistillLoss, Teacher
from clipx.models.clip import build_model
from clipx.objectives.build import build_loss
from clipx.objectives.contrastive import ContrastiveObjective
from clipx.objectives.distillation import Distillation
from clipx.objectives.flops import ModelFlops

TEACHERS = {
    "large": Teacher(width=9, logit_scale=20.0, weight=3.0),
    "small": Teacher(width=4, logit_scale=7.0),
}
WEIGHT = 0.5


class RandomTeachers:
    """A column reader whose rows are functions of key, caption and teacher."""

    extensions: frozenset[str] = frozenset()
    columns: Mapping[str, ColumnSpec] = {
        column(name): ColumnSpec(np.dtype(np.float32), (teacher.width,))
        for name, teacher in TEACHERS.items()
        for column in (image_column, text_column)
    }

    def read(self, sample: RawSample) -> dict[str, np.ndarray]:
        key = sample.name().key
        rows: dict[str, np.ndarray] = {}
        for name, teacher in TEACHERS.items():
            rows[image_column(name)] = unit_rows([f"{name} {key}"], teacher.width)
            rows[text_column(name)] = unit_rows([f"{name} {text}" for text in sample.texts], teacher.width)
        return rows


def unit_rows(names: Sequence[str], width: int) -> np.ndarray:
    """float32, a row for each name."""
    seeds = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") for name in names]
    rows = np.stack([np.random.default_rng(seed).standard_normal(width) for seed in seeds])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def build_taught(config: RunConfig, phase: object, *, vocab_size: int) -> ContrastiveObjective:
    """CLIP's objective with these teachers."""
    model = build_model(config.model, vocab_size=vocab_size, seed=config.seed)
    loss = DistillLoss(list(TEACHERS.values()), exchange=config.loss.exchange, tile_size=config.loss.tile_size)
    return ContrastiveObjective(
        model,
        loss=build_loss(config.loss),
        flops=ModelFlops.of(model, phase),  # type: ignore[arg-type]
        seed=config.seed,
        distillation=Distillation(names=list(TEACHERS), reader=RandomTeachers(), loss=loss, weight=WEIGHT),
    )


def random_rows(size: int, width: int, seed: int) -> Tensor:
    """float64 (size, width), of unit length."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(size, width, generator=generator, dtype=torch.float64), dim=1)


def taught_rows(size: int, teachers: Sequence[Teacher]) -> dict[str, Tensor]:
    """What the loss takes of the teachers."""
    parts = [[random_rows(size, one.width, seed + 10 * k) for k, one in enumerate(teachers)] for seed in (3, 4)]
    return {name: torch.cat(rows, dim=1) for name, rows in zip(("image_BE", "text_BE"), parts, strict=True)}


def for_textbook(rows: Mapping[str, Tensor], teachers: Sequence[Teacher]) -> list[tuple[Tensor, Tensor, float, float]]:
    """The same as `reference.distill.distill` takes it."""
    widths = [one.width for one in teachers]
    sides = zip(*(side.split(widths, dim=1) for side in rows.values()), teachers, strict=True)
    return [(image, text, one.logit_scale, one.weight) for image, text, one in sides]
