"""What chosen batches cost in a plan, by hand."""

from pathlib import Path

import pytest
from plan_assumptions import ASSUMPTIONS
from tiny import tiny_config
from typer.testing import CliRunner

from clipx.cli import app
from clipx.config.load import dump_config
from clipx.config.phases import phase_at
from clipx.config.schema import RunConfig
from clipx.errors import InputError
from clipx.plan.model import PhaseModel
from clipx.plan.run import make_plan

HARD = "select={keep: 0.25, score: hard_learner, chunks: 4}"


def _config(*overrides: str) -> RunConfig:
    return tiny_config(Path("runs/tiny"), "none.tar", "global_batch_size=768", *overrides)


def _scoring(*overrides: str) -> float:
    config = _config(*overrides)
    return PhaseModel(config, phase_at(config, 0), caption_tokens=8).work.scoring


def test_every_pair_read_costs_a_forward_pass() -> None:
    config = _config()
    work = PhaseModel(config, phase_at(config, 0), caption_tokens=8).work
    assert work.scoring == 0
    assert _scoring(HARD) == pytest.approx(4 * (work.image_forward + work.text_forward))
    assert _scoring(HARD, "select.image_size=16") < 0.7 * _scoring(HARD)
    reference = "select={keep: 0.25, reference: store, chunks: 4}"
    assert _scoring(reference) == _scoring(HARD)
    assert _scoring(reference, "select.score=easy_reference") == 0


def test_a_run_is_priced_with_its_choice() -> None:
    plain, chosen = (make_plan(_config(*more), ASSUMPTIONS, world_size=8).asked for more in ((), (HARD,)))
    before, after = plain.phases[0], chosen.phases[0]
    speed = ASSUMPTIONS.cluster.mfu * ASSUMPTIONS.cluster.gpu.fp32_flops
    similarities = 2 * 2 * (4 * 768 / 8) * 768 * 16
    assert after.pace.choosing_s == pytest.approx((96 * after.work.scoring + similarities) / speed)
    assert before.pace.choosing_s == 0
    assert after.pace.step_s > before.pace.step_s + after.pace.choosing_s * 0.99
    # loading keeps up with what is read, four times what is trained on
    assert after.loader.pictures_per_s == pytest.approx(4 * after.pace.pairs_per_s)
    assert before.loader.pictures_per_s == pytest.approx(before.pace.pairs_per_s)
    pixels, embeddings = 2 * (4 * 768 / 8) * 3 * 32**2, 2 * 4 * 768 * 16 * 4
    assert after.memory.parts.choosing == pixels + embeddings
    assert before.memory.parts.choosing == 0
    named = {moved.part: moved for moved in after.pace.communication}
    assert named["scores"].times == 4
    assert named["embeddings to choose from"].sent_bytes == pytest.approx(embeddings * 7 / 8)
    assert 0 < named["chosen pairs"].sent_bytes < 96 * 3 * 32**2  # less than all of them


def test_few_workers_limit_what_is_read(tmp_path: Path) -> None:
    (slow,) = make_plan(_config(HARD, "data.workers=1"), ASSUMPTIONS, world_size=8).asked.phases
    assert slow.pairs_per_s == pytest.approx(8 / ASSUMPTIONS.cpu_s / 4)


def test_gpus_share_what_is_read() -> None:
    config = _config("select={keep: 0.96, score: hard_learner, chunks: 4}")
    assert config.pairs_read == 800
    with pytest.raises(InputError, match=r"select.keep=0.96: .* that 3 processes can share; nearest keep"):
        make_plan(config, ASSUMPTIONS, world_size=3)


def test_a_person_sees_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump_config(_config(HARD)))
    result = CliRunner().invoke(app, ["plan", str(tmp_path / "config.yaml"), "--gpus", "8", "--gpu", "H100"])
    assert result.exit_code == 0, result.output
    for line in (
        "forward, of all pairs to choose from",
        "pairs to choose from",
        "scores to choose by",
        "4 read for each",
    ):
        assert line in result.output
