"""A fitted model as one program: pictures, token ids, cells and presence in, predictions in their units out.

Shapes: B rows, S image size, L tokens, K numbers, C categories, M modalities, D embedding, O raw outputs.
"""

from typing import cast

import torch
from torch import Tensor, nn

from clipx.config.fit import FitConfig
from clipx.export.fitted_settings import IDS, MASK, PICTURES, PRESENCE
from clipx.export.plain import plain_image, plain_text
from clipx.export.serving import own_padding
from clipx.models.fused import FusedModel
from clipx.pretrained import Pretrained

_ROWS, _TOKENS = 3, 5
"""Of the example that the program is made with: no dimension is 1, for that would be taken as fixed."""


class FittedGraph(nn.Module):
    """Maps the inputs that fitted.json names to its outputs, by their names.

    What is absent is replaced before a tower sees it: any bytes may stand there, also such as no tower takes.

    Args:
        pretrained: of a fitted model.
        config: resolved.
    """

    mean_C: Tensor
    std_C: Tensor
    number_mean_K: Tensor
    number_std_K: Tensor
    num_classes_C: Tensor

    def __init__(self, pretrained: Pretrained, config: FitConfig) -> None:
        super().__init__()
        model, (image, table) = cast(FusedModel, pretrained.model), (config.model.image, config.numbers.values())
        self.config, self.places = config, {name: place for place, name in enumerate(config.modalities)}
        if "image" in self.places:
            self.image = plain_image(model.image_tower, unit_length=True)
            self.register_buffer("mean_C", 255 * torch.tensor(image.mean))
            self.register_buffer("std_C", 255 * torch.tensor(image.std))
        if "text" in self.places:
            pad = own_padding(pretrained)
            self.text = plain_text(model.text_tower, unit_length=True, pad=None if pad is None else pad[1])
        self.fused = model.without_towers()
        self.register_buffer("number_mean_K", torch.tensor([part.mean for part in table], dtype=torch.float64))
        self.register_buffer("number_std_K", torch.tensor([part.std for part in table], dtype=torch.float64))
        self.register_buffer(
            "num_classes_C", torch.tensor([len(part.classes or ()) for part in config.categories.values()])
        )

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """For names, dtypes and shapes see fitted.json."""
        presence_BM = (inputs[PRESENCE] > 0.5).float()
        vectors: dict[str, Tensor] = {}
        if "image" in self.places:
            vectors["image"] = self._embed_pictures(inputs[PICTURES], self._there(presence_BM, "image"))
        if "text" in self.places:
            there_B = self._there(presence_BM, "text")
            vectors["text"] = self._embed_texts(inputs[IDS], inputs.get(MASK), there_B)
