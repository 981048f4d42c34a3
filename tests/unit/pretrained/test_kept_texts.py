"""A run keeps what reads its texts: it goes on, and is loaded, when the folders that it began with are gone."""

import json
import logging
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from open_clip_models import MODELS, write_bert, write_model
from shard_files import write_shards
from tiny_clip import encoded, picture, tiny_model_config
from transformers_folders import siglip_folder

import clipx
from clipx.config.load import dump_config
from clipx.config.model import HuggingFaceTextConfig, ModelConfig
from clipx.config.schema import RunConfig
from clipx.config.yaml_text import write_yaml
from clipx.data.tokenizer import HuggingFaceTokenizer, build_tokenizer
from clipx.errors import InputError
from clipx.pretrained.kept_texts import TEXTS, keep_texts, with_kept_texts

WORDS = ["a photo of a cat", "two dogs, near the red house"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    samples = {i: {"png": encoded(picture(i)), "txt": f"a cat and {i} dogs".encode()} for i in range(8)}
    write_shards(folder, [8], replaced=samples)
    return folder


def run_config(run_dir: Path, shards: Path, *overrides: str, model: ModelConfig | None = None) -> RunConfig:
    path = run_dir.with_suffix(".yaml")
    path.write_text(
        f"run_dir: {run_dir}\nsteps: 1\nglobal_batch_size: 4\nprecision: fp32\n"
        f"data: {{train: ['{shards}'], workers: 0}}\noptim: {{warmup_steps: 0}}\n"
        "checkpoint: {every_minutes: 0}\ntrack: {wandb: disabled, every_steps: 1}\n"
        + ("" if model is None else write_yaml({"model": asdict(model)}))
    )
    return clipx.load_config(path, overrides)


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.full
def test_a_run_needs_the_folder_of_its_tokenizer_no_more(shards: Path, tmp_path: Path) -> None:
    start = siglip_folder(tmp_path / "start")
    given = (f"start_from={start}", "loss.type=sigmoid")
    assert clipx.train(run_config(tmp_path / "run", shards, *given)) is clipx.Status.COMPLETE
    shutil.copytree(tmp_path / "run", tmp_path / "twin")
    assert clipx.train(run_config(tmp_path / "twin", shards, *given, "steps=2")) is clipx.Status.COMPLETE
    texts_ND = clipx.load(tmp_path / "run").encode_text(WORDS)
    shutil.rmtree(start)
    assert clipx.load(tmp_path / "run").encode_text(WORDS).equal(texts_ND)
    assert clipx.train(run_config(tmp_path / "run", shards, *given, "steps=2")) is clipx.Status.COMPLETE
    assert losses(tmp_path / "run") == losses(tmp_path / "twin")
    moved = shutil.move(tmp_path / "run", tmp_path / "moved")
    assert len(clipx.load(moved).encode_text(WORDS)) == len(WORDS)
    shutil.rmtree(moved / TEXTS)
    with pytest.raises(InputError, match=r"^tokenizer '.*start' cannot be loaded") as caught:
        clipx.load(moved)
    assert "\n" not in str(caught.value)


def test_a_run_that_started_from_a_run_keeps_its_names(shards: Path, tmp_path: Path) -> None:
    """The first one's tokenizer is gone: another name would be another model, with which no run goes on."""
    start = siglip_folder(tmp_path / "start")
    clipx.train(run_config(tmp_path / "one", shards, f"start_from={start}"))
    names = {}
    for name in ("two", "three"):
        config = run_config(tmp_path / name, shards, f"start_from={tmp_path / 'one'}")
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(dump_config(config))
        names[name] = config.model.text.tokenizer
        shutil.rmtree(start, ignore_errors=True)
    assert names == {"two": str(start), "three": str(tmp_path / "one" / TEXTS)}
    for name, tokenizer in names.items():
        again = run_config(tmp_path / name, shards, f"start_from={tmp_path / 'one'}", "steps=2")
        assert again.model.text.tokenizer == tokenizer


def test_a_run_needs_the_folder_of_its_text_encoder_no_more(shards: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    encoder = write_bert(tmp_path / "encoder")
    AutoModel.from_config(AutoConfig.from_pretrained(encoder)).save_pretrained(encoder)
    shutil.copytree(write_model(tmp_path / "other", MODELS["bert_mlp"]), encoder, dirs_exist_ok=True)  # its tokenizer
    AutoConfig.from_pretrained(tmp_path / "other" / "encoder").save_pretrained(encoder)
    model = replace(tiny_model_config(), text=HuggingFaceTextConfig(name=str(encoder), context_length=12))
    assert clipx.train(run_config(tmp_path / "run", shards, model=model)) is clipx.Status.COMPLETE
    texts_ND = clipx.load(tmp_path / "run").encode_text(WORDS)
    shutil.rmtree(encoder)
    torch.testing.assert_close(clipx.load(tmp_path / "run").encode_text(WORDS), texts_ND, atol=0, rtol=0)
    assert clipx.train(run_config(tmp_path / "run", shards, "steps=2", model=model)) is clipx.Status.COMPLETE


def test_a_copy_stands_for_the_folder_that_it_was_made_of_alone(tmp_path: Path) -> None:
    start = siglip_folder(tmp_path / "start")
    text = {"tokenizer": str(start), "vocab_size": 200}
    config, other = tiny_model_config(text=text), tiny_model_config(text=text | {"tokenizer": str(tmp_path / "other")})
    keep_texts(tmp_path, config, build_tokenizer(config.text))
    assert with_kept_texts(config, [tmp_path]) == config  # the original is there
    shutil.rmtree(start)
    assert with_kept_texts(config, [tmp_path / "no", tmp_path]).text.tokenizer == str(tmp_path / TEXTS)
    assert with_kept_texts(other, [tmp_path]) == other


def test_a_folder_of_somebody_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start = siglip_folder(tmp_path / "start")
    (tmp_path / TEXTS).mkdir()
    (tmp_path / TEXTS / "book.txt").write_text("mine")
    config = tiny_model_config(text={"tokenizer": str(start), "vocab_size": 200})
    with caplog.at_level(logging.WARNING):
        keep_texts(tmp_path, config, build_tokenizer(config.text))
    assert [path.name for path in (tmp_path / TEXTS).iterdir()] == ["book.txt"]
    assert f"cannot keep {start} in" in caplog.text
    assert "not written by clipx" in caplog.text


def test_a_folder_without_a_vocabulary_is_no_tokenizer(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "bert")  # transformers would make a tokenizer that knows no word
    with pytest.raises(InputError, match=r"bert': the folder has no vocabulary \(tokenizer.json or vocab.txt\)"):
        HuggingFaceTokenizer(str(folder), 12)
