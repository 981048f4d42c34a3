"""A fitted model as one program: pictures, token ids, cells and presence in, predictions in their units out.

Shapes: B rows, S image size, C channels, L tokens, K numbers, G categories, M modalities, D embedding, O raw outputs.
"""

import copy
from collections.abc import Mapping
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from clipx.config.fit import FitConfig
from clipx.export.fitted_settings import CATEGORIES, IDS, MASK, NUMBERS, PICTURES, PRESENCE, output_name
from clipx.export.plain import padded_length, plain_image, plain_text
from clipx.export.programs import conversion_error, quiet, without_origin
from clipx.export.serving import own_padding
from clipx.models.fused import KEPT
from clipx.pretrained.fitted import Fitted
from clipx.pretrained.predictions import ClassPrediction, LabelsPrediction, NumberPrediction, predictions
from clipx.types import Batch

_ROWS, _TOKENS = 3, 5
"""Of the example that the program is made with: no dimension is 1, for that would be taken as fixed."""


class FittedGraph(nn.Module):
    """Maps the inputs that fitted.json names to its outputs, both by their names.

    What is absent is replaced before a tower sees it: anything may stand there, also what no tower takes.
    """

    mean_C: Tensor
    std_C: Tensor
    mean_K: Tensor
    std_K: Tensor
    size_G: Tensor

    def __init__(self, fitted: Fitted) -> None:
        super().__init__()
        model, config = fitted.model, fitted.fit_config
        self.config = config
        if "image" in config.modalities:
            self.image = plain_image(model.image_tower, unit_length=True)
            self.register_buffer("mean_C", 255 * torch.tensor(config.model.image.mean))
            self.register_buffer("std_C", 255 * torch.tensor(config.model.image.std))
        if "text" in config.modalities:
            pad = own_padding(fitted)
            self.text = plain_text(model.text_tower, unit_length=True, pad=None if pad is None else pad[1])
        towers = {id(tower): nn.Identity() for tower in (model.image_tower, model.text_tower)}
        self.fused = copy.deepcopy(model, towers).cpu().float()  # a copy without the towers, whose vectors are kept
        numbers, categories = config.numbers.values(), config.categories.values()
        self.register_buffer("mean_K", torch.tensor([part.mean for part in numbers], dtype=torch.float64))
        self.register_buffer("std_K", torch.tensor([part.std for part in numbers], dtype=torch.float64))
        self.register_buffer("size_G", torch.tensor([len(part.classes or ()) for part in categories]))
        self.eval()

    def forward(
        self,
        *,
        presence: Tensor,
        pictures: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        numbers: Tensor | None = None,
        categories: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """For dtypes, shapes and meanings see fitted.json; an input that the model has no use for is None."""
        there = dict(zip(self.config.modalities, (presence > 0.5).unbind(1), strict=True))
        columns = {"presence_BM": (presence > 0.5).float()}
        if pictures is not None:
            columns[KEPT["image"]] = self._embed_pictures(pictures, there["image"])
        if input_ids is not None:
            columns[KEPT["text"]] = self._embed_texts(input_ids, attention_mask, there["text"])
        if numbers is not None:
            columns["numbers_BK"] = ((numbers - self.mean_K) / self.std_K).float()
        if categories is not None:
            known_BG = (categories >= 0) & (categories < self.size_G)
            columns["categories_BC"] = torch.where(known_BG, categories, -1)
        raw_BO = self.fused(_batch(columns), seed=0).raw_BO
        return {output_name(self.config, name): values for name, values in outputs_of(self.config, raw_BO).items()}

    def _embed_pictures(self, pictures_BSSC: Tensor, there_B: Tensor) -> Tensor:
        pictures_BSSC = torch.where(there_B[:, None, None, None], pictures_BSSC, 0)
        pixels_BSSC = (pictures_BSSC.float() - self.mean_C) / self.std_C
        embeddings_BD: Tensor = self.image(pixels_BSSC.permute(0, 3, 1, 2))
        return embeddings_BD

    def _embed_texts(self, ids_BL: Tensor, mask_BL: Tensor | None, there_B: Tensor) -> Tensor:
        ids_BL = torch.where(there_B[:, None], ids_BL, 0)
        if mask_BL is not None:
            first_1L = (torch.arange(ids_BL.shape[1]) == 0)[None].long()  # a text has one token at least
            mask_BL = torch.where(there_B[:, None], mask_BL, first_1L)
        embeddings_BD: Tensor = self.text(ids_BL) if mask_BL is None else self.text(ids_BL, mask_BL)
        return embeddings_BD


def _batch(columns: Mapping[str, Tensor]) -> Batch:
    """A batch whose pictures and texts are vectors already."""
    presence_BM = columns["presence_BM"]
    none_B = torch.zeros_like(presence_BM[:, 0], dtype=torch.int64)
    return Batch(
        index=0,
        images_IHWC=none_B,
        tokens_T=none_B,
        lengths_B=none_B,
        max_length=0,
        sample_id_I=none_B,
        slot_I=none_B,
        source_I=none_B,
        columns=columns,
    )


def outputs_of(config: FitConfig, raw_BO: Tensor) -> dict[str, Tensor]:
    """Predictions by target: numbers in float64, for their units may need it; probabilities in float32."""
    found: dict[str, Tensor] = {}
    for name, prediction in predictions(config.heads, raw_BO).items():
        match prediction:
            case NumberPrediction(value_B):
                found[name] = value_B
            case ClassPrediction(probability_BK=probability_BK) | LabelsPrediction(probability_BL=probability_BK):
                found[name] = probability_BK.float()
            case _:
                assert_never(prediction)
    return found


def free_axes(config: FitConfig) -> dict[str, tuple[str, ...]]:
    """The program's inputs in their order, each with the names of its first axes where they are free."""
    axes: dict[str, tuple[str, ...]] = {PRESENCE: ("batch",)}
    if "image" in config.modalities:
        axes[PICTURES] = ("batch",)
    if "text" in config.modalities:
        if padded_length(config.model.text) is None:
            axes |= dict.fromkeys((IDS, MASK), ("batch", "sequence"))
        else:
            axes[IDS] = ("batch",)
    axes |= {NUMBERS: ("batch",)} if config.numbers else {}
    return axes | ({CATEGORIES: ("batch",)} if config.categories else {})


@torch.no_grad()
def fitted_program(fitted: Fitted) -> ExportedProgram:
    """The program, for any number of rows and any length of text from 2 tokens to the context length.

    Raises:
        RunError: torch.export does not take the model.
    """
    config = fitted.fit_config
    example, longest = _example(config), config.model.text.context_length
    dims: dict[str, Any] = {"batch": Dim("batch"), "sequence": Dim("sequence", min=2, max=longest)}
    shapes = {
        name: {place: dims[axis] for place, axis in enumerate(axes) if axis == "batch" or longest > 2}
        for name, axes in free_axes(config).items()
    }
    try:
        with quiet():
            graph = FittedGraph(fitted)
            return without_origin(torch.export.export(graph, (), example, dynamic_shapes=shapes))
    except Exception as error:  # a model may hold anything
        raise conversion_error(error, "torch.export does not take the fitted model") from error


def _example(config: FitConfig) -> dict[str, Tensor]:
    """Inputs of a few rows that have everything."""
    size, text = config.model.image.image_size, config.model.text
    length = padded_length(text) or min(_TOKENS, text.context_length)
    ones_BL = torch.ones(_ROWS, length, dtype=torch.int64)
    every = {
        PRESENCE: torch.ones(_ROWS, len(config.modalities)),
        PICTURES: torch.zeros(_ROWS, size, size, 3, dtype=torch.uint8),
        IDS: ones_BL,
        MASK: ones_BL.clone(),
        NUMBERS: torch.zeros(_ROWS, len(config.numbers), dtype=torch.float64),
        CATEGORIES: torch.zeros(_ROWS, len(config.categories), dtype=torch.int64),
    }
    return {name: every[name] for name in free_axes(config)}
