"""What stored teachers add to CLIP's objective: columns of every sample, and the loss that compares with them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.distributed import ProcessGroup

from clipx.config.loss import TeacherConfig
from clipx.config.schema import RunConfig
from clipx.data.columns import ColumnReader
from clipx.data.teacher_columns import image_column, text_column
from clipx.losses.distill import DistillLoss, Teacher
from clipx.objectives.objective import CoupledLoss, Share
from clipx.types import Batch, Embeddings


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """The loss `distill`, and what it reads."""

    names: Sequence[str]
    """Of the teachers, in the order of the loss."""
    reader: ColumnReader
    """Gives `image_column` and `text_column` of each."""
    loss: DistillLoss
    weight: float

    @property
    def coupled(self) -> CoupledLoss:
        """The loss for the trainer."""
        return CoupledLoss(share=self.share, cost=self.loss.cost, weight=self.weight)

    def share(self, embeddings: Embeddings, batch: Batch, group: ProcessGroup | None) -> Share:
        """The loss, and each teacher's divergence as the figure `distill_NAME`.

        An image's embedding stands in each of its rows, as the student's does.
        """
        device = embeddings.image_BD.device
        image_IE, text_BE = (
            torch.cat([batch.columns[column(name)].to(device, non_blocking=True) for name in self.names], dim=1)
            for column in (image_column, text_column)
        )
        captions = batch.captions_per_image
        image_BE = image_IE if captions == 1 else image_IE.repeat_interleave(captions, dim=0)
        share, of_teachers_K = self.loss(embeddings, image_BE=image_BE, text_BE=text_BE, group=group)
        figures = zip(self.names, of_teachers_K.unbind(), strict=True)
        return Share(share, {f"distill_{name}": divergence for name, divergence in figures})


def build_distillation(config: RunConfig) -> Distillation | None:
    """What the config says of it; None if nothing.

    Raises:
        InputError: the store is not finished, or has no teacher of such a name.
    """
    distill = config.loss.terms.distill
    if distill is None:
        return None
    from clipx.data.teachers import teachers_of  # most runs have none

    store = teachers_of(config)
    assert store is not None, "the config's rules want teachers"
    asked = distill.teachers or dict.fromkeys(store.names, TeacherConfig())
    reader = store.column_reader(tuple(asked))
    teachers = [
        Teacher(width=store.dims[name], logit_scale=one.logit_scale or store.logit_scales[name], weight=one.weight)
        for name, one in asked.items()
    ]
    return Distillation(
        names=tuple(asked),
        reader=reader,
        loss=DistillLoss(teachers, exchange=config.loss.exchange, tile_size=config.loss.tile_size),
        weight=distill.weight,
    )
