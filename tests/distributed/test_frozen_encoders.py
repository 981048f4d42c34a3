"""Two encoders trained apart and locked for the whole run: only what joins them learns, on any number of processes."""

import shutil
from pathlib import Path

import pytest
import torch
from distributed.ranks import run_ranks
from tiny import saved_tensors, status, tiny_config, write_scenes
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from clipx.config.schema import RunConfig
from clipx.train.trainer import train

WORDS = [
    "[PAD]",
    "[UNK]",
    "a",
    "an",
    "and",
    "the",
    "photo",
    "picture",
    "of",
    "red",
    "green",
    "blue",
    "yellow",
    "circle",
    "square",
    "triangle",
    "small",
    "large",
]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with dropout in its config, and a tokenizer of whole words."""
    folder = tmp_path_factory.mktemp("bert")
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes)).save_pretrained(folder)
    return folder


def frozen(run_dir: Path, scenes: Path, bert: Path, *overrides: str) -> RunConfig:
    """Four steps with an evaluation and a checkpoint after every second one."""
    return tiny_config(
        run_dir,
        scenes / "train",
        "steps=4",
        "model.image={name: test_resnet, image_size: 32, options: {drop_rate: 0.3}}",
        f"model.text={{type: huggingface, name: {bert}, context_length: 24}}",
        "optim={lr: 0.01, weight_decay: 0.5, warmup_steps: 1, image: {locked_steps: all}, text: {locked_steps: all}}",
        "checkpoint={every_steps: 2, every_minutes: 0, keep_last: 9}",
        f"evaluate={{seen: {{type: zeroshot, data: {scenes / 'wds_scenes'}, every_steps: 2}}}}",
        *overrides,
    )


def weights(run_dir: Path, step: int, scratch: Path) -> dict[str, Tensor]:
    """Parameters and buffers of the model, by name."""
    tensors = saved_tensors(run_dir / "checkpoints" / f"step-{step:08d}", scratch / str(step))
    return {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}


@pytest.mark.parametrize(
    ("parallel", "micro_batch_size"), [("ddp", "4"), pytest.param("fsdp2", "auto", marks=pytest.mark.full)]
)
def test_frozen_encoders_come_out_bit_for_bit(
    parallel: str, micro_batch_size: str, scenes: Path, bert: Path, tmp_path: Path
) -> None:
    options = (f"parallel.type={parallel}", f"micro_batch_size={micro_batch_size}", "ema.decay=0.5")
    config = frozen(tmp_path / "run", scenes, bert, *options)
    assert run_ranks(train, 2, config) == [0, 0]
    at = {step: weights(tmp_path / "run", step, tmp_path / "scratch") for step in (2, 4)}
    assert "image_tower.trunk.bn1.running_mean" in at[2]
    projections = {"image_tower.projection.weight", "text_tower.projection.weight", "log_logit_scale"}
    assert {name for name in at[2] if not at[2][name].equal(at[4][name])} == projections
    assert at[4]["image_tower.trunk.bn1.num_batches_tracked"] == 0
    read = BertModel.from_pretrained(bert).state_dict()
    kept = {name.removeprefix("text_tower.encoder."): value for name, value in at[4].items()}
    assert all(kept[name].equal(value) for name, value in read.items() if not name.startswith("pooler."))


@pytest.mark.full
def test_a_run_of_frozen_encoders_goes_on_as_if_it_had_not_stopped(scenes: Path, bert: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    config = frozen(cut, scenes, bert)
    assert run_ranks(train, 1, config) == [0]
    shutil.copytree(cut, whole)
    (cut / "checkpoints" / "step-00000004").rename(tmp_path / "gone")
    assert run_ranks(train, 1, config) == [0]
    assert status(cut)["step"] == 4
    one, other = (weights(folder, 4, tmp_path / folder.name) for folder in (whole, cut))
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)
