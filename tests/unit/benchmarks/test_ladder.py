"""The ladder with a trainer that computes nothing: which runs it does, how long, what it writes and shows."""

import csv
import io
import json
import re
import sys
import tarfile
from pathlib import Path

import ladder
import ladder_jobs
import ladder_train
import pytest
import torch
from ladder_jobs import Budget, Workshop
from ladder_page import Curve, reached_after
from ladder_spec import filled, read_ladder
from ladder_splits import half_of, write_splits
from shard_files import write_shards, write_tar

import clipx
from clipx.errors import RunError
from clipx.models.vision_tower import build_vision_tower, check_image_size

LADDER = """
base: [tests/tiny.yaml]
clock: cpu
points: 4
set: ["data.train=[{data}/train]", "optim.warmup_steps={10%}"]
evaluate: {val: {type: retrieval, data: "{data}/val"}, test: {type: retrieval, data: "{data}/val"}}
figures: {R@1: {choose: val.recall, report: test.recall}}
ingredients:
  large: {set: [optim.lr=2.0e-3]}
  stored: {prepare: ["{python} -c pass"], set: ["stages={small: {until_step: {50%}, image_size: 16}}"]}
recipes: {best: [large, stored]}
whole: [large, stored]
"""
GAINS = {"2.0e-3": 0.2, "until_step": 0.1}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The jobs of a trainer that takes 0.5 s a step and is better by GAINS."""
    jobs: list[dict] = []

    def run_job(self: Workshop, path: Path) -> None:
        job = json.loads(path.read_text())
        jobs.append(job)
        ladder_train.load(job)  # the config is one
        if job["calibrates"]:
            path.with_name("step.json").write_text(json.dumps({"train_s": 0.5, "flops": 1e12}))
            return
        steps, every = job["steps"], -(-job["steps"] // 4)
        reached = 0.1 + sum(gain for text, gain in GAINS.items() if any(text in one for one in job["overrides"]))
        (path.parent / "run" / "eval").mkdir(parents=True)
        for step in [*range(every, steps, every), steps]:
            with path.with_name("cost.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "train_s": step * 0.5, "flops": step * 1e12}) + "\n")
            for name, more in (("val", 0.0), ("test", 0.01)):
                scores = {"recall": reached * step / steps + more, "step": step, "name": name}
                (path.parent / "run" / "eval" / f"{name}-{step:08d}.json").write_text(json.dumps(scores))

    monkeypatch.setattr(ladder_jobs.Workshop, "run_job", run_job)
    return jobs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(LADDER)
    return tmp_path / "small.yaml"


def climb(path: Path, *arguments: str) -> list[dict[str, str]]:
    folder = path.parent
    ladder.main([str(path), "--seconds", "20", "--work", str(folder / "work"), "--out", str(folder), *arguments])
    with (folder / "small.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_recipe_gets_as_many_steps_as_its_seconds_buy(path: Path, trained: list[dict]) -> None:
    rows = climb(path, "--quarter", "--seeds", "2", "--only", "plain", "best")
    ends = [row for row in rows if row["step"] == row["steps"]]
    assert [(row["recipe"], row["seed"], row["budget"], row["steps"]) for row in ends] == [
        ("plain", "0", "5", "10"),
        ("best", "0", "5", "10"),
        ("best", "0", "20", "40"),  # another one begins
        ("plain", "0", "20", "40"),
        ("best", "1", "5", "10"),
        ("plain", "1", "5", "10"),
        ("plain", "1", "20", "40"),
        ("best", "1", "20", "40"),
    ]
    assert [row["step"] for row in rows if (row["recipe"], row["seed"], row["budget"]) == ("best", "0", "20")] == [
        *("10", "20", "30", "40")
    ]
    assert [job["steps"] for job in trained if job["calibrates"]] == [24, 24]
    assert ends[2]["val.recall"] == "0.4"
    assert float(ends[2]["train_s"]) == 20
    assert ends[2]["ingredients"] == "large stored"
    whole = next(job for job in trained if job["steps"] == 40 and "optim.lr=2.0e-3" in job["overrides"])
    assert "optim.warmup_steps=4" in whole["overrides"]
    assert "stages={small: {until_step: 20, image_size: 16}}" in whole["overrides"]


def test_runs_that_have_rows_of_this_machine_are_skipped(path: Path, trained: list[dict]) -> None:
    first = climb(path, "--only", "plain")
    again = climb(path, "--only", "plain", "best")
    assert [row["recipe"] for row in again] == ["plain"] * 4 + ["best"] * 4
    assert again[:4] == first
    elsewhere = (path.parent / "small.csv").read_text().replace(first[0]["hardware"], "another machine")
    (path.parent / "small.csv").write_text(elsewhere)
    assert len(climb(path, "--only", "plain")) == 12
    path.write_text(LADDER.replace("2.0e-3", "3.0e-3"))  # another recipe, though it has the same name
    assert len(climb(path, "--only", "best")) == 16


def test_a_run_whose_rows_were_lost_is_not_trained_again(path: Path, trained: list[dict]) -> None:
    climb(path, "--only", "plain")
    before = len(trained)
    (path.parent / "small.csv").unlink()
    assert len(climb(path, "--only", "plain")) == 4
    assert len(trained) == before


def test_a_set_that_is_not_there_leaves_its_figure_empty(
    path: Path, trained: list[dict], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(self: Workshop, folder: Path) -> None:
        scores = {"sets": {"cifar10": {"main_figure": 0.3}}, "mean": {"figure": 0.3, "sets": 1}}
        (folder / "suite.json").write_text(json.dumps({"model": scores}))

    monkeypatch.setattr(Workshop, "_measure_suite", measure)
    more = "suite: {name: datacomp38, data_root: none}\nfigures: {a: {report: suite.cifar10}, b: {report: suite.mean}, "
    more += "c: {choose: suite.mnist}, d: {choose: val.other}, "
    path.write_text(LADDER.replace("figures: {", more))
    *_, last = climb(path, "--only", "plain")
    assert [last.get(f"suite.{name}", "") for name in ("cifar10", "mnist", "mean", "sets")] == ["0.3", "", "0.3", "1"]
    assert "c none, d none, R@1 10.0" in capsys.readouterr().out


def test_a_work_folder_of_other_data_is_refused(
    path: Path, trained: list[dict], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(self: Workshop, path: Path) -> None:
        raise RunError("no shards")

    with monkeypatch.context() as patch:
        patch.setattr(Workshop, "run_job", failing)
        with pytest.raises(SystemExit):
            climb(path, "--only", "plain", "--data", str(path.parent / "mistyped"))
    first = climb(path, "--only", "plain", "--data", str(path.parent / "a"))
    with pytest.raises(SystemExit) as ended:
        climb(path, "--only", "plain", "--data", str(path.parent / "b"))
    assert ended.value.code == 2
    assert f"are of {path.parent / 'a'}, and" in capsys.readouterr().err
    assert climb(path, "--only", "plain", "--no-train") == first


def test_ablation_takes_each_away_and_says_what_is_no_difference(
    path: Path, trained: list[dict], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = climb(path, "--ablate", "--seeds", "2")
    names = ["plain", "only_large", "only_stored", "whole"]  # without_large is only_stored: trained once
    assert sorted({row["recipe"] for row in rows}) == sorted(names)
    shown = capsys.readouterr().out
    assert "| whole - plain | +30.0 ± 0.0 |" in shown
    assert "| whole - without_large | +20.0 ± 0.0 |" in shown
    assert "| only_stored - plain | +10.0 ± 0.0 |" in shown
    assert (path.parent / "work" / "ladder.md").read_text() in shown


def test_what_is_reported_comes_from_the_other_half(
    path: Path, trained: list[dict], capsys: pytest.CaptureFixture[str]
) -> None:
    climb(path, "--only", "plain", "best", "--report", "best")
    chosen, _, reported = capsys.readouterr().out.partition("Reported")
    assert "| best | 20 s | 1 | 20 | 40 | 0 | 40.0 | 0.25 |" in chosen  # plain's 10.0 after a quarter
    assert "| best | 20 s | 1 | 20 | 40 | 0 | 41.0 |" in reported
    assert "plain" not in reported.partition("curves")[0]
    page = (path.parent / "work" / "ladder.html").read_text()
    assert "<svg" in page
    assert "R@1" in page


@pytest.mark.parametrize("in_calibration", [False, True])
def test_a_failure_costs_its_recipe_alone(
    in_calibration: bool,
    path: Path,
    trained: list[dict],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = ladder_jobs.Workshop.run_job

    def failing(self: Workshop, path: Path) -> None:
        if "plain" in str(path) and json.loads(path.read_text())["calibrates"] == in_calibration:
            raise ladder.ClipxError("no more disk")
        whole(self, path)

    monkeypatch.setattr(ladder_jobs.Workshop, "run_job", failing)
    with pytest.raises(SystemExit) as ended:
        climb(path, "--only", "plain", "best")
    assert ended.value.code == 1
    assert re.search("FAILED: .*no more disk", capsys.readouterr().out)
    with (path.parent / "small.csv").open() as file:
        assert {row["recipe"] for row in csv.DictReader(file)} == {"best"}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("points: 4", "pints: 4", "unknown keys pints"),
        ("points: 4", "points: 0", "points=0"),
        ("best: [large", "best: [larg", "recipe best: no ingredient is called larg"),
        ("choose: val", "choose: vall", "choose: 'vall' is none of test, val"),
        ("clock: cpu", "clock: cpu\nlaunch: [torchrun]", "cpu is for one process"),
        ("evaluate:", "suite: {name: datacomp38}\nevaluate: {}\nsplits:", "suite=datacomp38 without evaluate"),
        (
            "whole:",
            "suite: {name: datacomp38}\npeers: [open_clip]\nwhole:",
            "peers=['open_clip'] leave no run that suite",
        ),
        (
            "figures: {",
            "suite: {name: datacomp38}\nfigures: {a: {report: suite.food}, ",
            "'food' is neither mean nor a set",
        ),
        ("whole:", "peers: [other]\nwhole:", "other is none of open_clip"),
        ("tiny.yaml", "tin.yaml", "tin.yaml: cannot read the config file"),
    ],
)
def test_mistakes_are_said(before: str, after: str, said: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(LADDER.replace(before, after, 1))
    with pytest.raises(SystemExit) as ended:
        climb(path)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ladder_photos", "ladder_datacomp_small"])
def test_shipped_ladders_are_configs(name: str, tmp_path: Path) -> None:
    found = read_ladder(Path(ladder.__file__).with_name(f"{name}.yaml"))
    workshop = Workshop(found, tmp_path, tmp_path, 24)
    for recipe in found.recipes.values():
        job = json.loads(
            workshop._job(tmp_path / recipe.name, recipe, seed=1, steps=200, core=None, calibrates=False).read_text()
        )
        config = ladder_train.load(job)
        assert config.num_steps == 200
        assert set(config.evaluate) == set(found.evaluate)
        assert found.clock == "cpu" or config.compile != "auto"
        sizes = {name: stage.image_size for name, stage in config.stages.items() if stage.image_size is not None}
        if sizes:
            with torch.device("meta"):
                tower = build_vision_tower(config.model.image, embed_dim=config.model.embed_dim)
            for stage, size in sizes.items():
                check_image_size(tower, size, name=f"{recipe.name}: stages.{stage}.image_size")


def launched(path: Path, launch: str) -> str:
    """What the log of a job has that was started by `launch`."""
    path.write_text(LADDER.replace("clock: cpu", f"clock: wall\nlaunch: {launch}"))
    job = path.with_name("job.json")
    job.write_text(json.dumps({"trainer": "clipx"}))
    Workshop(read_ladder(path), path.parent, path.parent, 24).run_job(job)
    return path.with_name("log.txt").read_text()


def test_jobs_are_launched_by_this_python(path: Path) -> None:
    said = launched(path, """["{python}", -c, "import sys; print(sys.executable, *sys.argv[1:])"]""")
    assert said.split() == [sys.executable, str(Path(ladder_train.__file__)), str(path.with_name("job.json"))]


def test_a_launcher_that_is_not_there_is_said(path: Path) -> None:
    with pytest.raises(RunError, match=r"no_such_launcher cannot be started \(No such file or directory\)"):
        launched(path, "[no_such_launcher]")


def test_preparations_that_were_stopped_count_all_their_seconds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(LADDER.replace('"{python} -c pass"', "first, second"))
    workshop = Workshop(found := read_ladder(path), path.parent, path.parent, 24)
    costs = {"first": [5.0, 0.5], "second": [3.0, 7.0]}  # at the first start, and at the next
    now = 0.0

    def call(self: Workshop, command: list[str], log: Path) -> None:
        nonlocal now
        now += (of := costs[command[0]]).pop(0)
        if command == ["second"] and of:
            raise ladder_jobs.StoppedError

    monkeypatch.setattr(Workshop, "_call", call)
    monkeypatch.setattr(Workshop, "_clock", lambda self: now)
    with pytest.raises(ladder_jobs.StoppedError):
        workshop.prepare(found.recipes["best"])
    now = 100.0
    assert workshop.prepare(found.recipes["best"]) == workshop.prepare(found.recipes["best"]) == 15.5


def test_a_failure_is_told_by_its_reason(path: Path) -> None:
    with pytest.raises(RunError, match=r"ended with 1: an error: no shards$"):
        launched(path, """["{python}", -c, "raise SystemExit('an error: no shards\\\\n====')"]""")


@pytest.mark.parametrize(("clock", "jobs", "said"), [("wall", "2", "by clock=wall"), ("cpu", "0", "from 1 on")])
def test_a_number_of_jobs_that_cannot_be_is_refused(
    clock: str, jobs: str, said: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(LADDER.replace("clock: cpu", f"clock: {clock}"))
    with pytest.raises(SystemExit) as ended:
        climb(path, "--jobs", jobs)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_shares_of_the_run_become_steps() -> None:
    places = {"data": "/d"}
    assert filled("until_step={90%} {data}/x {0.01%}", places, steps=31) == "until_step=28 /d/x 1"


def test_a_step_costs_the_median_of_its_phase() -> None:
    costs = [(9, 9.0), *[(9, 1.0)] * 8, (12, 5.0), *[(12, 2.0)] * 2]
    rows, total = [], 0.0
    for until, cost in costs:
        total += cost
        rows.append({"until": until, "train_s": total})
    assert ladder_train.step_cost(rows, "train_s") == pytest.approx((9 * 1 + 3 * 2) / 12)


def test_rank_0_alone_writes_what_a_step_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"until": 2, "train_s": seconds, "flops": 2 * seconds} for seconds in (1.0, 2.0)]
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        ladder_train.write_step_cost(tmp_path / "step.json", rows)
        assert [path.name for path in tmp_path.iterdir()] == (["step.json"] if rank == "0" else [])
    assert json.loads((tmp_path / "step.json").read_text()) == {"train_s": 1.0, "flops": 2.0}


def test_the_meter_leaves_out_what_is_aside_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    now = 100.0
    ladder_train.CLOCKS["test"] = lambda: now
    try:
        meter = ladder_train.Meter("test", tmp_path / "cost.jsonl")
        assert meter.spent_s == 0
        meter.start(0)
        now += 5
        with meter.aside():
            now += 50
        meter.pause()
        now += 70  # the next phase is built
        meter.note(4)
        meter.start(4)
        meter.note(5)
        now += 1
        meter.note(6)
        again = ladder_train.Meter("test", tmp_path / "cost.jsonl")
        now += 30
        again.start(5)  # killed after step 6, it goes on from step 5
        now += 2
        assert again.spent_s == 7
    finally:
        del ladder_train.CLOCKS["test"]


def test_a_run_killed_between_its_first_save_and_evaluation_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    write_shards(tmp_path / "data", [48])
    more = ["steps=4", "optim.warmup_steps=1", "checkpoint.every_steps=2", f"data.train=[{tmp_path}/data]"]
    more += [f"evaluate.val={{type: retrieval, data: {tmp_path}/data, every_steps: 2}}", f"run_dir={tmp_path}/run"]
    config, costs = clipx.load_config([Path(__file__).parents[2] / "tiny.yaml"], more), tmp_path / "cost.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(ladder_train.trainer, "evaluate", killed)
        with ladder_train.metered(ladder_train.Meter("wall", costs)), pytest.raises(KilledError):
            clipx.train(config)
    before = ladder_train.read_costs(costs)[-1]
    with ladder_train.metered(meter := ladder_train.Meter("wall", costs)):
        clipx.train(config)
    assert before["step"] == 2
    assert [row["step"] for row in ladder_train.read_costs(costs)][-3:] == [2, 4, 4]
    assert meter.flops == pytest.approx(2 * before["flops"])
    assert meter.spent_s > before["train_s"]


def test_the_least_compute_for_a_figure() -> None:
    slow, fast = (Curve(points, ()) for points in (((10, 2.0), (20, 6.0)), ((4, 1.0), (8, 5.0))))
    assert reached_after([slow], 4.0) == 15
    assert reached_after([slow, fast], 5.0) == 8
    assert reached_after([slow], 2.0) == 10
    assert reached_after([slow, fast], 7.0) is None
    by_chance = Curve(((2, 6.0), (4, 1.0), (8, 5.0), (12, 4.0), (16, 6.0), (20, 7.0)), ())
    assert reached_after([by_chance], 5.0) == 14
    assert reached_after([by_chance], 0.5) == 2
    assert reached_after([Curve((), ())], 0.5) is None


def test_halves_are_of_keys_or_of_classes(tmp_path: Path) -> None:
    write_shards(tmp_path / "pairs", [20])
    members = [
        (f"{i}.{end}", content) for i in range(20) for end, content in (("png", b"p"), ("cls", b"%d" % (i // 4)))
    ]
    write_tar(tmp_path / "wds" / "test" / "0.tar", members)
    (tmp_path / "wds" / "classnames.txt").write_text("a\nb\nc\nd\ne\n")
    splits = {"p": {"from": "{data}/pairs", "by": "key"}, "c": {"from": "{data}/wds", "by": "class"}}
    write_splits(splits, tmp_path / "halves", data=tmp_path)
    keys = {half: names(tmp_path / "halves" / "p" / half / "00000.tar") for half in ("choose", "report")}
    assert {key for half in keys.values() for key in half} == {f"{i:06d}" for i in range(20)}
    assert not keys["choose"] & keys["report"]
    assert all(half_of(key) == half for half, found in keys.items() for key in found)
    classes = {
        half: {int(key) // 4 for key in names(tmp_path / "halves" / "c" / half / "test" / "0.tar")}
        for half in ("choose", "report")
    }
    assert classes["choose"] | classes["report"] == set(range(5))
    assert not classes["choose"] & classes["report"]
    assert (tmp_path / "halves" / "c" / "report" / "classnames.txt").read_text() == "a\nb\nc\nd\ne\n"


def names(shard: Path) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(shard.read_bytes())) as tar:
        return {name.partition(".")[0] for name in tar.getnames()}


def test_budgets_have_names() -> None:
    assert [Budget(375.0, "s").name, Budget(1.5, "TFLOP").name] == ["375 s", "1.5 TFLOP"]
