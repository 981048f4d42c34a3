"""Phases: which inputs and which locked towers hold at a step, and until when."""

import pytest
from tiny import CONFIG

from clipx.config.load import load_config
from clipx.config.phases import check_stages, phase_at
from clipx.config.schema import RunConfig
from clipx.errors import InputError

BASE = ["steps=100", "global_batch_size=8", "model.image.image_size=224", "model.text.context_length=77"]


def config(*overrides: str) -> RunConfig:
    return load_config([CONFIG], [*BASE, *overrides])


def test_a_plain_run_is_one_phase() -> None:
    phases = {phase_at(config(), step) for step in (0, 50, 99, 100)}
    assert len(phases) == 1
    (phase,) = phases
    assert (phase.until, phase.image_size, phase.patch_drop, phase.context_length) == (100, 224, 0.0, 77)
    assert not phase.locked


def test_stages_hold_until_their_end_in_the_order_of_their_ends() -> None:
    staged = config(
        "model.image.patch_drop=0.25",
        "stages.late={until_samples: 641, patch_drop: 0.5}",  # 81 steps of 8
        "stages.early={until_step: 10, image_size: 112, context_length: 16}",
    )
    seen = [(p.until, p.image_size, p.patch_drop, p.context_length) for p in (phase_at(staged, s) for s in range(100))]
    early, late, rest = (10, 112, 0.25, 16), (81, 224, 0.5, 77), (100, 224, 0.25, 77)
    assert seen == [early] * 10 + [late] * 71 + [rest] * 19


def test_locked_towers_open_at_their_step() -> None:
    locked = config("optim.image.locked_steps=all", "optim.text.locked_steps=7")
    assert phase_at(locked, 6).locked == {"image", "text"}
    assert phase_at(locked, 6).until == 7
    assert phase_at(locked, 7).locked == {"image"}
    assert phase_at(locked, 7).until == 100


def test_a_stage_that_outlasts_the_run_ends_with_it() -> None:
    assert phase_at(config("stages.only={until_step: 500, patch_drop: 0.5}"), 99).until == 100


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.a={image_size: 64}"], "stages: until_step=None and until_samples=None: give exactly one of the two"),
        (["stages.a={until_step: 5}", "stages.b={until_samples: 40}"], "stages a and b both end at step 5"),
        (["stages.a={until_step: 5, context_length: 78}"], "above model.text.context_length=77"),
    ],
)
def test_stages_that_contradict_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_stages(config(*overrides))
