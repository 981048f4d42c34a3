"""The card of an export: what it says, what it keeps to itself, and that its code runs."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from stored_averages import stored, weights_of
from tiny import tiny_config
from tiny_clip import picture, run_config_text, tiny_model_config, tiny_pretrained, write_classification_set

from clipx.average.options import AverageOptions
from clipx.average.run import average_models
from clipx.checkpoint.find import EXPORT_CONFIG, ModelFiles
from clipx.config.data import SourceConfig
from clipx.config.schema import RunConfig
from clipx.export import card, export_model, open_clip
from clipx.export import run as export_run
from clipx.export.averaged import read_average
from clipx.export.card_code import code_blocks
from clipx.export.options import ExportOptions, Tower
from clipx.export.run_record import RunRecord, read_run
from clipx.pretrained.fingerprint import checksum
from clipx.storage.folders import folder_at

PARITY: dict[str, Any] = {
    "pictures": 6,
    "texts": 5,
    "compared_on": "drawn",
    "consumers": {
        "transformers CLIPModel": {
            "checked": True,
            "library": "transformers 5.0",
            "limit": 1e-4,
            "same_crop": 0.81,
            "same_token_ids": 1.0,
            "largest_difference": {"pixels": 3e-8, "logits": 2e-6},
            "other_crop": {"pictures": 1, "largest_difference": 0.11},
            "other_best_text": 1,
            "notes": ["load the processor with backend='pil'"],
        },
        "open_clip": {"checked": False, "reason": "not installed"},
    },
}
SERVING = ("config.json", "clipx_config.yaml", "tokenizer_config.json", "preprocessor_config.json")
RECORD = RunRecord(
    step=40,
    samples_seen=960,
    num_samples=150,
    num_shards=4,
    versions={"torch": "2.15.0"},
    curve=({"step": 20, "samples_seen": 480, "loss": 2.5, "lr": 1e-3}, {"step": 40, "loss": 1.25, "epoch": 6.4}),
    scores={"pets": (40, {"acc1": 0.5})},
)


def written(folder: Path, config: RunConfig, run: RunRecord | None = RECORD, name: str = "mine") -> str:
    folder.mkdir(exist_ok=True)
    card.write(folder, PARITY, name=name, model=config.model, config=config, run=run)
    return (folder / "README.md").read_text()


def head(text: str) -> dict[str, object]:
    """What the hub reads."""
    content: dict[str, object] = yaml.safe_load(text.split("---\n")[1])
    return content


@pytest.fixture
def config() -> RunConfig:
    return tiny_config(Path("runs/mine"), "data/secret_project/train")


def test_the_head_is_what_the_hub_reads_and_nothing_made_up(tmp_path: Path, config: RunConfig) -> None:
    (tmp_path / "config.json").write_text("{}")  # which a graph's users need, too
    assert head(written(tmp_path, config))["library_name"] == "clipx"
    (tmp_path / "model.safetensors").touch()
    found = head(written(tmp_path, config))
    assert found == {
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "clipx", "transformers"],
    }
    tuned = replace(config, start_from="hf://some/model@main")
    assert head(written(tmp_path, tuned))["base_model"] == "some/model"


def test_it_tells_of_data_curve_scores_and_parity(tmp_path: Path, config: RunConfig) -> None:
    text = written(tmp_path, config)
    assert "| train | 1 | 960 | 6.4 |" in text
    assert "| 20 | 480 | 2.5 | 0.001 |  |" in text
    assert "| pets | 40 | acc1 | 50.00% |" in text
    assert "| transformers CLIPModel (transformers 5.0) | 81.0% | 100.0% | 2e-06 | 0.0001 | 0.11 | 1 |" in text
    assert "| open_clip | not compared |" in text
    assert "backend='pil'" in text


def test_what_several_must_know_stands_there_once_and_no_limit_has_a_word(tmp_path: Path, config: RunConfig) -> None:
    row = PARITY["consumers"]["transformers CLIPModel"] | {"limit": None}
    parity = PARITY | {"consumers": PARITY["consumers"] | {"its default": row}}
    card.write(tmp_path, parity, name="mine", model=config.model, config=config, run=None)
    text = (tmp_path / "README.md").read_text()
    assert "\n- transformers CLIPModel; its default: load the processor with backend='pil'.\n" in text
    assert "| its default (transformers 5.0) | 81.0% | 100.0% | 2e-06 | told only |" in text


def test_paths_and_secrets_stay_with_the_person(tmp_path: Path, config: RunConfig) -> None:
    shards = "https://me:verysecretword@store/{0..9}.tar"
    sources = {"a|b<script>": SourceConfig(shards=[shards], weight=2), "own": SourceConfig(shards=["/home/me/own"])}
    own = replace(config, data=replace(config.data, train=None, sources=sources), start_from="/home/me/earlier/run")
    last = {"step": 40, "samples/own": 30, "epoch/own": 0.5}
    text = written(tmp_path, own, replace(RECORD, curve=(last,)), name="x\n# not a title")
    for secret in ("verysecretword", "/home", "secret_project", "<script>"):
        assert secret not in text
    assert r"| a\|b&lt;script> | 2 |  |  |" in text
    assert "| own | 1 | 30 | 0.5 |" in text
    assert "# x # not a title\n" in text
    assert "another model, run" in text


def test_of_a_model_from_elsewhere_it_says_what_is_known(tmp_path: Path, config: RunConfig) -> None:
    model = replace(config.model, init_logit_bias=-10.0)
    card.write(tmp_path, PARITY, name="mine", model=model, config=None, run=None)
    text = (tmp_path / "README.md").read_text()
    assert head(text)["tags"] == ["siglip", "clipx"]
    assert "not known here" in text
    assert "## Curve" not in text
    assert "## Training" not in text


def test_of_an_average_it_says_what_went_in_and_what_chose_it(tmp_path: Path) -> None:
    models = tmp_path / "secret_project"
    for number in range(2):
        stored(models / f"m{number}", seed=number)
    eggs = write_classification_set(tmp_path / "eggs", [0, 1, 0], class_names=["hen", "owl"])
    options = AverageOptions(models=(models / "m0",), start=models / "m1", alphas=(0.25,))
    record = average_models(options, tmp_path / "between")
    average_models(replace(options, alphas=(0.25, 0.25), on=(eggs,)), tmp_path / "chosen")
    for source, to in (("between", "once"), ("once", "twice"), ("chosen", "third")):
        parity = export_model(tmp_path / source, tmp_path / to, ["open_clip"])
        assert checksum(weights_of(tmp_path / to)) == checksum(weights_of(tmp_path / source))
        text = (tmp_path / to / "README.md").read_text()
        assert f"| m1 | 0.75 | {record['start']['sha256'][:16]} |" in text
        assert f"| m0 | 0.25 | {record['models'][0]['sha256'][:16]} |" in text
        assert "the others' settings may differ" in text
        assert "secret_project" not in text + json.dumps(parity)
        assert ("chosen by scores on eggs" in text) == (to == "third")


def test_what_an_average_of_a_stranger_says_is_left_out_if_it_makes_no_sense(tmp_path: Path) -> None:
    files = ModelFiles("export", folder_at(str(tmp_path)), EXPORT_CONFIG)
    for text in ("{", "[]", '{"models": [{"share": {}}]}', '{"models": [{"share": "x", "model": 1, "sha256": 1}]}'):
        (tmp_path / "average.json").write_text(text)
        assert read_average(files) is None


@pytest.mark.usefixtures("nobody_compares")
def test_code_of_every_library_runs_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("open_clip")
    pytest.importorskip("sentence_transformers")
    pretrained = tiny_pretrained()
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / EXPORT_CONFIG).write_text(run_config_text(pretrained.config))
    open_clip.write(pretrained, tmp_path / "source", ExportOptions())
    export_model(tmp_path / "source", tmp_path / "export")
    picture(0, (24, 24)).save(tmp_path / "export" / "photo.jpg")
    text = (tmp_path / "export" / "README.md").read_text()
    blocks = dict(re.findall(r"With ([\w-]+):\n\n```python\n(.*?)```", text, re.DOTALL))
    assert list(blocks) == ["transformers", "sentence-transformers", "open_clip", "clipx"]
    monkeypatch.chdir(tmp_path / "export")
    capsys.readouterr()
    for code in blocks.values():
        exec(code, {})
    printed = capsys.readouterr().out.splitlines()
    similarities = [list(map(float, re.findall(r"-?\d\.\d+", line))) for line in printed if line.startswith("tensor")]
    assert len(similarities) == 3
    assert all(row == pytest.approx(similarities[0], abs=2e-3) for row in similarities)


def test_code_is_of_what_the_folder_has() -> None:
    model = tiny_model_config()
    onnx = code_blocks({"onnx/vision_model_fp16.onnx", "onnx/model_fp16.onnx", *SERVING}, model)
    assert list(onnx) == ["ONNX Runtime"]
    assert "(1, 3, 24, 24)" in onnx["ONNX Runtime"]
    assert '"onnx/vision_model_fp16.onnx"' in onnx["ONNX Runtime"]
    padded = tiny_model_config(text={"causal": False, "pool": "last", "pad": 16})
    siglip = code_blocks({"model.safetensors", *SERVING}, padded)
    assert '"padding": "max_length"' in siglip["transformers"]  # its pipeline would pad to 64
    assert '"padding": "max_length"' in siglip["sentence-transformers"]


@pytest.mark.parametrize("only", ["image", "text"])
@pytest.mark.usefixtures("nobody_compares")
def test_one_tower_has_its_own_code_and_nothing_of_the_other(
    tmp_path: Path, only: Tower, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other tower is one that transformers does not have."""
    changes = {"text": {"causal": False}} if only == "image" else {"image": {"name": "resnet10t", "options": {}}}
    pretrained = tiny_pretrained(tiny_model_config(**changes))
    monkeypatch.setattr(export_run, "load", lambda _path, **_: pretrained)
    (tmp_path / EXPORT_CONFIG).write_text(run_config_text(pretrained.config))
    options = ExportOptions(only=only)
    export_model(tmp_path, tmp_path / "export", ["hf", "pt2"], options=options)
    text = (tmp_path / "export" / "README.md").read_text()
    blocks = dict(re.findall(r"With ([\w.-]+):\n\n```python\n(.*?)```", text, re.DOTALL))
    assert list(blocks) == ["transformers", "torch.export"]
    assert ("A picture is seen" in text, "tokens is cut" in text) == (only == "image", only == "text")
    assert "clipx_config.yaml" not in text
    picture(0, (24, 24)).save(tmp_path / "export" / "photo.jpg")
    monkeypatch.chdir(tmp_path / "export")
    capsys.readouterr()
    for code in blocks.values():
        exec(code, {})
    assert f"torch.Size([{1 if only == 'image' else 2}, 24])" in capsys.readouterr().out


