"""What the trained model itself computes for the pictures and texts of a comparison.

Shapes: B images, N texts, S image size, D embedding, P tokens of an image, C channels of a tower.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from clipx.export.parity.consumer import Outputs, batches
from clipx.pretrained import Pretrained

NUM_HIDDEN = 64
"""Pictures whose hidden states are compared: a state has as many numbers as a picture."""


@torch.no_grad()
def our_outputs(pretrained: Pretrained, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Outputs:
    """The outputs of the trained model; every field is given, but for hidden states of a trunk without blocks."""
    pixels: list[Tensor] = []
    images: list[Tensor] = []
    hidden: list[Tensor] = []
    for some in batches(pictures):
        squares_BHWC = torch.stack([pretrained.preprocess(picture) for picture in some])
        pixels.append(pretrained.model.image_tower.normalize(squares_BHWC).permute(0, 3, 1, 2))
        with _LastButOne(pretrained) as state:
            images.append(pretrained.encode_image(squares_BHWC))
        if state.hidden_BPC is not None and sum(map(len, hidden)) < NUM_HIDDEN:
            hidden.append(state.hidden_BPC)
    tokens_T, lengths_N = pretrained.tokenize(texts)
    image_BD = torch.cat(images)
    text_ND = torch.cat([pretrained.encode_text(some) for some in batches(texts)])
    logits_BN = _logits(pretrained, image_BD, text_ND)
    return Outputs(
        pixels_B3SS=torch.cat(pixels),
        tokens=[row.tolist() for row in tokens_T.split(lengths_N.tolist())],
        image_BD=image_BD,
        text_ND=text_ND,
        logits_BN=logits_BN,
        hidden_BPC=torch.cat(hidden)[:NUM_HIDDEN] if hidden else None,
        scores_BN=logits_BN.softmax(dim=1) if pretrained.model.logit_bias is None else logits_BN.sigmoid(),
    )


class _LastButOne:
    """Keeps what goes into the last block of the image tower, within a context."""

    hidden_BPC: Tensor | None = None

    def __init__(self, pretrained: Pretrained) -> None:
        blocks = getattr(cast(Any, pretrained.model.image_tower), "trunk", None)
        self._blocks = getattr(blocks, "blocks", None)

    def __enter__(self) -> "_LastButOne":
        self._hook = self._blocks[-1].register_forward_pre_hook(self._keep) if self._blocks else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._hook is not None:
            self._hook.remove()

    def _keep(self, _block: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.hidden_BPC = arguments[0]


def _logits(pretrained: Pretrained, image_BD: Tensor, text_ND: Tensor) -> Tensor:
    logits_BN = pretrained.logit_scale * image_BD @ text_ND.T
    bias = pretrained.model.logit_bias
    return logits_BN if bias is None else logits_BN + bias.detach()
