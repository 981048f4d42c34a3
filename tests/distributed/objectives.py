"""Objectives that clipx does not have, and how any objective is held against its textbook."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from shard_files import write_shards
from tiny_clip import encoded, picture
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clipx.config.phases import phase_at
from clipx.config.schema import RunConfig
from clipx.data.columns import ColumnSpec, RawSample
from clipx.data.tokenizer import build_tokenizer
from clipx.distributed.parallelize import full_tensor
from clipx.distributed.runtime import start_runtime
from clipx.losses.info_nce import InfoNCELoss
from clipx.models.clip import CLIP, build_model
from clipx.objectives.contrastive import ContrastiveObjective
from clipx.objectives.flops import ModelFlops
from clipx.objectives.objective import BuildObjective, Objective, Share, Term
from clipx.train.build import build_run
from clipx.train.metrics.step_metrics import Clock
from clipx.types import Batch, Embeddings

Grads = dict[str, Tensor]


def write_scored(folder: Path) -> Path:
    """90 images with a caption and a score in their json; the seventh has none, every third is null."""
    samples = {
        i: {
            "png": encoded(picture(i)),
            "txt": f"number {i}".encode(),
            "json": json.dumps(
                {} if i == 7 else {"score": (i % 11) / 10, "target": None if i % 3 else i / 90}
            ).encode(),
        }
        for i in range(90)
    }
    write_shards(folder, [50, 40], replaced=samples)
    return folder


def in_float64(build: BuildObjective) -> BuildObjective:
    def built(config: RunConfig, phase: Any, *, vocab_size: int) -> Objective:
        objective = build(config, phase, vocab_size=vocab_size)
        objective.model.double()
        return objective

    return built


def step_gradients(config: RunConfig, build: BuildObjective) -> Grads:
    """Gradients of the first step in float64, as the ranks have them after their exchange, and the loss."""
    with start_runtime(config) as runtime:
        run = build_run(config, runtime, build=in_float64(build))
        batch = next(run.batches())
        total = run.stepper._forward_backward(run.stepper._send(batch, []), Clock(runtime.device))["loss"].clone()
        if dist.is_initialized():
            dist.all_reduce(total)
        weights = run.stepper.objective.model.named_parameters()
        return {name: full_tensor(weight.grad) for name, weight in weights if weight.grad is not None} | {"loss": total}


def textbook_gradients(config: RunConfig, build: BuildObjective, loss: Callable[[Any, Batch], Tensor]) -> Grads:
    """The same for the whole global batch at once, from one graph; parameters that the loss does not reach left out."""
    with start_runtime(config) as runtime:
        batch = next(build_run(config, runtime, build=build).batches())
    vocab_size = build_tokenizer(config.model.text).vocab_size
    objective = in_float64(build)(config, phase_at(config, 0), vocab_size=vocab_size)
    value = loss(objective.forward(objective.model, batch, for_terms=True), batch)
    value.backward()
    weights = objective.model.named_parameters()
    return {name: weight.grad for name, weight in weights if weight.grad is not None} | {"loss": value.detach()}


@dataclass(frozen=True, kw_only=True)
class Captions(Embeddings):
    logits_TV: Tensor | None


class Captioner(CLIP):
    """CLIP, and a decoder so small that each token knows the image and the token before it."""

    def __init__(self, image_tower: Any, **options: Any) -> None:
        super().__init__(image_tower, **options)
        width = image_tower.projection.out_features
        self.decoder = nn.ModuleList([nn.Embedding(64, width), nn.Linear(width, 64)])

    def forward(self, batch: Batch, *, seed: int, patch_drop: float = 0.0, decode: bool = True) -> Captions:
        embeddings = super().forward(batch, seed=seed, patch_drop=patch_drop)
        logits_TV = None
        if decode:
            image_TD = embeddings.image_BD.repeat_interleave(batch.lengths_B, dim=0, output_size=len(batch.tokens_T))
            logits_TV = self.decoder[1](torch.tanh(image_TD + self.decoder[0](batch.tokens_T % 64)))
        return Captions(**vars(embeddings), logits_TV=logits_TV)


def caption_sum(outputs: Captions, piece: Batch) -> Share:
    """Cross-entropy of the next token; the last one of a text has none."""
    assert outputs.logits_TV is not None
    next_T = piece.tokens_T.roll(-1) % 64
    keep_T = torch.ones_like(next_T)
    keep_T[piece.lengths_B.cumsum(0) - 1] = 0
    logits_TV = outputs.logits_TV.to(torch.promote_types(outputs.logits_TV.dtype, torch.float32))
    nll_T = cross_entropy(logits_TV, next_T, reduction="none") * keep_T
    return Share(nll_T.sum(), {"hits": ((outputs.logits_TV.argmax(1) == next_T) * keep_T).sum()})


class Captioning(ContrastiveObjective):
    """Contrastive, with the captions' cross-entropy beside it."""

    def __init__(self, config: RunConfig, phase: Any, *, vocab_size: int) -> None:
        model = build_model(config.model, vocab_size=vocab_size, seed=config.seed, kind=Captioner)
        flops = ModelFlops.of(model, phase, own_forward=1e6)
        super().__init__(model, loss=InfoNCELoss(tile_size=4), flops=flops, seed=config.seed)
        count = lambda batch: batch.tokens_T.shape[0] - len(batch)  # noqa: E731
        self.terms = {"captions": Term(total=caption_sum, count=count, weight=2.0)}

    def forward(self, model: nn.Module, piece: Batch, *, for_terms: bool) -> Captions:
        outputs: Captions = model(piece, seed=0, decode=for_terms)
        return outputs

    def block_lists(self) -> list[list[nn.Module]]:
        return [*self.model.block_lists(), []]


