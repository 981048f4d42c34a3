"""Every knob of a run: frozen dataclasses; the docstring under a field is its documentation everywhere.

Validated by pydantic in `clipx.config.load`; imports no torch, so `clipx config` is instant. Variants are unions tagged
by `type`. To add one: a dataclass here and in its union, its module, one `case` in the matching `build_*` function.
"""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from clipx.errors import InputError

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
NOT_BLANK = r"\S"


def _no_bool(value: Any) -> Any:
    """Refuses true and false, which pydantic takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("not a number")
    return value


_NO_BOOL = BeforeValidator(_no_bool)  # after the limits, or they are missing in the JSON schema

Count = Annotated[int, Field(ge=1), _NO_BOOL]
Interval = Annotated[int, Field(ge=0), _NO_BOOL]
ContextLength = Annotated[int, Field(ge=3), _NO_BOOL]
Number = Annotated[float, _NO_BOOL]
Fraction = Annotated[float, Field(ge=0, le=1), _NO_BOOL]
FractionBelowOne = Annotated[float, Field(ge=0, lt=1), _NO_BOOL]
Positive = Annotated[float, Field(gt=0), _NO_BOOL]
NonNegative = Annotated[float, Field(ge=0), _NO_BOOL]
Text = Annotated[str, Field(pattern=NOT_BLANK)]


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Training augmentation; evaluation always resizes the short side and crops the centre."""

    __pydantic_config__ = STRICT

    crop_scale: tuple[Fraction, Fraction] = (0.9, 1.0)
    """Share of the picture's area that the random crop keeps, from and to (CLIP-style pretraining: 0.9 to 1)."""
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Width over height of the random crop, from and to."""
    flip: Fraction = 0.0
    """Probability of a horizontal flip; off by default since captions say left and right."""

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise InputError(
                    f"data.augment.{name}=[{low}, {high}]: the first must be above 0 and at most the second"
                )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training stream."""

    __pydantic_config__ = STRICT

    train: Annotated[list[str], Field(min_length=1)]
    """Shards, together one set: tar files, folders, globs, braces ({00000..01242}) and lists joined by `::`."""
    index: str | None = None
    """Folder of the shards' index; default: beside the shards, or the user's cache where that cannot be written."""
    image_key: Text = "jpg;jpeg;png;webp"
    """Extensions that hold the picture, first present wins."""
    caption_key: Text = "txt"
    """Extension that holds the caption (`;` between alternatives); `json:captions` takes that field of a json member.
    Of a list of captions one is drawn per epoch."""
    lanes: Literal["auto"] | Count = "auto"
    """Parallel read positions, a divisor of global_batch_size; auto: the largest up to 1024. Fixed for a run's life."""
    shuffle_window: Literal["auto"] | Count = "auto"
    """Samples of a lane that are shuffled together; auto: max(64, 65536 / lanes)."""
    workers: Interval = 4
    """Loader processes per rank; 0 loads in the training process. Never changes the data order."""
    prefetch_batches: Count = 2
    """Batches that the workers of a rank hold ready."""
    max_bad_fraction: Fraction = 0.01
    """Share of distinct samples that may be undecodable or without caption before the run stops (from 100 on)."""
    allow_repeats: bool = False
    """Permit a set smaller than one global batch."""
    allow_change: bool = False
    """Resume although shards, counts, lanes, window, batch size or seed differ from those the run began with."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random crop and flip."""


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
    pretrained: bool | str = False
    """Start from timm's weights (true) or from a local weight file."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments for timm.create_model, e.g. {embed_dim: 192, depth: 6, num_heads: 3, patch_size: 8}."""
    mean: tuple[Number, Number, Number] = (0.48145466, 0.4578275, 0.40821073)
    """Channel means of the normalisation, in [0, 1] (CLIP's)."""
    std: tuple[Positive, Positive, Positive] = (0.26862954, 0.26130258, 0.27577711)
    """Channel standard deviations of the normalisation (CLIP's)."""


