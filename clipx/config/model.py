"""The part of the schema that describes the model: the two towers and the space they share."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from clipx.config.field_types import STRICT, ContextLength, Count, FractionBelowOne, HubName, Number, Positive
from clipx.config.validate import validated
from clipx.errors import InputError

Resize = Literal["shortest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]
Crop = Literal["round", "floor"]
Activation = Literal["gelu", "quick_gelu", "gelu_tanh"]
Projection = Literal["linear", "mlp", "none"]
Cleaning = Literal["lower", "whitespace", "canonicalize"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_VOCABULARY = 49_408
"""Ids of CLIP's tokenizer; the highest ends a text."""
SIGMOID_MAX_LOGIT_SCALE = 1000.0
"""As good as no limit: published models of the sigmoid loss lie above CLIP's 100."""


@validated
@dataclass(frozen=True, kw_only=True)
class TimmImageConfig:
    """Image tower from timm."""

    __pydantic_config__ = STRICT

    type: Literal["timm"] = "timm"
    name: str
    """timm model; `vit_*_clip_*` are exportable to transformers and open_clip."""
    image_size: Count = 224
    """Pixels of the square input."""
    patch_drop: FractionBelowOne = 0.0
    """Share of patches left out in training (FLIP, arXiv 2212.00794)."""
    pretrained: bool | HubName = False
    """Start from timm's weights (true) or from a local weight file."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments for timm.create_model, e.g. {embed_dim: 192, depth: 6, num_heads: 3, patch_size: 8}."""
    mean: tuple[Number, Number, Number] = CLIP_MEAN
    """Channel means of the normalisation, in [0, 1] (CLIP's)."""
    std: tuple[Positive, Positive, Positive] = CLIP_STD
    """Channel standard deviations of the normalisation (CLIP's)."""
    resize: Resize = "shortest"
    """How evaluation makes a picture square. shortest: the short side to image_size, then the centre; squash: both
    sides, whatever the proportions (SigLIP)."""
    interpolation: Interpolation = "bicubic"
    """Of every resize, in training and evaluation; antialiased as Pillow's."""
    crop: Crop = "round"
    """Where evaluation begins to cut when it could at either of two pixels: round as open_clip, floor as transformers;
    a model read from a transformers folder has floor. They cut 19% of 5,783 photographs one pixel apart at 224 pixels
    (0 to 59% by set and size, benchmarks/LOG.md). With floor an export sees what transformers does on all pictures, and
    that share of them no more as open_clip and CLIP_benchmark do."""
    eps: Positive | None = None
    """Of all layer norms; null: the timm model's own."""
    projection: Projection | None = None
    """From the tower's features to the shared space; null: as model.projection."""


@validated
@dataclass(frozen=True, kw_only=True)
class TransformerTextConfig:
    """A pre-LN Transformer with learned positions; as it stands CLIP's, causal and pooled at the end token."""

    __pydantic_config__ = STRICT

    type: Literal["transformer"] = "transformer"
    width: Count = 512
    """Channels."""
    layers: Count = 12
    """Blocks."""
    heads: Count = 8
    """Attention heads; must divide width."""
    context_length: ContextLength = 77
    """Most tokens of a text, with start and end; longer texts are cut and keep their end token."""
    mlp_ratio: Positive = 4.0
    """Hidden over outer channels of the feed-forward layers."""
    activation: Activation = "gelu"
    """quick_gelu as in OpenAI's weights, gelu_tanh as in SigLIP's."""
    eps: Positive = 1e-5
    """Of all layer norms; SigLIP has 1e-6."""
    causal: bool = True
    """Whether a token sees those before it only."""
    pool: Literal["end", "last"] = "end"
    """Which state becomes the text's: that of the end token, or of the last position, padding too (SigLIP)."""
    pad: ContextLength | None = None
    """Tokens to which every text is padded; they count as text, seen and pooled (SigLIP: 64). null: none. It
    follows a `context_length` that is changed over another config or `start_from`."""
    projection: Projection | None = None
    """From the tower's features to the shared space; null: as model.projection."""
    bias: bool = False
    """A bias of the projection (SigLIP)."""
    tokenizer: HubName = "clip"
    """`clip`, or a folder or hub name that transformers' AutoTokenizer loads."""
    cleaning: Cleaning | None = None
    """What is done to a text before it is tokenized, by open_clip's names. All repair broken encodings, resolve HTML
    entities and make white space single; lower also lowers; canonicalize also removes punctuation (SigLIP). null: lower
    for `clip`, nothing for others."""
    vocab_size: Count | None = None
    """Rows of the token embedding, at least the tokenizer's ids; null: as many."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise InputError(
                f"model.text.heads={self.heads} does not divide model.text.width={self.width}; choose a divisor"
            )
        if self.pad is not None and self.pad != self.context_length:
            raise InputError(
                f"model.text.pad={self.pad} is not model.text.context_length={self.context_length}; set both to one "
                "number"
            )
        if (self.pool == "last") != (self.pad is not None):
            raise InputError(
                f"model.text.pool={self.pool} with pad={self.pad}: the last position is that of padded texts; set "
                "`pool: last` and `pad` together"
            )


@validated
@dataclass(frozen=True, kw_only=True)
class HuggingFaceTextConfig:
    """A pretrained text encoder from transformers."""

    __pydantic_config__ = STRICT

    type: Literal["huggingface"] = "huggingface"
    name: HubName
    """Hub name or folder, for transformers' AutoModel."""
    context_length: ContextLength = 77
    """Most tokens of a text."""
    pool: Literal["cls", "mean", "last"] = "mean"
    """Which hidden state becomes the text's: the first, the mean of the real ones, or the last real one."""
    pretrained: bool = True
    """Load the weights; false takes the architecture only."""
    projection: Projection | None = None
    """From the tower's features to the shared space; null: as model.projection."""
    bias: bool = False
    """A bias of the projection."""
    tokenizer: HubName | None = None
    """Folder or hub name of the tokenizer; default: `name`."""
    cleaning: Cleaning | None = None
    """What is done to a text before it is tokenized, as for `type: transformer`; null: nothing."""


TextConfig = Annotated[TransformerTextConfig | HuggingFaceTextConfig, Field(discriminator="type")]
ImageConfig = TimmImageConfig  # becomes a union tagged by `type` when a second kind of image tower exists


@validated
@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Two towers and the space they share."""

    __pydantic_config__ = STRICT

    embed_dim: Count = 512
    """Dimension of the shared space."""
    image: ImageConfig
    """Image tower."""
    text: TextConfig = field(default_factory=TransformerTextConfig)
    """Text tower."""
    projection: Projection = "linear"
    """From each tower's features to the shared space. mlp: two layers, to align encoders that were trained apart; none:
    the features themselves, which must then have embed_dim channels (SigLIP's images)."""
    init_logit_scale: Positive = 1 / 0.07
    """The multiplier of the similarities at the start (CLIP, arXiv 2103.00020, section 2.5)."""
    max_logit_scale: Positive = 100.0
    """Where the multiplier is clamped."""
    init_logit_bias: Number | None = None
    """Start of the bias added to the logits (sigmoid loss: -10); null: no bias."""
