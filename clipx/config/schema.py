"""`RunConfig`, every knob of a pretraining run: frozen dataclasses, those of each part in a file of their own.

The docstring under a field is its documentation everywhere. Validated by pydantic in `clipx.config.load`; imports no
torch, so `clipx config` is instant. Variants are unions tagged by `type`. To add one: a dataclass in the file of its
part and in the union there, its module, one `case` in the matching `build_*` function.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from clipx.config.data import DataConfig
from clipx.config.evaluate import EvaluateConfig, HeldOutLossConfig, check_captions
from clipx.config.evaluate_metrics import check_evaluation_metric
from clipx.config.field_types import STRICT, ContextLength, Count, FilePath, FractionBelowOne
from clipx.config.fit import FitConfig
from clipx.config.job import Job
from clipx.config.loss import InfoNCEConfig, LossConfig
from clipx.config.model import ModelConfig
from clipx.config.run_length import RunLength
from clipx.config.select import SelectConfig
from clipx.config.validate import validated
from clipx.errors import InputError


@validated
@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A first part of the run with smaller inputs (FLIP, arXiv 2212.00794; CLIPA, arXiv 2305.07017)."""

    __pydantic_config__ = STRICT

    until_step: Count | None = None
    """The stage ends after this many steps of the run; or `until_samples`, one of the two."""
    until_samples: Count | None = None
    """The stage ends after this many pairs of the run."""
    image_size: Count | None = None
    """Pixels of the square input, instead of model.image.image_size."""
    patch_drop: FractionBelowOne | None = None
    """Share of patches left out, instead of model.image.patch_drop."""
    context_length: ContextLength | None = None
    """Most tokens of a text, instead of model.text.context_length."""

    def __post_init__(self) -> None:
        if (self.until_step is None) == (self.until_samples is None):
            raise InputError(
                f"stages: until_step={self.until_step} and until_samples={self.until_samples}: "
                "give exactly one of the two"
            )


