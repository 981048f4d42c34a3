"""From teachers to a student: taught by the command, learned from on any ranks, and resumed to the bit after a kill."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from distributed.ranks import run_ranks
from plan_assumptions import ASSUMPTIONS
from tiny import losses, metrics, newest_checkpoint, saved_tensors, tiny_config

from clipx.config.load import dump_config
from clipx.config.schema import RunConfig
from clipx.data.teachers.description import DESCRIPTION, Description
from clipx.errors import InputError
from clipx.plan.report import print_plan
from clipx.plan.run import make_plan
from clipx.train.metrics.monitor import Monitor
from clipx.train.trainer import train

AUGMENT = "data.augment={crop_scale: [0.4, 1.0], flip: 0.5}"
DISTILL = "loss.terms.distill={weight: 0.5, teachers: {first: {weight: 2}, second: {logit_scale: 30}}}"


@pytest.fixture(scope="module")
def store(scenes: Path, clipx: Callable[..., CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two views of the scenes as two trained models see them."""
    folder = tmp_path_factory.mktemp("teachers")
    named = []
    for number, name in enumerate(("first", "second")):
        config = tiny_config(folder / name, scenes / "train", AUGMENT, "steps=5", f"model.embed_dim={16 + 8 * number}")
        assert train(config) == 0
        named += ["--model", f"{name}={folder / name}"]
    (folder / "config.yaml").write_text(dump_config(tiny_config(folder / "run", scenes / "train", AUGMENT)))
    done = clipx("data", "teach", folder / "config.yaml", *named, "--views", "2", "--out", folder / "store")
    assert done.returncode == 0, done.stderr
    return folder / "store"


@pytest.fixture
def student(store: Path, scenes: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """Configs of runs that learn from the store."""

    def config(name: str, *overrides: str) -> RunConfig:
        learns = (AUGMENT, f"data.teachers={store}", DISTILL, "steps=12", "checkpoint.every_steps=4")
        return tiny_config(tmp_path / name, scenes / "train", *learns, *overrides)

    return config


OTHERS = {"pieces": (1, 8, 1), "ranks": (2, 4, 1)}  # W, micro-batch, loader processes


@pytest.mark.parametrize("name", [pytest.param("pieces", marks=pytest.mark.full), "ranks"])
def test_learns_the_same_on_any_ranks_and_in_any_micro_batches(student: Callable[..., RunConfig], name: str) -> None:
    curves = []
    for run, (world_size, size, workers) in (("alone", (1, 24, 0)), (name, OTHERS[name])):
        config = student(run, f"micro_batch_size={size}", f"data.workers={workers}")
        assert run_ranks(train, world_size, config) == [0] * world_size
        rows = metrics(Path(config.run_dir))
        curves.append([row[key] for row in rows for key in ("loss", "loss_distill", "distill_first", "distill_second")])
        first, last = rows[0], rows[-1]
        assert last["loss_distill"] == pytest.approx((2 * last["distill_first"] + last["distill_second"]) / 3, rel=1e-5)
        assert last["loss_distill"] < first["loss_distill"]
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)


def killed_in_step_7(config: RunConfig) -> int:
    record = Monitor.record

    def recorded(monitor: Monitor, outcome: Any, *others: Any, **more: Any) -> None:
        if outcome.step == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        record(monitor, outcome, *others, **more)

    Monitor.record = recorded  # type: ignore[method-assign]
    return train(config)


