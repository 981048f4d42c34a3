"""An objective that no file of clipx knows: python examples/own_objective.py CONFIG.yaml [KEY=VALUE ...]

Images learn their captions (a coupled loss) and a score that stands in each sample's json (a column, a term, a figure).
"""

import json
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, arange, nn
from torch.nn.functional import cross_entropy

from clipx.config.load import load_config
from clipx.data.columns import ColumnSpec, RawSample
from clipx.data.decode import UndecodableError
from clipx.distributed.collectives import all_gather_with_gradient, rank, world_size
from clipx.losses.cost import tiled_cost
from clipx.models.clip import CLIP, build_model
from clipx.objectives.flops import ModelFlops
from clipx.objectives.objective import CoupledLoss, Objective, Share, Term
from clipx.train.trainer import train
from clipx.types import Batch, Embeddings


class ScoreReader:
    columns = {"score_B": ColumnSpec(np.dtype(np.float32))}
    extensions = frozenset({"json"})

    def read(self, sample: RawSample) -> dict[str, np.ndarray]:
        try:
            return {"score_B": np.full(len(sample.texts), json.loads(sample.members["json"])["score"], np.float32)}
        except (KeyError, ValueError) as error:
            raise UndecodableError("no score in its json") from error


@dataclass(frozen=True, kw_only=True)
class Outputs(Embeddings):
    predicted_B: Tensor


class ScoredCLIP(CLIP):
    def __init__(self, image_tower: Any, **options: Any) -> None:
        super().__init__(image_tower, **options)
        self.head = nn.Linear(image_tower.projection.out_features, 1)

    def forward(self, batch: Batch, *, seed: int, patch_drop: float = 0.0) -> Outputs:
        embeddings = super().forward(batch, seed=seed, patch_drop=patch_drop)
        return Outputs(**vars(embeddings), predicted_B=self.head(embeddings.image_BD)[:, 0])


def captions_share(out: Outputs, batch: Batch, group: Any) -> Share:
    logits_BG = out.logit_scale * out.image_BD @ all_gather_with_gradient(out.text_BD, group).T.type_as(out.logit_scale)
    label_B = rank(group) * len(batch) + arange(len(batch), device=logits_BG.device)
    return Share(cross_entropy(logits_BG, label_B, reduction="sum") / (world_size(group) * len(batch)))


def score_total(outputs: Outputs, piece: Batch) -> Share:
    error_B = outputs.predicted_B - piece.columns["score_B"]
    return Share(error_B.square().sum(), {"score_error": error_B.abs().sum()})


class ScoredCaptions(Objective):
    column_readers = (ScoreReader(),)
    terms = {"score": Term(total=score_total, count=len, weight=0.5)}

    def __init__(self, config: Any, phase: Any, *, vocab_size: int) -> None:
        self.model = build_model(config.model, vocab_size=vocab_size, seed=config.seed, kind=ScoredCLIP)
        self.flops, self.seed = ModelFlops.of(self.model, phase), config.seed
        cost = partial(tiled_cost, num_products=3, num_passes=1, exchange="gather")
        self.coupled = {"captions": CoupledLoss(share=captions_share, cost=cost)}

    def forward(self, model: nn.Module, piece: Batch, *, for_terms: bool) -> Outputs:
        return model(piece, seed=self.seed)


if __name__ == "__main__":
    sys.exit(train(load_config([sys.argv[1]], sys.argv[2:]), objective=ScoredCaptions))
