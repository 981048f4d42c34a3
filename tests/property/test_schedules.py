"""What holds for every schedule."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipx.optim.schedules import learning_rate


@st.composite
def schedules(draw: st.DrawFn) -> dict[str, Any]:
    num_steps = draw(st.integers(1, 400))
    warmup_steps = draw(st.integers(0, num_steps))
    schedule = draw(st.sampled_from(["cosine", "constant"]))
    peak = draw(st.floats(1e-6, 10))
    return {
        "num_steps": num_steps,
        "warmup_steps": warmup_steps,
        "schedule": schedule,
        "cooldown_steps": draw(st.integers(0, num_steps - warmup_steps)) if schedule == "constant" else 0,
        "peak": peak,
        "minimum": peak * draw(st.floats(0, 1)),
    }


@settings(max_examples=200)
@given(schedules())
def test_rises_to_the_peak_then_never_rises_and_never_leaves_its_bounds(schedule: dict[str, Any]) -> None:
    rates = [learning_rate(step, **schedule) for step in range(schedule["num_steps"] + 1)]
    warmup, peak, slack = schedule["warmup_steps"], schedule["peak"], 1e-12 * schedule["peak"]
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    assert all(a >= b - slack for a, b in pairwise(rates[warmup:]))
    assert max(rates[:-1]) <= peak + slack
    assert min(rates) > 0 or schedule["minimum"] == 0
    assert min(rates[warmup:]) >= schedule["minimum"] - slack
    if warmup:
        assert rates[warmup - 1] == pytest.approx(peak)


@settings(max_examples=200)
@given(schedules())
def test_ends_at_the_minimum_where_it_falls(schedule: dict[str, Any]) -> None:
    falls = schedule["schedule"] == "cosine" or schedule["cooldown_steps"] > 0
    end = learning_rate(schedule["num_steps"], **schedule)
    if schedule["warmup_steps"] < schedule["num_steps"]:
        assert end == pytest.approx(schedule["minimum"] if falls else schedule["peak"])


@settings(max_examples=100)
@given(schedules(), st.integers(2, 9))
def test_a_run_of_k_times_the_length_has_the_same_shape(schedule: dict[str, Any], times: int) -> None:
    lengths = ("num_steps", "warmup_steps", "cooldown_steps")
    longer = schedule | {name: times * schedule[name] for name in lengths}
    for step in range(schedule["warmup_steps"], schedule["num_steps"] + 1):
        assert learning_rate(times * step, **longer) == pytest.approx(learning_rate(step, **schedule), rel=1e-9)
