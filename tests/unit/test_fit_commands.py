"""Every other command with a fit run, its config, or its model: it works, or says in a line why not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fit_runs import CONFIG, NUM_TRAIN, NUM_VAL, tiny_fit, write_table_shards
from fitted_models import INPUTS, TARGETS, fitted, resolved_config, stored
from tiny import CONFIG as TINY
from tiny import tiny_config
from tiny_clip import CLIP_VOCABULARY, picture, write_classification_set
from typer.testing import CliRunner

from clipx.average.options import AverageOptions
from clipx.average.run import average_models
from clipx.cli import app
from clipx.config.load import dump_config, load_config
from clipx.config.sections import as_tree
from clipx.config.yaml_text import read_yaml
from clipx.doctor.storage import check_shards
from clipx.errors import InputError
from clipx.models.clip import build_model
from clipx.models.fused import build_fused_model
from clipx.pretrained import load_fitted, run_config, start_from
from clipx.report.compare import final_rows, read_runs
from clipx.report.recorded import read_run
from clipx.report.run_page import run_page, summary
from clipx.report.write import write_report
from clipx.train.trainer import train

TOWERS = ("image_tower.", "text_tower.")
Command = Callable[..., str]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table_shards(tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="module")
def run_dir(shards: Path) -> Path:
    """A fit run of one epoch."""
    folder = shards / "run"
    assert train(tiny_fit(folder, shards, "epochs=1")) == 0
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs a command in an empty folder; returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments: object, code: int = 0) -> str:
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if isinstance(done.exception, Exception) and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code, done.output
        return done.output

    return invoke


@pytest.fixture
def unbegun(tmp_path: Path) -> Path:
    """The config of a run that has not begun; its table is there."""
    (tmp_path / "table.csv").write_text("photo,title,colour\n,a red thing,red\n,a blue thing,blue\n")
    tree = read_yaml(CONFIG.read_text()) | {"run_dir": str(tmp_path / "new"), "data": {"train": "table.csv"}}
    path = tmp_path / "fit.yaml"
    path.write_text(json.dumps(tree))
    return path


def test_config_prints_what_it_reads(run_dir: Path, command: Command) -> None:
    assert read_yaml(command("config", run_dir / "config.yaml")) == read_yaml((run_dir / "config.yaml").read_text())


def test_plan_and_stats_are_for_pretraining(unbegun: Path, command: Command) -> None:
    for arguments in (("plan", unbegun, "--gpus", 8, "--gpu", "H100"), ("data", "stats", unbegun)):
        with pytest.raises(InputError, match=r"^`clipx (plan|data stats)` is for pretraining, .* has job=fit"):
            command(*arguments)


def test_launch_checks_the_batch_and_starts_the_same_command(unbegun: Path, command: Command) -> None:
    assert f"torchrun.sh {unbegun}" in command("launch", "torchrun", unbegun, "--gpus-per-node", 2, "--dry-run")
    assert str(unbegun) in command("launch", "accelerate", unbegun, "--gpus-per-node", 2, "--dry-run")
    with pytest.raises(InputError, match="global_batch_size=24 is not divisible by the 7 processes"):
        command("launch", "slurm", unbegun, "--nodes", 1, "--gpus-per-node", 7, "--dry-run")


def test_doctor_looks_for_the_table_or_the_shards(
    unbegun: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, begun = load_config(unbegun), load_config(run_dir / "config.yaml")
    monkeypatch.chdir(unbegun.parent)
    (table,) = check_shards(before)
    assert table.value == "table.csv becomes shards in run_dir when the run begins"
    gone = load_config(unbegun, ["data.train=gone.csv"])
    assert [finding.value for finding in check_shards(gone)] == ["data.train: gone.csv is not there"]
    (read,) = check_shards(begun)
    assert read.value.startswith("2 shards")


def test_data_check_reads_samples_as_the_run_does(run_dir: Path, unbegun: Path, command: Command) -> None:
    total = NUM_TRAIN + NUM_VAL
    assert f"{total} samples: {total} good" in command("data", "check", run_dir / "config.yaml", "--workers", 1)
    with pytest.raises(InputError, match=r"^data.train=table.csv becomes shards in run_dir=.*, and it has not yet"):
        command("data", "check", unbegun)


def test_data_check_names_a_cell_that_cannot_be_read(run_dir: Path, tmp_path: Path, command: Command) -> None:
    tree = read_yaml((run_dir / "config.yaml").read_text())
    tree["inputs"]["weight"]["column"] = "colour"
    tree["targets"].pop("colour")
    (tmp_path / "other.yaml").write_text(json.dumps(tree))
    told = command("data", "check", tmp_path / "other.yaml", "--workers", 1, code=1)
    assert "unreadable record" in told
    assert "column 'colour': 'black' is no number" in told


def test_data_show_draws_rows_with_their_joined_text(run_dir: Path, tmp_path: Path, command: Command) -> None:
    assert "24 pictures (train 24); 24 shown" in command("data", "show", run_dir / "config.yaml")
    assert (tmp_path / "batch-0.png").is_file()


def test_a_report_has_every_target_and_the_last_evaluation(run_dir: Path, tmp_path: Path) -> None:
    run = read_run(run_dir)
    page = run_page(run)
    for told in (
        "Loss of each target",
        "<figcaption>colour accuracy</figcaption>",
        "<figcaption>price r2</figcaption>",
        "val at step 4",
        "without image",
        ">price mae<",
        "colour, price, tags from photo, title, weight, shop; gated, 24 rows a step",
    ):
        assert told in page, told
    assert "pairs" not in page
    facts = summary(run, {})
    assert facts["rows seen"] == NUM_TRAIN
    assert str(facts["val, colour accuracy"]).endswith("%")
    (last,) = run.evaluations["val"]
    assert 0 <= last.trivial["colour/accuracy"] <= 1
    assert write_report(run_dir, tmp_path / "r.html").is_file()  # with pictures: there are no sets to look at


def test_runs_of_both_kinds_are_compared(run_dir: Path, shards: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    config = tiny_fit(other, shards, "epochs=1", "fusion=concat")
    other.mkdir()
    (other / "config.yaml").write_text(dump_config(config))
    (other / "metrics.jsonl").write_text((run_dir / "metrics.jsonl").read_text())
    rows = {row[0]: row[1:] for row in final_rows(read_runs([run_dir, other]))}
    assert rows["val, colour accuracy"][0].endswith("%")
    assert not rows["val, price mae"][0].endswith("%")
    assert "val, price mae, without image" not in rows
    pretrained = tmp_path / "pretrained"
    pretrained.mkdir()
    (pretrained / "config.yaml").write_text(dump_config(tiny_config(pretrained, "none.tar")))
    assert len(read_runs([run_dir, pretrained])) == 2


def test_towers_of_a_fitted_model_embed_and_classify(run_dir: Path, tmp_path: Path, command: Command) -> None:
    picture(1).save(tmp_path / "one.png")
    assert "embeddings of 1 pictures, 16 numbers each" in command("embed", run_dir, "one.png", "--out", "embedded")
    assert "red" in command("classify", run_dir, "one.png", "--classes", "red,blue", "--no-cache")
    labelled = write_classification_set(tmp_path / "set", [0, 1, 0, 1], class_names=["red", "blue"])
    assert "acc1" in command("zeroshot", run_dir, labelled)


def test_pretraining_begins_with_the_towers_alone(
    run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = run_config.load_config(
        TINY, [f"run_dir={tmp_path / 'run'}", "data.train=[none.tar]", f"start_from={run_dir}", "model=null"]
    )
    before, model = load_fitted(run_dir), build_model(config.model, vocab_size=CLIP_VOCABULARY, seed=1)
    start_from(run_dir, model, config=config.model, tokenizer=before.tokenizer)
    assert_equal(model.state_dict(), {name: before.model.state_dict()[name] for name in model.state_dict()})
    assert f"{run_dir} predicts colour, price, tags: its towers are taken alone" in caplog.text


def test_a_fit_begins_with_the_towers_of_another_whatever_its_targets(run_dir: Path) -> None:
    before = load_fitted(run_dir)
    targets = {"mass": {"type": "number", "mean": 0.0, "std": 1.0}}
    config = resolved_config({"photo": "image"}, targets, encoder=as_tree(before.config))
    model = build_fused_model(config, vocab_size=CLIP_VOCABULARY)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith(TOWERS)}
    start_from(run_dir, model, config=config.model, tokenizer=before.tokenizer)
    taken = {name: tensor for name, tensor in before.model.state_dict().items() if name.startswith(TOWERS)}
    assert_equal(model.state_dict(), own | taken)


def test_a_start_that_is_not_there_is_told_by_its_key(unbegun: Path, command: Command) -> None:
    with pytest.raises(InputError, match=r"^encoder\.from: nowhere: no such folder"):
        command("train", unbegun, "encoder.from=nowhere")
    tree = read_yaml(unbegun.read_text())
    unbegun.write_text(json.dumps(tree | {"encoder": {"from": "nowhere"}}))
    with pytest.raises(InputError, match=r"^encoder\.from: nowhere: no such folder"):
        command("config", unbegun)


def test_models_of_one_fit_are_averaged(tmp_path: Path) -> None:
    for seed in (0, 1):
        stored(tmp_path / f"{seed}", fitted(seed=seed))
    average_models(AverageOptions(models=(tmp_path / "0", tmp_path / "1")), tmp_path / "average")
    models = [load_fitted(tmp_path / name).model.state_dict() for name in ("0", "1", "average")]
    torch.testing.assert_close(models[2]["mean_MD"], (models[0]["mean_MD"] + models[1]["mean_MD"]) / 2)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("targets", "category", {"type": "class", "classes": ["hat", "cup", "ball"], "counts": [3, 4, 5]}),
        ("targets", "size", {"type": "number", "mean": 1e4, "std": 60.0}),
        ("inputs", "weight", {"type": "number", "mean": 0.0, "std": 0.5}),
    ],
)
def test_models_whose_outputs_mean_something_else_are_not(tmp_path: Path, part: str, key: str, value: object) -> None:
    parts = {"inputs": INPUTS, "targets": TARGETS}
    other = {**parts, part: parts[part] | {key: value}}
    stored(tmp_path / "0", fitted())
    stored(tmp_path / "1", fitted(resolved_config(other["inputs"], other["targets"])))
    with pytest.raises(InputError, match=rf"0 and .*1 are of different architecture: {part}\.{key}\..* -> "):
        average_models(AverageOptions(models=(tmp_path / "0", tmp_path / "1")), tmp_path / "average")


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    different = [name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)]
    assert not different
