"""Evaluates a fitted model on held-out samples: figures of each target, with all inputs and without each modality.

The names of the figures are those of `clipx.config.fit_metrics`. A figure counts the rows that have the target; those
that compare modalities, the rows that have all of them. Rank 0 computes the figures of all rows, whatever the number of
ranks.

Shapes: N rows, M modalities, S outputs of one target, O those of all, T columns of all targets, P passes.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import assert_never

from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.config.fit import FitConfig
from clipx.config.fit_inputs import Head
from clipx.config.fit_metrics import complete, figure_name, taken_away, without
from clipx.data.in_order import InOrder
from clipx.distributed.collectives import gather_objects
from clipx.errors import some_names
from clipx.evaluate.options import Evaluation
from clipx.evaluate.supervised_metrics import class_metrics, label_metrics, number_metrics
from clipx.evaluate.supervised_rows import predicted_rows
from clipx.evaluate.trivial import constant_outputs
from clipx.losses.supervised import num_present
from clipx.models.fused import FusedModel
from clipx.objectives.supervised import loss_sum
from clipx.pretrained.predictions import (
    ClassPrediction,
    LabelsPrediction,
    NumberPrediction,
    Prediction,
    in_units,
    predictions,
)
from clipx.types import BadSample

log = logging.getLogger(__name__)


def supervised(
    model: FusedModel,
    config: FitConfig,
    blocks: Iterable[InOrder],
    *,
    group: ProcessGroup | None,
    between: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Predicts held-out samples, and compares; every rank of `group` must call it.

    Args:
        model: bare, or as FSDP2 shards it; its modes are restored.
        config: resolved.
        blocks: this rank's, of at most `clipx.evaluate.supervised_rows.BLOCK` samples; as many on every rank.
        group: all ranks.
        between: called before every block.

    Returns:
        The figures by name, the same on all ranks; what the samples do not define is left out. Derived are those of
        predictions that are the same for every sample (`clipx.evaluate.trivial`).
    """
    passes = taken_away(config.modalities)
    rows = predicted_rows(model, config.modalities, blocks, passes=passes, group=group, between=between)
    found = None
    if rows is not None:
        metrics: dict[str, float] = {}
        whole_N = rows.there_NM.all(1)
        for raw_NO, modality in zip(rows.raw_PNO, passes, strict=True):
            if modality is None:
                metrics |= figures(config.heads, raw_NO, rows.targets_NT)
            if len(passes) > 1:
                named = complete if modality is None else partial(without, modality=modality)
                of_whole = figures(config.heads, raw_NO[whole_N], rows.targets_NT[whole_N])
                metrics |= {named(name): value for name, value in of_whole.items()}
        constant_NO = constant_outputs(config).expand(len(rows.targets_NT), -1)
        trivial = figures(config.heads, constant_NO, rows.targets_NT)
        found = Evaluation(task="supervised", metrics=metrics, derived=trivial)
        _say_bad(rows.bad, num_good=len(rows.targets_NT))
    evaluation = gather_objects(found, group)[0]
    assert isinstance(evaluation, Evaluation)
    return evaluation


def figures(heads: Sequence[Head], raw_NO: Tensor, targets_NT: Tensor) -> dict[str, float]:
    """The figures of raw outputs: `loss`, and `TARGET/FIGURE` for every target.

    Args:
        heads: of the targets.
        raw_NO: of `clipx.models.fused.FusedModel`.
        targets_NT: as the batch's column has them, NaN where absent.
    """
    found: dict[str, float] = {}
    losses: list[float] = []
    for head in heads:
        present_N = ~targets_NT[:, head.columns].isnan().any(1)
        if not present_N.any():
            continue
        own_NO, own_NT = raw_NO[present_N].double(), targets_NT[present_N]
        loss = float(loss_sum(head, own_NO, own_NT) / num_present(own_NT[:, head.columns]))
        losses.append(head.target.weight * loss)
        own = {**_metrics(head, own_NO, own_NT[:, head.columns]), "loss": loss}
        found |= {figure_name(head.name, metric): value for metric, value in own.items()}
    found = ({"loss": sum(losses)} if losses else {}) | found
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _metrics(head: Head, raw_NO: Tensor, targets_NS: Tensor) -> dict[str, float]:
    """The figures of one target over the rows that have it."""
    predicted: Prediction = predictions([head], raw_NO)[head.name]
    match predicted:
        case ClassPrediction(probability_BK=probability_NK):
            return class_metrics(probability_NK.numpy(), targets_NS[:, 0].long().numpy())
        case NumberPrediction(value_B=value_N):
            assert head.target.type == "number"
            return number_metrics(value_N.numpy(), in_units(head.target, targets_NS[:, 0]).numpy())
        case LabelsPrediction(probability_BL=probability_NL):
            return label_metrics(probability_NL.numpy(), (targets_NS > 0).numpy())
        case _:
            assert_never(predicted)


def _say_bad(bad: Sequence[BadSample], *, num_good: int) -> None:
    if bad:
        names = some_names(f"{sample.key} of {sample.shard} ({sample.reason})" for sample in bad)
        log.warning(
            "%d of %d held-out samples cannot be read and are left out: %s", len(bad), len(bad) + num_good, names
        )
