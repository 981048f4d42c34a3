"""A model that predicts targets from pictures, texts and tables: towers, stand-ins for the absent, fusion, heads.

The encoders are CLIP's towers, so whatever handles a CLIP (locking, sharding, loading, encoding) handles this one.

Shape suffixes: B samples, M modalities, D embedding, K numbers, C categories, O outputs of all targets side by side.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clipx.config.fit import FitConfig, Fusion
from clipx.config.fit_inputs import HeadKind, Modality
from clipx.models.clip import CLIP, build_model
from clipx.models.fusion import Late, build_fusion
from clipx.models.fusion.fusion import widened
from clipx.models.head import Head
from clipx.models.slot_dropout import dropout_keys, number_sites
from clipx.models.table_tower import TableTower
from clipx.types import Batch

KEPT = {"image": "image_features_BD", "text": "text_features_BD"}
"""The columns of a batch that hold vectors of frozen towers, computed before."""


@dataclass(frozen=True, kw_only=True)
class FusedOutputs:
    """What the model gives for a batch."""

    raw_BO: Tensor
    """At least float32: logits of a class target, one scaled number, logits of labels; all targets side by side."""


@dataclass(frozen=True, kw_only=True)
class FusedLayout:
    """The parts of a fused model beside its towers."""

    modalities: tuple[Modality, ...]
    embed_dim: int
    num_numbers: int
    category_sizes: tuple[int, ...]
    targets: tuple[tuple[HeadKind, slice], ...]
    """Kind and outputs of each target."""
    fusion: Fusion
    hidden: tuple[int, ...]
    dropout: float
    translated: bool
    """Whether what stands in for a picture is the text's vector, moved, and the other way round."""