def test_a_store_that_was_replaced_is_noticed(
    student: Callable[..., RunConfig], store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "store"
    shutil.copytree(store, place)

    def replace(name: str, value: str) -> None:
        """Of a teacher in the description, as `clipx data teach` with other weights, or from another folder, has it."""
        content = json.loads((place / DESCRIPTION).read_bytes())
        content["teachers"][1][name] = value
        (place / DESCRIPTION).write_text(json.dumps(content))

    def trained(steps: int, *more: str) -> int:
        caplog.clear()
        return train(student("run", f"data.teachers={place}", f"steps={steps}", *more))

    assert trained(1) == 0
    replace("model", "moved/second")
    assert trained(2) == 0
    assert "changed data order" not in caplog.text
    replace("fingerprint", "another")
    with pytest.raises(InputError, match=r"changed since step-\d+: store data\.teachers=\S+: \w{8} -> \w{8}; restore"):
        trained(3)
    assert trained(3, "data.allow_change=true") == 0
    assert f"going on with a changed data order: store data.teachers={place}: " in caplog.text
    assert trained(4) == 0, "it is the run's own now"
    assert "changed data order" not in caplog.text


def test_a_checkpoint_from_before_stores_were_known_goes_on(
    student: Callable[..., RunConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(Description, "fingerprint", lambda self: None)
        assert train(student("run", "steps=1")) == 0
    assert train(student("run", "steps=2")) == 0
    assert "resuming from" in caplog.text
    assert "changed data order" not in caplog.text
    assert len(json.loads((newest_checkpoint(tmp_path / "run") / "state.json").read_bytes())["teachers"]) == 64


@pytest.mark.full
@pytest.mark.parametrize("is_selecting", [False, True])
def test_goes_on_to_the_bit_after_a_kill(
    student: Callable[..., RunConfig], store: Path, tmp_path: Path, is_selecting: bool
) -> None:
    select = f"select={{keep: 0.5, chunks: 3, reference: {store}, teacher: second}}"
    more = (select, "track.samples=true", "optim.type=muon") if is_selecting else ()
    whole, broken = (student(name, "micro_batch_size=6", *more) for name in ("whole", "broken"))
    assert run_ranks(train, 2, whole) == [0, 0]
    with pytest.raises(RuntimeError, match="died without a word"):
        run_ranks(killed_in_step_7, 2, broken)
    assert len(losses(Path(broken.run_dir))) == 6
    assert run_ranks(train, 2, broken) == [0, 0]
    assert losses(Path(broken.run_dir)) == losses(Path(whole.run_dir))
    if is_selecting:
        one, other = ((Path(config.run_dir) / "samples.jsonl").read_text() for config in (broken, whole))
        assert one == other
        assert one.count("\n") == 12
    found, expected = (
        saved_tensors(newest_checkpoint(Path(config.run_dir)), tmp_path / "tensors") for config in (broken, whole)
    )
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in expected)


@pytest.mark.full
def test_what_is_chosen_brings_what_teachers_said_of_it(student: Callable[..., RunConfig], store: Path) -> None:
    curves = []
    for name, world_size, size in (("alone", 1, 24), ("ranks", 2, 4)):
        chosen = f"select={{keep: 0.5, chunks: 3, reference: {store}, teacher: second}}"
        config = student(name, f"micro_batch_size={size}", chosen)
        assert run_ranks(train, world_size, config) == [0] * world_size
        curves.append([row[key] for row in metrics(Path(config.run_dir)) for key in ("loss", "distill_first")])
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)


def test_the_plan_prices_the_teachers(
    student: Callable[..., RunConfig], scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("global_batch_size=768", "precision=bf16")
    taught = make_plan(student("taught", *more), ASSUMPTIONS, world_size=4)
    plain = make_plan(tiny_config(tmp_path / "plain", scenes / "train", *more), ASSUMPTIONS, world_size=4)
    with_teachers, without = taught.asked.heaviest, plain.asked.heaviest
    products = (4 * 16 + 2 * (16 + 24)) / (4 * 16)  # the student's again, and the teachers' once each way
    assert with_teachers.pace.loss_s == pytest.approx((1 + products) * without.pace.loss_s)
    gathered = with_teachers.memory.parts.texts - without.memory.parts.texts
    assert gathered == 4 * 768 * 16 + 2 * 768 * (16 + 24)
    moved = {part.part: part.sent_bytes for part in with_teachers.pace.communication}
    assert moved["teachers' texts"] == pytest.approx(2 * 768 * (16 + 24) * 3 / 4)
    loader = with_teachers.loader
    assert loader.taught_bytes_per_s == pytest.approx(loader.pictures_per_s * 2 * 2 * (16 + 24))
    assert without.loader.taught_bytes_per_s == 0
    print_plan(taught, ASSUMPTIONS)
    print_plan(plain, ASSUMPTIONS)
    shown = capsys.readouterr().out
    assert shown.count("(0.2 kB for a picture and its captions)") == 1
    assert shown.count("teachers' texts") == 1


def test_a_teacher_that_is_not_there_ends_the_start(student: Callable[..., RunConfig]) -> None:
    config = student("run", "loss.terms.distill={teachers: {frist: {}}}")
    with pytest.raises(InputError, match=r"has no teacher 'frist'; it has first, second$"):
        train(config)


def test_distillation_without_a_store_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"loss\.terms\.distill needs teachers: set data\.teachers to a folder"):
        tiny_config(tmp_path, "none.tar", DISTILL)