def test_a_sigmoid_clip_says_where_its_bias_is(tmp_path: Path, config: RunConfig) -> None:
    assert "model.config.logit_bias" not in written(tmp_path, config)
    sigmoid = replace(config, model=replace(config.model, init_logit_bias=-10.0))
    assert "`model.config.logit_bias`" in written(tmp_path, sigmoid)


def test_the_record_of_a_run_ends_at_its_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000030"
    checkpoint.mkdir(parents=True)
    order = {"fingerprint": "x", "num_shards": 2, "num_samples": 9, "lanes": 1, "shuffle_window": 1}
    state = {
        "progress": {"step": 30, "samples_seen": 720},
        "plan": order | {"global_batch_size": 24, "seed": 0},
        "wandb_id": "x",
    }
    (checkpoint / "state.json").write_text(json.dumps(state))
    rows = [{"step": step, "loss": 1 / step} for step in range(1, 41)]
    lines = [json.dumps(row) for row in (*rows[:20], {"step": 20, "loss": 7.0}, *rows[20:])]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(["not json", "[1]", *lines, '{"step": 41, "lo']))
    (tmp_path / "run" / "eval").mkdir()
    for step, accuracy in ((10, 0.1), (30, 0.3), (40, 0.4)):
        result = {"step": step, "name": "pets", "acc1": accuracy}
        (tmp_path / "run" / "eval" / f"pets-{step:08d}.json").write_text(json.dumps(result))
    found = read_run(ModelFiles("checkpoint", folder_at(str(checkpoint)), "config.yaml"))
    assert found is not None
    assert (found.step, found.samples_seen, found.num_samples) == (30, 720, 9)
    assert (found.curve[0]["step"], found.curve[-1]["step"], len(found.curve)) == (1, 30, 10)
    assert next(row["loss"] for row in found.curve if row["step"] == 20) == 7.0
    assert found.scores == {"pets": (30, {"acc1": 0.3})}
    assert read_run(ModelFiles("export", folder_at(str(checkpoint)), "config.yaml")) is None
