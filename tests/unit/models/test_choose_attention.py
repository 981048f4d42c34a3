"""The choice of a run: the shapes that its towers have, what may compute them, and who is told."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from clipx.config.model import ModelConfig, TimmImageConfig, TransformerTextConfig
from clipx.config.phases import Phase
from clipx.models import choose_attention as module
from clipx.models.attention.backends import Choice
from clipx.models.attention.trial import Attention, Shape
from clipx.models.choose_attention import choose_attention
from clipx.models.clip import CLIP, build_model

SMALL = {"patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 2}
ALL = ["cudnn", "efficient", "flash", "one_tile"]


TEXT = TransformerTextConfig(width=64, layers=2, heads=2, context_length=24)


def model(name: str = "vit_base_patch32_clip_224", *, text: TransformerTextConfig = TEXT, **options: Any) -> CLIP:
    image = TimmImageConfig(name=name, image_size=32, options=SMALL | options)
    return build_model(ModelConfig(image=image, text=text, embed_dim=16), vocab_size=10, seed=0)


def choose(
    monkeypatch: pytest.MonkeyPatch,
    built: CLIP,
    *,
    answer: str | None = "one_tile",
    precision: str = "bf16",
    device: str = "cuda",
    on_trial: bool = True,
    **phase: Any,
) -> list[tuple[Shape, list[str]]]:
    """What was tried; every trial ends with `answer`."""
    seen = []

    def fastest(shape: Shape, candidates: Mapping[str, Attention], *, group: object) -> str | None:
        seen.append((shape, sorted(candidates)))
        return answer

    monkeypatch.setattr(module, "fastest", fastest)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91_900)
    sizes = {"image_size": 32, "patch_drop": 0.0, "context_length": 24} | phase
    choose_attention(
        built,
        phase=Phase(until=1, locked=frozenset(), **sizes),
        precision=precision,
        device=torch.device(device),
        on_trial=on_trial,
        group=None,
    )
    return seen


def choices(built: CLIP) -> tuple[list[Choice | None], list[torch.dtype | None]]:
    images, texts = built.block_lists()
    return [getattr(block, "choice", None) for block in images], [block.attn.one_tile for block in texts]


def test_both_towers_are_told_and_the_last_block_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    built = model()
    (images, for_images), (texts, for_texts) = choose(monkeypatch, built, precision="fp16")
    assert (set(images.lengths), images.heads, images.channels, images.dtype) == ({17}, 2, 32, torch.float16)
    assert (max(texts.lengths), texts.heads, texts.channels, texts.causal) == (24, 2, 32, True)
    assert (for_images, for_texts) == (ALL, ["flash", "one_tile"])
    choice = Choice(17, torch.float16, "one_tile")
    assert choices(built) == ([choice, choice, None], [torch.float16, torch.float16])


def test_no_right_kernel_or_another_one_for_texts_leaves_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    built = model()
    choose(monkeypatch, built)
    choose(monkeypatch, built, answer=None)
    assert choices(built) == ([None] * 3, [None] * 2)
    choose(monkeypatch, built, answer="flash")
    choice = Choice(17, torch.bfloat16, "flash")
    assert choices(built) == ([choice, choice, None], [None] * 2)


def test_the_shapes_are_those_of_the_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    built = model(reg_tokens=2)
    (images, _), (texts, _) = choose(monkeypatch, built, image_size=48, patch_drop=0.5, context_length=8)
    assert set(images.lengths) == {3 + 18}
    assert max(texts.lengths) == 8


def test_padded_texts_that_see_all_are_tried_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    built = model(text=replace(TEXT, causal=False, pool="last", pad=24))
    _, (texts, _) = choose(monkeypatch, built, context_length=12)
    assert (set(texts.lengths), texts.causal) == ({12}, False)


@pytest.mark.parametrize(
    ("options", "image_size", "candidates"),
    [
        ({"qk_norm": True}, 32, ["cudnn", "efficient", "flash"]),
        ({"attn_drop_rate": 0.1}, 32, ["cudnn", "efficient", "flash"]),
        ({}, 96, ["cudnn", "efficient", "flash"]),  # 145 tokens
        ({"class_token": False, "global_pool": "avg"}, 64, ["efficient", "flash", "one_tile"]),  # 64 tokens
    ],
)
def test_only_kernels_that_can_be_right_are_tried(
    options: dict[str, Any], image_size: int, candidates: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "vit_base_patch16_gap_224" if "class_token" in options else "vit_base_patch32_clip_224"
    seen = choose(monkeypatch, model(name, **options), image_size=image_size)
    assert seen[0][1] == candidates


@pytest.mark.parametrize("changed", [{"device": "cpu"}, {"precision": "fp32"}, {"on_trial": False}])
def test_nothing_is_tried_where_there_is_no_choice(
    changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    built = model()
    with caplog.at_level(logging.INFO):
        assert choose(monkeypatch, built, **changed) == []
    assert choices(built) == ([None] * 3, [None] * 2)
    assert bool(caplog.records) == ("on_trial" in changed)


def test_towers_of_other_kinds_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    image = TimmImageConfig(name="resnet18", image_size=32)
    text = TransformerTextConfig(width=64, layers=2, heads=2, context_length=200)
    built = build_model(ModelConfig(image=image, text=text, embed_dim=16), vocab_size=10, seed=0)
    assert choose(monkeypatch, built, context_length=200) == []


@pytest.mark.gpu
def test_a_real_trial_finds_a_right_kernel() -> None:
    built = model()
    choose_attention(
        built,
        phase=Phase(until=1, locked=frozenset(), image_size=32, patch_drop=0.0, context_length=24),
        precision="bf16",
        device=torch.device("cuda"),
        on_trial=True,
        group=None,
    )
    first, second, last = choices(built)[0]
    assert first is not None
    assert first == second
    assert last is None