@dataclass(frozen=True, kw_only=True)
class TransformerTextConfig:
    """The CLIP-shaped text tower: causal, pre-LN, learned positions, pooled at the end token."""

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
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    """quick_gelu as in OpenAI's weights."""
    tokenizer: str = "clip"
    """`clip`, or a folder or hub name that transformers' AutoTokenizer loads."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise InputError(
                f"model.text.heads={self.heads} does not divide model.text.width={self.width}; choose a divisor"
            )


@dataclass(frozen=True, kw_only=True)
class HuggingFaceTextConfig:
    """A pretrained text encoder from transformers."""

    __pydantic_config__ = STRICT

    type: Literal["huggingface"] = "huggingface"
    name: str
    """Hub name or folder, for transformers' AutoModel."""
    context_length: ContextLength = 77
    """Most tokens of a text."""
    pool: Literal["cls", "mean", "last"] = "mean"
    """Which hidden state becomes the text's: the first, the mean of the real ones, or the last real one."""
    pretrained: bool = True
    """Load the weights; false takes the architecture only."""
    tokenizer: str | None = None
    """Folder or hub name of the tokenizer; default: `name`."""


TextConfig = Annotated[TransformerTextConfig | HuggingFaceTextConfig, Field(discriminator="type")]
ImageConfig = TimmImageConfig  # becomes a union tagged by `type` when a second kind of image tower exists


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
    init_logit_scale: Positive = 1 / 0.07
    """The multiplier of the similarities at the start (CLIP, arXiv 2103.00020, section 2.5)."""
    max_logit_scale: Positive = 100.0
    """Where the multiplier is clamped."""
    init_logit_bias: Number | None = None
    """Start of the bias added to the logits (sigmoid loss: -10); none: no bias."""


@dataclass(frozen=True, kw_only=True)
class InfoNCEConfig:
    """Symmetric cross-entropy over the global batch (CLIP, arXiv 2103.00020, figure 3)."""

    __pydantic_config__ = STRICT

    type: Literal["info_nce"] = "info_nce"
    tile_size: Count = 4096
    """Rows and columns of the largest block of similarities held at once."""


@dataclass(frozen=True, kw_only=True)
class SigmoidConfig:
    """Pairwise sigmoid loss (SigLIP, arXiv 2303.15343); wants model.init_logit_bias: -10 and init_logit_scale: 10."""

    __pydantic_config__ = STRICT

    type: Literal["sigmoid"] = "sigmoid"
    tile_size: Count = 4096
    """Rows and columns of the largest block of similarities held at once."""


LossConfig = Annotated[InfoNCEConfig | SigmoidConfig, Field(discriminator="type")]


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW (arXiv 1711.05101) with linear warm-up, then a cosine to `min_lr`."""

    __pydantic_config__ = STRICT

    type: Literal["adamw"] = "adamw"
    lr: NonNegative = 5.0e-4
    """Peak learning rate."""
    betas: tuple[FractionBelowOne, FractionBelowOne] = (0.9, 0.98)
    """Decay of the first and second moment."""
    eps: Positive = 1.0e-6
    """Added to the root of the second moment."""
    weight_decay: NonNegative = 0.2
    """For matrices and embeddings; never for gains, biases and the temperature."""
    warmup_steps: Interval = 2000
    """Steps of linear warm-up from 0."""
    min_lr: NonNegative = 0.0
    """Learning rate at the end of the cosine."""
    clip_grad_norm: Positive | None = 1.0
    """Largest global norm of the gradient; none: not clipped, still measured."""


OptimConfig = AdamWConfig  # becomes a union tagged by `type` when a second optimizer exists


@dataclass(frozen=True, kw_only=True)
class DdpConfig:
    """Every rank holds the whole model."""

    __pydantic_config__ = STRICT

    type: Literal["ddp"] = "ddp"
    timeout_s: Count = 1800
    """Seconds after which a collective that does not complete ends the run."""


@dataclass(frozen=True, kw_only=True)
class Fsdp2Config:
    """Parameters, gradients and optimizer state sharded over the ranks (GPUs only)."""

    __pydantic_config__ = STRICT

    type: Literal["fsdp2"] = "fsdp2"
    timeout_s: Count = 1800
    """Seconds after which a collective that does not complete ends the run."""
    reshard_after_forward: bool = True
    """Free gathered parameters after the forward pass: less memory, one more gather."""


ParallelConfig = Annotated[DdpConfig | Fsdp2Config, Field(discriminator="type")]


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the run is saved, and what is kept."""

    __pydantic_config__ = STRICT

    every_steps: Interval = 1000
    """Save every N steps; 0: not by steps."""
    every_minutes: NonNegative = 15.0
    """Save when so many minutes have passed since the last save; 0: not by time."""
    keep_last: Count = 3
    """Newest checkpoints kept."""
    keep_every: Interval = 0
    """Also keep every checkpoint whose step is a multiple of this; 0: none."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """Zero-shot classification on a folder in CLIP_benchmark's `wds_*` layout."""

    __pydantic_config__ = STRICT

    type: Literal["zeroshot"] = "zeroshot"
    data: str
    """Folder with classnames.txt, zeroshot_classification_templates.txt and test/*.tar."""
    every_steps: Interval = 0
    """Evaluate every N steps; always at the end. 0: at the end only."""
    batch_size: Count = 256
    """Pictures per forward pass and rank."""


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Recall at 1, 5 and 10 between pictures and captions, both ways."""

    __pydantic_config__ = STRICT

    type: Literal["retrieval"] = "retrieval"
    data: str
    """Shards of pictures with captions, or a folder in CLIP_benchmark's layout."""
    every_steps: Interval = 0
    """Evaluate every N steps; always at the end. 0: at the end only."""
    batch_size: Count = 256
    """Pairs per forward pass and rank."""
    image_key: Text = "jpg;jpeg;png;webp"
    """Extensions that hold the picture."""
    caption_key: Text = "txt"
    """As in data.caption_key; every caption of a list, or every line of a text member, counts as correct."""


