"""What of a fit run's model learns, what is evaluated, and what its vectors are standardised by."""

from typing import Any

import pytest
import torch
from fitted_models import resolved_config
from tiny_clip import CLIP_VOCABULARY, tiny_model_config
from torch import Tensor, nn

from clipx.config.phases import phase_at
from clipx.config.sections import as_tree
from clipx.models.fused import FusedModel
from clipx.objectives.supervised import SupervisedObjective
from clipx.types import Batch

DROPPING = {"patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "drop_path_rate": 0.5, "proj_drop_rate": 0.5}


def objective(train: Any) -> SupervisedObjective:
    encoder = as_tree(tiny_model_config(image={"options": DROPPING}, text={"layers": 3}))
    config = resolved_config(encoder=encoder | {"train": train})
    phase = phase_at(config, 0, config.length())
    return SupervisedObjective(config, phase, vocab_size=CLIP_VOCABULARY)


def learning_blocks(tower: nn.Module) -> list[bool]:
    blocks = tower.get_submodule("trunk.blocks" if hasattr(tower, "trunk") else "blocks").children()
    return [all(parameter.requires_grad for parameter in block.parameters()) for block in blocks]


@pytest.mark.parametrize(
    ("train", "image", "text"),
    [
        ("frozen", [False, False, False], [False, False, False]),
        ("all", [True, True, True], [True, True, True]),
        ({"image": 1}, [False, False, True], [False, False, False]),
        ({"image": 0, "text": 2}, [False, False, False], [False, True, True]),
    ],
)
def test_the_last_blocks_learn_and_drop_and_what_is_frozen_is_evaluated(
    train: Any, image: list[bool], text: list[bool]
) -> None:
    model = objective(train).model
    assert learning_blocks(model.image_tower) == image
    assert learning_blocks(model.text_tower) == text
    blocks = list(model.image_tower.get_submodule("trunk.blocks").children())
    assert [block.get_submodule("drop_path1").training for block in blocks] == image
    assert [block.get_submodule("mlp.drop1").training for block in blocks] == image


def test_measuring_drops_nothing_and_restores_the_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = objective("all")
    before = [module.training for module in measured.model.modules()]
    seen: list[bool] = []

    def embeddings(model: FusedModel, batch: Batch) -> Tensor:
        seen.append(any(module.training for module in model.modules()))
        return torch.ones(2, 3, model.layout.embed_dim)

    monkeypatch.setattr(FusedModel, "embeddings", embeddings)
    measured.begin([_TwoRows()], None)  # type: ignore[list-item]
    assert seen == [False]
    assert [module.training for module in measured.model.modules()] == before


class _TwoRows:
    """As much of a batch as measuring looks at."""

    columns = {"presence_BM": torch.ones(2, 3)}