class FusedModel(CLIP):
    """Two towers, a table tower, a fusion and heads.

    The unit-length embeddings e of pictures and texts are standardised to z = (e - mean) / scale, by a mean vector and
    one scale of each modality that are measured when a run begins (`measured_as`) and never change. Where a modality is
    absent, z is replaced by a learned vector; or, `translated`, by the other's embedding moved by the difference of
    their means, the gap of arXiv 2203.02053: for a picture (e_text - mean_text) / scale_image. Nothing else of what is
    absent reaches an output. Fusion and heads compute in float32, outside of autocast.

    Args:
        image_tower, text_tower, towers: as of `CLIP`.
        layout: of all else.
    """

    def __init__(self, image_tower: Any, *, layout: FusedLayout, **towers: Any) -> None:
        super().__init__(image_tower, **towers)
        self.layout = layout
        num_modalities, dim = len(layout.modalities), layout.embed_dim
        self.table_tower = None
        if "table" in layout.modalities:
            self.table_tower = TableTower(layout.num_numbers, category_sizes=layout.category_sizes, dim=dim)
        # Parameters that never learn, and not buffers: an average of the weights and FSDP2 know parameters alone.
        self.mean_MD = nn.Parameter(torch.zeros(num_modalities, dim), requires_grad=False)
        self.scale_M = nn.Parameter(torch.ones(num_modalities), requires_grad=False)
        self.stand_in_MD = nn.Parameter(torch.zeros(num_modalities, dim))
        num_outputs = max(outputs.stop for _, outputs in layout.targets)
        head = partial(Head, dim, hidden=layout.hidden, num_outputs=num_outputs, dropout=layout.dropout)
        self.head: nn.Module
        if layout.fusion == "late":
            self.fusion = None
            self.head = Late([head() for _ in layout.modalities], layout.targets)
        else:
            self.fusion = build_fusion(layout.fusion, num_modalities=num_modalities, dim=dim, dropout=layout.dropout)
            self.head = head()
        number_sites(self)

    def forward(self, batch: Batch, *, seed: int, patch_drop: float = 0.0) -> FusedOutputs:  # type: ignore[override]
        """Predicts the targets of a batch or a part of one.

        Args:
            batch: with the columns of a fit run: presence_BM, and what its modalities are made of; vectors that were
                kept stand in the columns of `KEPT`, in place of pictures and texts.
            seed: of the run; dropout draws from (seed, batch.index, batch.slot_I), in training alone.
            patch_drop: is not used: what is predicted may be in any patch.
        """
        embeddings = [self._embedding(modality, batch) for modality in self.layout.modalities]
        keys_B = dropout_keys(seed, batch.index, batch.slot_I) if self.training else None
        with torch.autocast(self.mean_MD.device.type, enabled=False):
            vectors_BMD = torch.stack([widened(x_BD) for x_BD in embeddings], dim=1)
            return FusedOutputs(raw_BO=self._predict(vectors_BMD, batch.columns["presence_BM"], keys_B))

    def _embedding(self, modality: Modality, batch: Batch) -> Tensor:
        """The vectors of a modality (B, D), of what is absent, too."""
        if modality == "table":
            assert self.table_tower is not None
            numbers_BK = batch.columns.get("numbers_BK")
            with torch.autocast(self.mean_MD.device.type, enabled=False):
                vectors_BD: Tensor = self.table_tower(
                    None if numbers_BK is None else numbers_BK.to(self.mean_MD.dtype),
                    batch.columns.get("categories_BC"),
                )
            return vectors_BD
        if (kept_BD := batch.columns.get(KEPT[modality])) is not None:
            return kept_BD
        # Not by `self.encode_image`: under FSDP2 that is a forward pass of its own, after which weights are let go.
        if modality == "image":
            return CLIP.encode_image(self, batch.images_IHWC)
        return CLIP.encode_text(self, batch.tokens_T, batch.lengths_B, max_length=batch.max_length)

    def _predict(self, vectors_BMD: Tensor, presence_BM: Tensor, keys_B: Tensor | None) -> Tensor:
        """The raw outputs (B, O) of embeddings (B, M, D)."""
        filled_BMD = self._filled(vectors_BMD, presence_BM)
        if self.fusion is None:
            raw_BO: Tensor = self.head(filled_BMD, presence_BM, keys_B=keys_B)
        else:
            raw_BO = self.head(self.fusion(filled_BMD, presence_BM, keys_B=keys_B), keys_B)
        return raw_BO

    def _filled(self, vectors_BMD: Tensor, presence_BM: Tensor) -> Tensor:
        """Standardised vectors, with stand-ins for those that are absent."""
        there_BM1 = presence_BM[:, :, None] > 0
        # Before anything is computed with them: what an absent input holds must not reach a result, were it infinite.
        centred_BMD = torch.where(there_BM1, vectors_BMD - self.mean_MD, 0)
        scale_M1 = self.scale_M[:, None]
        stand_in_BMD = self.stand_in_MD.expand_as(vectors_BMD)
        if self.layout.translated:
            paired_BM1, moved_BMD = self._exchanged(there_BM1), self._exchanged(centred_BMD)
            stand_in_BMD = torch.where(paired_BM1, moved_BMD / scale_M1, stand_in_BMD)
        return torch.where(there_BM1, centred_BMD / scale_M1, stand_in_BMD)

    def _exchanged(self, values_BMN: Tensor) -> Tensor:
        """The values (B, M, N) with those of picture and text exchanged, and zeros for the table."""
        places = {name: place for place, name in enumerate(self.layout.modalities)}
        source = {"image": places["text"], "text": places["image"]}
        zeros_BN = torch.zeros_like(values_BMN[:, 0])
        # Not by a list as an index: torch would copy it to the device, and the host would wait for that.
        return torch.stack([values_BMN[:, source[name]] if name in source else zeros_BN for name in places], dim=1)

    @torch.no_grad()
    def embeddings(self, batch: Batch) -> Tensor:
        """The embeddings (B, M, D) before they are standardised, at least float32; zeros for the table."""
        rows = len(batch)
        zero_BD = self.mean_MD.new_zeros(rows, self.layout.embed_dim)
        found = [zero_BD if name == "table" else self._embedding(name, batch) for name in self.layout.modalities]
        return torch.stack([widened(x_BD) for x_BD in found], dim=1)

    @torch.no_grad()
    def measured_as(self, mean_MD: Tensor, scale_M: Tensor) -> None:
        """Sets what embeddings are standardised by; the table's vectors have a layer norm of their own."""
        for number, name in enumerate(self.layout.modalities):
            if name != "table":
                self.mean_MD[number] = mean_MD[number]
                self.scale_M[number] = scale_M[number]


def fused_layout(config: FitConfig) -> FusedLayout:
    """The parts that a resolved config describes."""
    assert config.is_resolved, "classes are not known"
    return FusedLayout(
        modalities=config.modalities,
        embed_dim=config.encoder.embed_dim,
        num_numbers=len(config.numbers),
        category_sizes=tuple(len(item.classes or ()) for item in config.categories.values()),
        targets=tuple((head.kind, head.outputs) for head in config.heads),
        fusion=config.fusion,
        hidden=config.head.hidden,
        dropout=config.head.dropout,
        translated=config.absent.stand_in == "translated",
    )


def build_fused_model(config: FitConfig, *, vocab_size: int) -> FusedModel:
    """Builds the model of a resolved config, on the CPU, in float32; see `build_model`."""
    kind = partial(FusedModel, layout=fused_layout(config))
    model = build_model(config.model, vocab_size=vocab_size, seed=config.seed, kind=kind)
    assert isinstance(model, FusedModel)
    return model