EvaluateConfig = Annotated[ZeroShotConfig | RetrievalConfig, Field(discriminator="type")]


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """Where figures go besides metrics.jsonl."""

    __pydantic_config__ = STRICT

    wandb: Literal["offline", "online", "disabled"] = "offline"
    """Weights & Biases; offline runs are uploaded later with `wandb sync`."""
    tensorboard: bool = False
    """Write tensorboard event files into the run folder."""
    project: str = "clipx"
    """Project name at the tracker."""
    every_steps: Count = 10
    """Steps between two rows of metrics.jsonl and of the trackers."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One file is one run."""

    __pydantic_config__ = STRICT

    run_dir: Text
    """Folder of everything that the run writes."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), _NO_BOOL] = 0
    """With the config and the step it determines the run."""
    steps: Count | None = None
    """Optimizer steps; or `samples`, one of the two."""
    samples: Count | None = None
    """Pairs to see; rounded up to whole steps."""
    global_batch_size: Annotated[int, Field(ge=2), _NO_BOOL]
    """Pairs per optimizer step over all ranks."""
    micro_batch_size: Literal["auto"] | Count = "auto"
    """Pairs per rank and forward pass; smaller than the rank's share: gradient cache, the same result in less memory.
    auto: the rank's whole share."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Arithmetic of the towers; parameters and softmax stay float32."""
    deterministic: bool = False
    """Only deterministic kernels on CUDA; CPU runs always repeat bit for bit."""
    max_skipped_steps: Count = 10
    """Steps in a row with a non-finite loss or gradient after which the run ends."""
    data: DataConfig
    """The training stream."""
    model: ModelConfig
    """Towers."""
    loss: LossConfig = field(default_factory=InfoNCEConfig)
    """Objective."""
    optim: OptimConfig = field(default_factory=AdamWConfig)
    """Optimizer and learning rate."""
    parallel: ParallelConfig = field(default_factory=DdpConfig)
    """How ranks share the work."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""
    evaluate: dict[str, EvaluateConfig] = field(default_factory=dict)
    """Evaluations by name; the name is a part of file names."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """Trackers."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.samples is None):
            raise InputError(f"steps={self.steps} and samples={self.samples}: give exactly one of the two")
        lanes = self.data.lanes
        if lanes != "auto" and self.global_batch_size % lanes:
            raise InputError(
                f"data.lanes={lanes} does not divide global_batch_size={self.global_batch_size}; choose a divisor"
            )
        if self.loss.type == "sigmoid" and self.model.init_logit_bias is None:
            raise InputError("loss.type=sigmoid needs a bias: set model.init_logit_bias (SigLIP: -10)")
        for name in self.evaluate:
            if not re.fullmatch(r"[\w-][\w.-]*", name):
                raise InputError(f"evaluate: the name {name!r} must be of letters, digits and _ - . (not . first)")

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.steps is not None:
            return self.steps
        assert self.samples is not None
        return -(-self.samples // self.global_batch_size)
