"""Contrastive losses: one paper, one file. A loss knows no model, no config and no global rank."""

from typing import Protocol

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.losses.cost import LossCost, LossShape
from clipx.types import Embeddings


class ContrastiveLoss(Protocol):
    """A loss that couples all pairs of the global batch, and what it costs."""

    def check(self, device: torch.device) -> None:
        """Looks, before any work, at what a call on this device would find.

        Raises:
            InputError: it could not run.
        """

    def cost(self, shape: LossShape) -> LossCost:
        """What one call takes on every rank: for `micro_batch_size: auto` and `clipx plan`."""

    def __call__(
        self,
        embeddings: Embeddings,
        *,
        group: ProcessGroup | None = None,
        ids_B: Tensor | None = None,
        positive_ids_B: Tensor | None = None,
    ) -> Tensor:
        """This rank's share of the loss over the global batch; the shares of all ranks sum to the loss.

        DDP and FSDP average gradients over ranks, so the caller runs `backward(W * share)`, with the same factor on
        every rank. Each parameter's gradient is then that of the loss over the global batch, the multiplier's
        (`logit_scale`) included: nothing is summed over ranks beforehand.

        Args:
            embeddings: B pairs of this rank (the same B on every rank); pair i of rank r is pair r B + i of G = W B.
            group: the ranks that share the global batch; None means that this process has all of it.
            ids_B: int64 (B,); pairs with equal ids are not each other's negatives. Or (B, C): C ids of each pair, of
                which one that is equal, in the same place, is enough. Or (B, 2, C): those of its image and those of its
                text; an image and a text are no negatives where one is equal, as one of a pair's own must be.
            positive_ids_B: int64 (B,); pairs with equal ids are each other's positives (which outweighs `ids_B`).

        Returns:
            0-d, in at least float32.
        """