class TargetReader:
    """A number for each image, and whether it has one."""

    columns = {"target_I": ColumnSpec(np.dtype(np.float32)), "has_target_I": ColumnSpec(np.dtype(np.float32))}
    extensions = frozenset({"json"})

    def read(self, sample: RawSample) -> dict[str, np.ndarray]:
        target = json.loads(sample.members["json"]).get("target")
        values = (target or 0.0, float(target is not None))
        return {name: np.array([value], np.float32) for name, value in zip(self.columns, values, strict=True)}


@dataclass(frozen=True)
class Prediction:
    value_I: Tensor
    logit_scale: Tensor


class Regressor(CLIP):
    def __init__(self, image_tower: Any, **options: Any) -> None:
        super().__init__(image_tower, **options)
        self.head = nn.Linear(image_tower.projection.out_features, 1)

    def forward(self, batch: Batch, *, seed: int, patch_drop: float = 0.0) -> Prediction:  # type: ignore[override]
        embeddings = super().forward(batch, seed=seed, patch_drop=patch_drop)
        return Prediction(self.head(embeddings.image_BD + embeddings.text_BD)[:, 0], embeddings.logit_scale)


def squared_error(outputs: Prediction, piece: Batch) -> Share:
    error_I = (outputs.value_I - piece.columns["target_I"]) * piece.columns["has_target_I"]
    return Share(error_I.square().sum())


class Supervised(Objective):
    """No coupled loss: a target that only some samples have."""

    def __init__(self, config: RunConfig, phase: Any, *, vocab_size: int) -> None:
        self.model = build_model(config.model, vocab_size=vocab_size, seed=config.seed, kind=Regressor)
        self.flops = ModelFlops.of(self.model, phase)
        self.column_readers = (TargetReader(),)
        count = lambda batch: float(batch.columns["has_target_I"].sum())  # noqa: E731
        self.terms = {"target": Term(total=squared_error, count=count)}

    def forward(self, model: nn.Module, piece: Batch, *, for_terms: bool) -> Prediction:
        outputs: Prediction = model(piece, seed=0)
        return outputs


class Sparse(Supervised):
    """A target that only the first sample of the global batch counts, so that most pieces have none at all."""

    def __init__(self, config: RunConfig, phase: Any, *, vocab_size: int) -> None:
        super().__init__(config, phase, vocab_size=vocab_size)

        def total(outputs: Prediction, piece: Batch) -> Share:
            first = (piece.slot_I == 0).nonzero()
            if not len(first):
                return Share(torch.zeros((), dtype=outputs.value_I.dtype))
            return Share(0.1 * outputs.value_I[first].square().sum())

        count = lambda batch: 0.1 * float((batch.slot_I == 0).sum())  # noqa: E731
        self.terms = {"target": Term(total=total, count=count)}


def captioning_textbook(outputs: Any, batch: Batch) -> Tensor:
    logits = outputs.logit_scale * outputs.image_BD @ outputs.text_BD.T
    labels = torch.arange(len(batch))
    both = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    mean = caption_sum(outputs, batch).loss / (len(batch.tokens_T) - len(batch))
    return both + 2 * mean


def supervised_textbook(outputs: Any, batch: Batch) -> Tensor:
    return squared_error(outputs, batch).loss / batch.columns["has_target_I"].sum()


def sparse_textbook(outputs: Any, batch: Batch) -> Tensor:
    return outputs.value_I[0].square()


OBJECTIVES: dict[str, tuple[Any, Callable[[Any, Batch], Tensor]]] = {
    "captioning": (Captioning, captioning_textbook),
    "supervised": (Supervised, supervised_textbook),
    "sparse": (Sparse, sparse_textbook),
}
