"""A table's objective: every target has a term of its own, over the samples whose cell is there.

A term's loss is divided by the number of its present cells in the global batch, so curves depend neither on ranks nor
on micro-batches, whichever cells are absent where.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from clipx.config.fit import FitConfig
from clipx.config.fit_inputs import ClassTarget, Head, TargetConfig
from clipx.config.phases import TOWERS, Phase, TowerName
from clipx.data.fit_columns import FitColumns, JoinedText
from clipx.data.kept_samples import KeptColumns
from clipx.distributed.collectives import all_reduce
from clipx.losses.supervised import binary_sum, cross_entropy_sum, huber_sum, num_present
from clipx.models.evaluating import evaluating
from clipx.models.fused import KEPT, FusedModel, FusedOutputs, build_fused_model
from clipx.objectives.flops import ModelFlops
from clipx.objectives.objective import Objective, Share, Term
from clipx.optim.param_groups import heights
from clipx.types import Batch


class SupervisedObjective(Objective):
    """Targets of a table, predicted from pictures, texts, numbers and categories.

    Args:
        config: resolved.
        phase: of the run; there is one.
        vocab_size: of the tokenizer.
    """

    model: FusedModel

    def __init__(self, config: FitConfig, phase: Phase, *, vocab_size: int) -> None:
        self.model = build_fused_model(config, vocab_size=vocab_size)
        _freeze(self.model, config)
        self.flops = _flops(self.model, phase, config)
        self._seed = config.seed
        self.terms = {
            head.name: Term(total=partial(_total, head), count=partial(_count, head), weight=head.target.weight)
            for head in config.heads
        }
        kept = [KEPT[name] for name in config.modalities if name in KEPT] if config.keeps_features else []
        self.column_readers = (
            FitColumns(config, training=True),
            *([KeptColumns(kept, dim=config.encoder.embed_dim)] if kept else []),
        )
        self.text_reader = JoinedText(config.text_columns)
        self.images = "optional" if "image" in config.modalities and not config.keeps_features else "unread"

    def forward(self, model: nn.Module, piece: Batch, *, for_terms: bool) -> FusedOutputs:
        """The raw outputs of a piece."""
        outputs: FusedOutputs = model(piece, seed=self._seed)
        return outputs

    def begin(self, batches: Iterable[Batch], group: ProcessGroup | None) -> None:
        """Measures the mean and the scale of the embeddings of what is there; see `Objective.begin`."""
        with evaluating(self.model):
            sums = sum((_moments(self.model, batch) for batch in batches), start=torch.zeros(()))
        total_MS = all_reduce(sums, "sum", group)
        count_M1, sum_MD, squares_M = total_MS[:, :1].clamp(min=1), total_MS[:, 2:], total_MS[:, 1]
        mean_MD = sum_MD / count_M1
        variance_M = squares_M / count_M1[:, 0] - mean_MD.square().sum(1)
        scale_M = (variance_M / mean_MD.shape[1]).clamp(min=1e-12).sqrt()
        self.model.measured_as(mean_MD.float(), scale_M.float())

    def after_update(self) -> None:
        """Nothing: there is no multiplier of similarities."""

    def figures(self) -> Mapping[str, Tensor]:
        """Nothing beside losses."""
        return {}


@torch.no_grad()
def _moments(model: FusedModel, batch: Batch) -> Tensor:
    """float64 (M, 2 + D): of each modality how many embeddings, the sum of their squared lengths, and their sum."""
    presence_BM = batch.columns["presence_BM"].double()
    x_BMD = torch.where(presence_BM[:, :, None] > 0, model.embeddings(batch).double(), 0)
    squares_M = x_BMD.square().sum(dim=(0, 2))
    return torch.cat([presence_BM.sum(0)[:, None], squares_M[:, None], x_BMD.sum(0)], dim=1)


def _total(head: Head, outputs: FusedOutputs, piece: Batch) -> Share:
    """The sum of a target's losses over the samples of a piece that have it."""
    return Share(loss_sum(head, outputs.raw_BO, piece.columns["targets_BO"]))


def loss_sum(head: Head, raw_BO: Tensor, targets_BT: Tensor) -> Tensor:
    """The sum of a target's losses over the samples that have it, 0-d, in at least float32.

    Args:
        head: of the target.
        raw_BO: outputs of all targets.
        targets_BT: columns of all targets, NaN where absent.
    """
    raw_BS, own_BT = raw_BO[:, head.outputs], targets_BT[:, head.columns]
    match head.kind:
        case "class":
            return cross_entropy_sum(raw_BS, own_BT[:, 0], _class_weights(head.target, raw_BS.device))
        case "number":
            return huber_sum(raw_BS[:, 0], own_BT[:, 0])
        case "labels":
            return binary_sum(raw_BS, own_BT)
        case _:
            assert_never(head.kind)


def _count(head: Head, batch: Batch) -> float:
    """The cells of a target that are there in a rank's batch."""
    return float(num_present(batch.columns["targets_BO"][:, head.columns]))


@cache  # made once: a copy to the device in every step would wait for it
def _class_weights(target: TargetConfig, device: torch.device) -> Tensor | None:
    """Weights of classes with the mean 1 over the training rows, float64; None if all are 1."""
    if not isinstance(target, ClassTarget) or target.class_weights == "none":
        return None
    counts = target.counts or ()
    weights = [sum(counts) / (len(counts) * count) for count in counts]
    return torch.tensor(weights, dtype=torch.float64, device=device)


def _flops(model: FusedModel, phase: Phase, config: FitConfig) -> ModelFlops:
    """Model FLOPs; a tower that is not run counts nothing, one that is frozen its forward pass."""

    def passes(tower: TowerName) -> int:
        if tower not in config.modalities or config.keeps_features:
            return 0
        return 3 if _learns(config, tower) else 1

    counted = ModelFlops.of(model, phase)
    own = 2.0 * sum(w.numel() for name, w in model.named_parameters() if not name.startswith(("image_t", "text_t")))
    return replace(counted, image_passes=passes("image"), text_passes=passes("text"), own_forward=own)


def _learns(config: FitConfig, tower: TowerName) -> bool:
    trained = config.encoder.train
    return tower in config.modalities and (trained == "all" or (isinstance(trained, dict) and tower in trained))


def _freeze(model: FusedModel, config: FitConfig) -> None:
    """Turns gradients off for all that no loss reaches, or that the config freezes, and evaluates what is frozen."""
    model.log_logit_scale.requires_grad_(False)
    if model.logit_bias is not None:
        model.logit_bias.requires_grad_(False)
    trained = config.encoder.train
    for name in TOWERS:
        tower: nn.Module = getattr(model, f"{name}_tower")
        last = trained[name] if isinstance(trained, dict) and name in trained else None
        height = heights(tower)
        for path, parameter in tower.named_parameters():
            learns = _learns(config, name) and (last is None or height[path] <= last)
            parameter.requires_grad_(learns)
        _evaluate_frozen(tower)


def _evaluate_frozen(module: nn.Module) -> None:
    """Evaluates what does not learn. What has no weights (dropout) goes with what it stands in."""
    if not any(parameter.requires_grad for parameter in module.parameters()):
        module.eval()
        return
    for child in module.children():
        if any(True for _ in child.parameters()):
            _evaluate_frozen(child)
