"""A pass without arithmetic beside a real one: memory, FLOPs, the optimizer's state."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from tiny import tiny_config
from torch import Tensor

from clipx.config.model import TransformerTextConfig
from clipx.config.phases import phase_at
from clipx.config.schema import RunConfig
from clipx.distributed.block_transforms import checkpoint_blocks
from clipx.models.attention.backends import standing_for_cuda
from clipx.models.clip import build_model
from clipx.models.dry_run import LiveBytes, dry_run
from clipx.models.flops import flop_counter
from clipx.models.huggingface_text import HuggingFaceTextTower
from clipx.models.text_tower import build_text_tower
from clipx.plan.model import PhaseModel, computed_tokens
from clipx.types import Batch, tensors_of

PAIRS = 160
CLIP_WORDS = 49_408
CONVOLUTIONS = ["model.image.name=resnet10t", "model.image.options={}"]
# blocks large beside the vocabulary's table, or the gradient of that would be the height of every pass
IMAGE = "model.image.options={patch_size: 8, embed_dim: 64, depth: 3, num_heads: 2}"
TEXT = "model.text={type: transformer, width: 64, layers: 3, heads: 2, context_length: 24}"


def config_of(folder: Path, *settings: str) -> RunConfig:
    return tiny_config(folder / "run", "none.tar", IMAGE, TEXT, *settings)


def model_of(config: RunConfig, *, tokens: int | None = None) -> PhaseModel:
    return PhaseModel(config, phase_at(config, 0), caption_tokens=tokens or config.model.text.context_length)


def real_pass(config: RunConfig, num_pairs: int, words: int = CLIP_WORDS) -> tuple[int, int]:
    """Most bytes alive and FLOPs, with gradients there before."""
    towers = build_model(config.model, vocab_size=words, seed=0)
    for blocks in towers.block_lists():
        checkpoint_blocks(blocks, fraction=config.activation_checkpointing)

    def forward(batch: Batch) -> Iterable[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.precision == "bf16"):
            return tensors_of(towers(batch, seed=0, patch_drop=config.model.image.patch_drop)).values()

    run = dry_run(
        forward,
        image_size=config.model.image.image_size,
        context_length=config.model.text.context_length,
        captions_per_image=config.data.captions_per_image,
        device=torch.device("cpu"),
    )
    with standing_for_cuda():
        run(2)
        with LiveBytes() as live:
            run(num_pairs)
        with flop_counter() as counter:  # not at once: it keeps what checkpointing lets go
            run(num_pairs)
    return live.peak, counter.get_total_flops()


@pytest.mark.parametrize(
    "settings",
    [
        [],
        pytest.param(["activation_checkpointing=1"], marks=pytest.mark.full),
        ["activation_checkpointing=0.5", "precision=bf16", "model.image.patch_drop=0.5"],
        ["data.captions_per_image=2"],
        pytest.param(CONVOLUTIONS, marks=pytest.mark.full),
    ],
    ids=" ".join,
)
def test_memory_and_flops_are_those_of_a_real_pass(settings: list[str], tmp_path: Path) -> None:
    config = config_of(tmp_path, *settings)
    model = model_of(config)
    for num_pairs in (32, PAIRS):
        peak, flops = real_pass(config, num_pairs)
        assert model.pass_bytes(num_pairs) == pytest.approx(peak, rel=0.1)
        assert model.counted_flops * num_pairs == pytest.approx(flops, rel=0.1)


# the first runs packed, the second padded
@pytest.mark.parametrize("kind", ["BertConfig", pytest.param("T5Config", marks=pytest.mark.full)])
def test_transformers_encoders_are_run_too(kind: str, tmp_path: Path) -> None:
    sizes = {
        "BertConfig": {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256, "hidden_size": 64},
        "T5Config": {"num_layers": 3, "num_heads": 4, "d_ff": 256, "d_model": 64, "d_kv": 16},
    }[kind]
    getattr(transformers, kind)(vocab_size=CLIP_WORDS, **sizes).save_pretrained(tmp_path)
    text = f"model.text={{type: huggingface, name: {tmp_path}, context_length: 24, pretrained: false}}"
    config = config_of(tmp_path, text)
    model = model_of(config)
    peak, flops = real_pass(config, PAIRS, words=0)
    assert model.pass_bytes(PAIRS) == pytest.approx(peak, rel=0.1)
    assert model.counted_flops * PAIRS == pytest.approx(flops, rel=0.1)


def test_parameters_are_those_of_the_built_model(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    model = model_of(config)
    towers = build_model(config.model, vocab_size=CLIP_WORDS, seed=0)
    whole = sum(weight.numel() for weight in towers.parameters())
    assert model.num_parameters == model.num_trainable == sum(model.parameters.values()) == whole
    assert model.parameters["text embeddings"] == (CLIP_WORDS + 24) * 64
    assert model.parameters["beside the towers"] == 1


def test_a_locked_tower_learns_nothing_and_takes_its_forward_pass_alone(tmp_path: Path) -> None:
    free, locked = (
        model_of(config_of(tmp_path, "activation_checkpointing=1", *settings))
        for settings in ([], ["optim.image.locked_steps=all"])
    )
    image = free.objective.model.image_tower
    frozen = sum(weight.numel() for weight in image.parameters()) - image.projection.weight.numel()
    assert free.num_trainable - locked.num_trainable == frozen
    work = free.work
    assert work.useful == 3 * (work.image_forward + work.text_forward)
    assert locked.work.useful == work.image_forward + 3 * work.text_forward
    assert (work.recomputed, locked.work.recomputed) == (work.image_forward + work.text_forward, work.text_forward)
    assert locked.pass_bytes(PAIRS) < free.pass_bytes(PAIRS)


def test_the_gradient_cache_repeats_all_forward_passes_but_the_last(tmp_path: Path) -> None:
    work = model_of(config_of(tmp_path)).work
    forward = work.image_forward + work.text_forward
    assert [work.again(k) for k in (1, 2, 4)] == [0, forward / 2, 3 * forward / 4]


@pytest.mark.parametrize(("first_position", "expected"), [(0, 8), (None, 24)], ids=["packed", "padded"])
def test_texts_of_an_encoder_that_runs_padded_are_all_long(first_position: int | None, expected: int) -> None:
    tower = HuggingFaceTextTower(
        torch.nn.Identity(),
        projection=torch.nn.Identity(),
        pool="last",
        pad_token_id=0,
        context_length=24,
        first_position=first_position,
    )
    assert computed_tokens(tower, mean=8, longest=24) == expected


def test_padding_that_counts_as_text_is_planned_for() -> None:
    sizes = {"width": 8, "heads": 2, "layers": 1, "context_length": 24}
    packed = TransformerTextConfig(**sizes)
    padded = replace(packed, causal=False, pool="last", pad=24)
    for config, expected in ((packed, 8), (padded, 12)):
        tower = build_text_tower(config, vocab_size=9, embed_dim=4)
        assert computed_tokens(tower, mean=8, longest=12) == expected


def test_captions_are_as_long_as_they_are_said_to_be(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    short, longest, cut = (model_of(config, tokens=tokens) for tokens in (8, 24, 77))
    assert short.work.text_forward < longest.work.text_forward == cut.work.text_forward
    assert short.work.image_forward == longest.work.image_forward
    assert short.pass_bytes(PAIRS) == longest.pass_bytes(PAIRS)  # memory is kept for the longest
