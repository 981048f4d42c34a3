"""Divides a run into phases, from its stages and locked towers.

A *stage* is an entry of the config (`stages.NAME`): the person asks for smaller inputs up to a step. A *phase* is
computed from the whole config: a range of steps in which input sizes and the set of locked towers do not change. It
ends where a stage ends, where a locked tower is released, or with the run. A run without stages has a phase, too.

At the end of a phase the run is saved and built again. So the step needs no code for stages and locked towers, and all
that depends on them (the largest micro-batch, compiled blocks, which gradients are reduced) is determined again.
"""

from dataclasses import dataclass
from typing import Literal

from clipx.config.run_length import RunLength
from clipx.config.schema import JobConfig, StageConfig
from clipx.errors import InputError

TowerName = Literal["image", "text"]
TOWERS: tuple[TowerName, TowerName] = ("image", "text")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """The input sizes and locked towers of a range of steps."""

    until: int
    """The step at which the phase ends; for the last phase, the number of steps of the run."""
    image_size: int
    patch_drop: float
    context_length: int
    locked: frozenset[TowerName]
    """Towers whose weights, except for the projection, do not change."""


def phase_at(config: JobConfig, step: int, length: RunLength | None = None) -> Phase:
    """The phase of the update that comes after `step` updates; after the end of the run, the last phase.

    Args:
        config: the run's.
        step: updates before it.
        length: of the run; None means that its global batch has always had the size in the config.

    Raises:
        InputError: two stages end at the same step, or a stage has inputs larger than the model's.
    """
    length = config.length() if length is None else length
    stages, num_steps = check_stages(config, length), length.num_steps
    step = min(step, num_steps - 1)
    locked = {tower: _locked_steps(config, tower, num_steps) for tower in TOWERS}
    ends = {*stages, *locked.values(), num_steps}
    until = min(end for end in ends if end > step)
    stage = next((stage for end, stage in sorted(stages.items()) if end > step), None)
    image, text = config.model.image, config.model.text
    inputs = StageConfig(until_step=until) if stage is None else stage
    return Phase(
        until=min(until, num_steps),
        image_size=image.image_size if inputs.image_size is None else inputs.image_size,
        patch_drop=image.patch_drop if inputs.patch_drop is None else inputs.patch_drop,
        context_length=text.context_length if inputs.context_length is None else inputs.context_length,
        locked=frozenset(tower for tower in TOWERS if locked[tower] > step),
    )


def check_stages(config: JobConfig, length: RunLength | None = None) -> dict[int, StageConfig]:
    """The stages by the step at which they end; `length` as for `phase_at`.

    Raises:
        InputError: the cases of `phase_at`.
    """
    length = config.length() if length is None else length
    named: dict[int, tuple[str, StageConfig]] = {}
    longest = config.model.text.context_length
    for name, stage in config.stages.items():
        if stage.context_length is not None and stage.context_length > longest:
            raise InputError(
                f"stages.{name}.context_length={stage.context_length} is above model.text.context_length={longest}, "
                "the positions that the tower has; lower the first or raise the second"
            )
        end = stage_end(stage, length)
        if end in named:
            raise InputError(f"stages {named[end][0]} and {name} both end at step {end}; give them different ends")
        named[end] = (name, stage)
    return {end: stage for end, (_, stage) in named.items()}


def stage_end(stage: StageConfig, length: RunLength) -> int:
    """The step at which a stage ends, which may be after the end of the run."""
    return stage.until_step or length.in_steps(stage.until_samples or 0)


def _locked_steps(config: JobConfig, tower: TowerName, num_steps: int) -> int:
    locked = config.optim.image.locked_steps if tower == "image" else config.optim.text.locked_steps
    return num_steps if locked == "all" else locked
