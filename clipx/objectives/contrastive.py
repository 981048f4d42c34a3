"""CLIP's objective: two towers and one contrastive loss over the global batch (arXiv 2103.00020, figure 3).

Beside it, where the config says so, the divergence from stored teachers (`clipx.objectives.distillation`).
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from clipx.distributed import collectives
from clipx.losses import ContrastiveLoss
from clipx.models.clip import CLIP
from clipx.objectives.distillation import Distillation
from clipx.objectives.flops import ModelFlops
from clipx.objectives.objective import CoupledLoss, Objective, Share
from clipx.types import Batch, Embeddings


class ContrastiveObjective(Objective):
    """Two towers and one contrastive loss.

    Args:
        model: both towers, bare.
        loss: over all pairs.
        flops: of a batch.
        seed: of the run; patch dropout draws from it.
        patch_drop: share of the patches that an image leaves out.
        distillation: a second loss beside it, `distill`.
    """

    def __init__(
        self,
        model: CLIP,
        *,
        loss: ContrastiveLoss,
        flops: ModelFlops,
        seed: int,
        patch_drop: float = 0.0,
        distillation: Distillation | None = None,
    ) -> None:
        self.model = model
        self.flops = flops
        self._loss = loss
        self._seed = seed
        self._patch_drop = patch_drop
        self.coupled = {"contrastive": CoupledLoss(share=partial(contrastive_share, loss), cost=loss.cost)}
        if distillation is not None:
            self.coupled["distill"] = distillation.coupled
            self.column_readers = (distillation.reader,)
            self.coupled_columns = frozenset(distillation.reader.columns)

    def check(self, device: torch.device) -> None:
        """See `Objective.check`."""
        self._loss.check(device)

    def forward(self, model: nn.Module, piece: Batch, *, for_terms: bool) -> Embeddings:
        """The embeddings of a piece."""
        embeddings: Embeddings = model(piece, seed=self._seed, patch_drop=self._patch_drop)
        return embeddings


def contrastive_share(loss: ContrastiveLoss, embeddings: Embeddings, batch: Batch, group: ProcessGroup | None) -> Share:
    """The loss, and how much a rank's images, and its texts, are alike (`mean_cosine`), averaged over ranks."""
    size = collectives.world_size(group)
    share = loss(embeddings, group=group, ids_B=no_negatives(batch), positive_ids_B=positives(batch))
    sides = {"image_cosine": embeddings.image_BD, "text_cosine": embeddings.text_BD}
    return Share(share, {name: mean_cosine(x_BD) / size for name, x_BD in sides.items()})


def no_negatives(batch: Batch) -> Tensor:
    """What says that image and text of two pairs are no negatives, as `ContrastiveLoss` takes it.

    int64 (B,), the sample, if captions have no groups. Else an image is no negative of a text that is equal to one of
    its own: (B, 2), sample and text; with K captions per image, where those of a sample are positives, (B, 2, K): the K
    texts of the pair's image, and its own text K times.
    """
    texts_B, captions = batch.group_id_B, batch.captions_per_image
    if texts_B is None:
        return sample_of_pair(batch)
    if captions == 1:
        return torch.stack([batch.sample_id_I, texts_B], dim=1)
    of_image_BK = texts_B.unflatten(0, (-1, captions)).repeat_interleave(captions, dim=0)
    return torch.stack([of_image_BK, texts_B[:, None].expand_as(of_image_BK)], dim=1)


def sample_of_pair(batch: Batch) -> Tensor:
    """int64 (B,): the sample of each pair."""
    captions = batch.captions_per_image
    return batch.sample_id_I if captions == 1 else batch.sample_id_I.repeat_interleave(captions)


def positives(batch: Batch) -> Tensor | None:
    """int64 (B,): all captions of an image are its positives; None means that each has only its own."""
    return sample_of_pair(batch) if batch.captions_per_image > 1 else None


def mean_cosine(x_BD: Tensor) -> Tensor:
    """The mean cosine between two different rows of unit length, 0-dim float32: (|sum of rows|^2 - B) / (B (B - 1)).

    Near 1 the tower sees no difference any more.

    Args:
        x_BD: rows of unit length; 0 if there is one.
    """
    num_rows = x_BD.shape[0]
    squared = x_BD.detach().sum(dim=0, dtype=torch.float32).square().sum()
    return (squared - num_rows) / max(num_rows * (num_rows - 1), 1)
