"""`FitConfig`, every knob of a run that learns to predict columns of a table from others."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field

from clipx.config.field_types import STRICT, Count, FilePath, FractionBelowOne, Interval, Positive, Text
from clipx.config.fit_data import FitDataConfig
from clipx.config.fit_inputs import (
    CategoryInput,
    Head,
    ImageInput,
    InputConfig,
    Modality,
    NumberInput,
    NumberTarget,
    TargetConfig,
    TextInput,
    heads_of,
)
from clipx.config.fit_metrics import check_metric
from clipx.config.job import Job
from clipx.config.model import ModelConfig
from clipx.config.optim import AdamWConfig, MuonConfig, StableAdamWConfig, TimmOptimConfig
from clipx.config.run_length import RunLength
from clipx.config.validate import validated
from clipx.errors import InputError

Fusion = Literal["weighted_sum", "concat", "gated", "bilinear", "attention", "late"]
Trained = Literal["frozen", "all"] | dict[Literal["image", "text"], Interval]


@validated
@dataclass(frozen=True, kw_only=True)
class EncoderConfig(ModelConfig):
    """The two towers that make vectors of pictures and texts; keys as in `model` of a pretraining run."""

    __pydantic_config__ = STRICT

    from_: Annotated[FilePath | None, Field(alias="from")] = None
    """A model whose towers these are: a run folder, a checkpoint, an export, a CLIP or SigLIP of transformers or
    open_clip, or hf://ORG/NAME[@REVISION]. The other keys may then be left out."""
    train: Trained = "frozen"
    """What of the towers learns, too. frozen: nothing, and their vectors are computed once; all; or how many of the
    last blocks, with all that comes after them, e.g. {image: 2, text: 1}."""


@validated
@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """From the fused vector to all targets."""

    __pydantic_config__ = STRICT

    hidden: tuple[Count, ...] = (256,)
    """Widths of the hidden layers; empty: a linear head."""
    dropout: FractionBelowOne = 0.1
    """Share of the values left out, in the head's hidden layers and in fusions that have such; drawn from (seed, step,
    slot)."""


@validated
@dataclass(frozen=True, kw_only=True)
class AbsentConfig:
    """What happens where a picture or a text is absent."""

    __pydantic_config__ = STRICT

    probability: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Of hiding the picture, and of hiding the text, of a training sample that has both: never both."""
    stand_in: Literal["learned", "translated"] = "learned"
    """learned: a vector for each kind of input; translated: the other one's vector, moved by the mean difference
    between pictures and texts (arXiv 2203.02053), where the other one is there."""


@validated
@dataclass(frozen=True, kw_only=True)
class FitAdamWConfig(AdamWConfig):
    """AdamW (arXiv 1711.05101), fused, with a rate for heads on trained encoders."""

    __pydantic_config__ = STRICT

    lr: Annotated[float, Field(ge=0)] = 1.0e-3
    """Peak learning rate; that of towers that learn is this times optim.image.lr_scale, and so for texts."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup_steps: Interval = 50


