"""Model FLOPs of training: what MFU and `clipx plan` count."""

from dataclasses import dataclass

from clipx.config.phases import Phase
from clipx.config.select import SelectConfig
from clipx.models.clip import CLIP
from clipx.models.flops import TextFlops, image_flops, text_flops
from clipx.types import Batch


@dataclass(frozen=True)
class ModelFlops:
    """Floating-point operations that a step needs on some pairs: three forward passes, one for a locked tower."""

    image_forward: float
    image_passes: int
    text: TextFlops
    text_passes: int
    own_forward: float = 0.0
    """FLOPs of the forward pass of what an objective adds to the towers, for one pair; it trains."""

    @classmethod
    def of(cls, model: CLIP, phase: Phase, *, own_forward: float = 0.0) -> "ModelFlops":
        """Counts them for the towers and the inputs of a phase."""
        return cls(
            image_forward=image_flops(model.image_tower, image_size=phase.image_size, patch_drop=phase.patch_drop),
            image_passes=1 if "image" in phase.locked else 3,
            text=text_flops(model.text_tower),
            text_passes=1 if "text" in phase.locked else 3,
            own_forward=own_forward,
        )

    @property
    def image(self) -> float:
        """FLOPs of training on one image, without its texts."""
        return self.image_passes * self.image_forward

    @property
    def runs_towers(self) -> bool:
        """Whether a step runs a tower: not where vectors were computed before, or are those of a table alone."""
        return self.image_passes + self.text_passes > 0

    def __call__(self, batch: Batch) -> float:
        """FLOPs of a batch on the host."""
        text = self.text.forward(
            num_texts=len(batch),
            num_tokens=batch.tokens_T.shape[0],
            sum_squared_lengths=int(batch.lengths_B.square().sum()),
        )
        return self.image * len(batch.slot_I) + self.text_passes * text + 3 * self.own_forward * len(batch)


def scored_image_flops(select: SelectConfig, model: CLIP, phase: Phase) -> float:
    """FLOPs of the forward pass by which batches are chosen, for one picture that is read; its text not counted.

    The model is not yet distributed over ranks. 0 if the scores need no learner.
    """
    if not select.needs_learner:
        return 0.0
    size = phase.image_size if select.image_size is None else min(select.image_size, phase.image_size)
    return image_flops(model.image_tower, image_size=size, patch_drop=phase.patch_drop)