@validated
@dataclass(frozen=True, kw_only=True)
class RunConfig(Job):
    """A pretraining run; one file is one run."""

    __pydantic_config__ = STRICT

    job: Literal["pretrain"] = "pretrain"
    steps: Count | None = None
    """Optimizer steps; or `samples`, one of the two."""
    samples: Count | None = None
    """Pairs to see; rounded up to whole steps."""
    data: DataConfig
    """The training stream."""
    model: ModelConfig
    """Towers."""
    loss: LossConfig = field(default_factory=InfoNCEConfig)
    """Objective."""
    select: SelectConfig | None = None
    """Choose the pairs of a step from more of them; null: train on all that is read."""
    start_from: FilePath | None = None
    """A model whose weights this run begins with: a run folder, a checkpoint, an export, a CLIP or SigLIP of
    transformers or open_clip, or hf://ORG/NAME[@REVISION]. `model` may then be left out, or hold what shall differ."""
    start_from_anyway: bool = False
    """Begin with them though `model` computes something else from them than what they were trained in."""
    branch_from: FilePath | None = None
    """A checkpoint of another run, or a run folder with its newest one: this run goes on from there with weights,
    optimizer, average and place in the data order, as that one would by a resume; its own checkpoints come first. With
    `optim.schedule: constant`, one run so has many ends (configs/overlays/wsd.yaml)."""
    stages: dict[str, StageConfig] = field(default_factory=dict)
    """First parts of the run by name, in the order of their ends; after the last, inputs are as the model says."""
    evaluate: dict[str, EvaluateConfig] = field(default_factory=dict)
    """Evaluations by name; the name is a part of file names."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.samples is None):
            raise InputError(f"steps={self.steps} and samples={self.samples}: give exactly one of the two")
        if self.start_from is not None and self.branch_from is not None:
            raise InputError(
                f"start_from={self.start_from} and branch_from={self.branch_from}: give one of the two; the first "
                "takes weights alone, the second all of a run's state"
            )
        if self.select is not None:
            self.select.check(
                global_batch_size=self.global_batch_size,
                captions_per_image=self.data.captions_per_image,
                teachers=self.data.teachers,
            )
            size, largest = self.select.image_size, self.model.image.image_size
            if size is not None and size > largest:
                raise InputError(
                    f"select.image_size={size} is above model.image.image_size={largest}; pictures are made smaller to "
                    "be scored, never larger"
                )
            if self.select.logit_bias is not None and self.loss.type != "sigmoid":
                raise InputError(
                    f"select.logit_bias={self.select.logit_bias:g} is of loss.type=sigmoid, and the loss is "
                    f"{self.loss.type}; leave it out"
                )
            if self.select.logit_bias is None and self.loss.type == "sigmoid" and self.select.needs_reference:
                raise InputError(
                    f"select.score={self.select.score} with loss.type=sigmoid needs the reference's bias; set "
                    "select.logit_bias (SigLIP's is about -13 with select.logit_scale=118)"
                )
        self.check_lanes(self.data.lanes)
        self.check_samples(is_selecting=self.select is not None)
        if self.loss.type == "sigmoid" and self.model.init_logit_bias is None:
            raise InputError("loss.type=sigmoid needs a bias: set model.init_logit_bias (SigLIP: -10)")
        if self.loss.terms.distill is not None and self.teachers is None:
            raise InputError(
                "loss.terms.distill needs teachers: set data.teachers to a folder that `clipx data teach` has made"
            )
        for name, evaluation in self.evaluate.items():
            if not re.fullmatch(r"[\w-][\w.-]*", name):
                raise InputError(f"evaluate: the name {name!r} must be of letters, digits and _ - . (not . first)")
            if isinstance(evaluation, HeldOutLossConfig):
                evaluation.check_pairs(name, self.global_batch_size, self.data.captions_per_image)
        check_captions(self.evaluate, self.data.described())
        if self.stop is not None:
            check_evaluation_metric(self.stop.metric, self.evaluate, average=self.ema is not None)

    @property
    def pairs_read(self) -> int:
        """Pairs that a step reads: those that it trains on, or with `select` more."""
        return self.global_batch_size if self.select is None else self.select.super_batch_size(self.global_batch_size)

    @property
    def teachers(self) -> tuple[str, str] | None:
        """The folder of the store whose views of pictures are seen, behind the key that names it; None without one."""
        if self.data.teachers is None and self.select is not None and self.select.reference is not None:
            return "select.reference", self.select.reference
        return None if self.data.teachers is None else ("data.teachers", self.data.teachers)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run, whose global batch has one size from its start to its end."""
        return self.length().num_steps

    def length(self, changes: Sequence[tuple[int, int]] = ()) -> RunLength:
        """How steps and pairs correspond, with the `changes` of the global batch that the run has had."""
        return RunLength(
            global_batch_size=self.global_batch_size, steps=self.steps, samples=self.samples, changes=tuple(changes)
        )


JobConfig = RunConfig | FitConfig
"""The config of a run of any kind; the key `job` tells which."""


def with_model(config: JobConfig, model: ModelConfig) -> JobConfig:
    """The same run with other towers."""
    if isinstance(config, RunConfig):
        return replace(config, model=model)
    towers = {item.name: getattr(model, item.name) for item in fields(ModelConfig)}
    return replace(config, encoder=replace(config.encoder, **towers))


def require_pretraining(config: JobConfig, command: str) -> RunConfig:
    """The config of a pretraining run.

    Raises:
        InputError: it is another kind of run, of which the command knows nothing.
    """
    if not isinstance(config, RunConfig):
        raise InputError(f"`{command}` is for pretraining, and this config has job={config.job}; give another config")
    return config


@validated
@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """The config file of a model that no run of clipx trained: as a run's, without all that is about training."""

    __pydantic_config__ = STRICT

    model: ModelConfig
    """Towers."""