@validated
@dataclass(frozen=True, kw_only=True)
class FitConfig(Job):
    """A run that learns to predict some columns of a table from others; one file is one run."""

    __pydantic_config__ = STRICT

    job: Literal["fit"] = "fit"
    epochs: Positive = 20.0
    """Passes over the training rows."""
    data: FitDataConfig
    """The table."""
    inputs: Annotated[dict[Text, InputConfig], Field(min_length=1)]
    """What is predicted from, by name: at most one picture and one text, any numbers and categories."""
    targets: Annotated[dict[Text, TargetConfig], Field(min_length=1)]
    """What is predicted, by name. A row need not have all of them."""
    encoder: EncoderConfig
    """Towers."""
    fusion: Fusion = "gated"
    """How the vectors of picture, text and table become one. weighted_sum, concat: additive before the head; gated
    (arXiv 1702.01992); bilinear (arXiv 1806.00064); attention; late: a head for each, and the mean of their
    predictions."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """Predictions from the fused vector."""
    absent: AbsentConfig = field(default_factory=AbsentConfig)
    """Absent pictures and texts."""
    keep_features: Literal["auto"] | bool = "auto"
    """Compute vectors of frozen towers once and keep them in run_dir. auto: where all towers are frozen and pictures
    are not augmented."""
    optim: Annotated[FitAdamWConfig | StableAdamWConfig | MuonConfig | TimmOptimConfig, Field(discriminator="type")] = (
        field(default_factory=FitAdamWConfig)
    )
    """Optimizer and learning rate."""

    def __post_init__(self) -> None:
        self.check_lanes(self.data.lanes)
        self.check_samples(is_selecting=False)
        self._check_inputs()
        self._check_targets()
        if self.absent.stand_in == "translated" and not {"image", "text"} <= set(self.modalities):
            raise InputError(
                "absent.stand_in=translated moves the vector of a text to that of a picture, and back; it needs an "
                "input of both types: choose learned"
            )
        augmented, frozen = self.data.augment is not None, self.encoder.train == "frozen"
        if self.keep_features is True and (augmented or not frozen):
            reason = "data.augment changes pictures in every epoch" if frozen else "encoder.train changes them"
            raise InputError(f"keep_features=true keeps vectors of towers, and {reason}; choose auto")
        if frozen and self.optim.type == "muon":
            raise InputError(
                "optim.type=muon learns the matrices of the towers' blocks, and encoder.train=frozen; choose adamw, or "
                "let the towers learn"
            )
        if self.stop is not None:
            kinds = {name: target.type for name, target in self.targets.items()}
            average = self.ema is not None
            check_metric(self.stop.metric, targets=kinds, modalities=self.modalities, average=average)

    def _check_inputs(self) -> None:
        for kind in (ImageInput, TextInput):
            names = [name for name, item in self.inputs.items() if isinstance(item, kind)]
            if len(names) > 1:
                hint = "join the columns of texts by one input's `columns`" if kind is TextInput else "choose one"
                raise InputError(f"inputs: {', '.join(names)} are all of type {kind.type}; there may be one: {hint}")

    def _check_targets(self) -> None:
        for name, target in self.targets.items():
            if not re.fullmatch(r"[^/.\s][^/\n]*", name):
                raise InputError(f"targets: the name {name!r} must have no / in it and not begin with . or a blank")
            column = target.column or name
            if name == "s":  # its loss would be `loss_s` in metrics.jsonl, the seconds of the losses
                raise InputError(
                    f"targets: the name {name!r} is taken by a figure of the trainer; choose another name, with "
                    f"column: {column}"
                )
            for input_name, used in self.input_columns():
                if column == used:
                    raise InputError(
                        f"targets.{name} and inputs.{input_name} are both the column {column!r}, so there would be "
                        "nothing to predict; take it out of one of them"
                    )

    def input_columns(self) -> Iterator[tuple[str, str]]:
        """(Name of the input, column) for every column that is read as an input."""
        for name, item in self.inputs.items():
            columns = item.columns if isinstance(item, TextInput) else (item.column,)
            for column in columns or (None,):
                yield name, column or name

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The kinds of vectors that are fused; numbers and categories together are one, the table."""
        kinds = {
            "table" if isinstance(item, NumberInput | CategoryInput) else item.type for item in self.inputs.values()
        }
        every: tuple[Modality, ...] = ("image", "text", "table")
        return tuple(kind for kind in every if kind in kinds)

    @property
    def numbers(self) -> dict[str, NumberInput]:
        """Inputs that are numbers."""
        return {name: item for name, item in self.inputs.items() if isinstance(item, NumberInput)}

    @property
    def categories(self) -> dict[str, CategoryInput]:
        """Inputs that are categories."""
        return {name: item for name, item in self.inputs.items() if isinstance(item, CategoryInput)}

    @property
    def image_column(self) -> str | None:
        """Column of the pictures; None without."""
        return next((item.column or name for name, item in self.inputs.items() if isinstance(item, ImageInput)), None)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns of the text, in their order."""
        return next((item.columns or (name,) for name, item in self.inputs.items() if isinstance(item, TextInput)), ())

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads of the resolved targets."""
        return heads_of(self.targets)

    @property
    def is_resolved(self) -> bool:
        """Whether all that is found in the training rows is there."""
        facts: list[Any] = [self.data.train_shards, self.data.val_shards, self.data.num_train]
        facts += [item.mean for item in self.numbers.values()]
        facts += [item.classes for item in self.categories.values()]
        for target in self.targets.values():
            facts.append(target.mean if isinstance(target, NumberTarget) else target.classes)
        return None not in facts

    @property
    def keeps_features(self) -> bool:
        """Whether vectors of the towers are computed once."""
        possible = self.encoder.train == "frozen" and self.data.augment is None
        return possible and self.keep_features is not False and self.modalities != ("table",)

    @cached_property
    def model(self) -> ModelConfig:
        """The towers, as trainers and readers of models know them."""
        return ModelConfig(**{item.name: getattr(self.encoder, item.name) for item in fields(ModelConfig)})

    @property
    def start_from(self) -> str | None:
        """The model whose weights the run begins with."""
        return self.encoder.from_

    @property
    def start_from_anyway(self) -> bool:
        """Towers are taken as they were trained."""
        return False

    @property
    def stages(self) -> dict[str, Any]:
        """There is one phase."""
        return {}

    @property
    def evaluate(self) -> dict[str, Any]:
        """Sets of pretraining; a fit run evaluates on its held-out rows."""
        return {}

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.length().num_steps

    def length(self, changes: Sequence[tuple[int, int]] = ()) -> RunLength:
        """How steps and samples correspond, with the `changes` of the global batch that the run has had.

        `samples` is the number of rows in all epochs, rounded up to whole steps.
        """
        rows = max(1, round(self.epochs * (self.data.num_train or 1)))
        return RunLength(global_batch_size=self.global_batch_size, steps=None, samples=rows, changes=tuple(changes))

    def ends_epoch(self, step: int, length: RunLength) -> bool:
        """Whether another whole epoch is done after this step, and was not before it."""
        rows = self.data.num_train or 1
        return step > 0 and length.samples_seen(step) // rows > length.samples_seen(step - 1) // rows
