"""Models of a few thousand weights, wrapped and stored, and evaluation sets of a few pictures."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from shard_files import write_shards, write_tar

from clipx.config.data import DataConfig
from clipx.config.load import dump_config
from clipx.config.model import ModelConfig, TimmImageConfig, TransformerTextConfig
from clipx.config.schema import RunConfig
from clipx.models.clip import build_model
from clipx.pretrained import Pretrained

CLIP_VOCABULARY = 49_408


def tiny_model_config(*, image: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> ModelConfig:
    """Sizes that are all different, so that none can stand in for another."""
    return ModelConfig(
        embed_dim=24,
        image=replace(
            TimmImageConfig(
                name="vit_base_patch32_clip_224",
                image_size=24,
                options={"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8},
                mean=(0.5, 0.4, 0.3),
                std=(0.2, 0.25, 0.3),
            ),
            **(image or {}),
        ),
        text=TransformerTextConfig(**{"width": 20, "layers": 3, "heads": 4, "context_length": 16} | (text or {})),
    )


def tiny_pretrained(config: ModelConfig | None = None, *, seed: int = 0) -> Pretrained:
    """A model whose every weight is random, biases and gains included, as after training."""
    config = config or tiny_model_config()
    model = build_model(config, vocab_size=CLIP_VOCABULARY, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return Pretrained(model.eval(), config)


def run_config_text(config: ModelConfig) -> str:
    """A run's config file with this model."""
    data = DataConfig(train=["none.tar"])
    return dump_config(RunConfig(run_dir="runs/none", steps=1, global_batch_size=2, data=data, model=config))


def picture(seed: int, size: tuple[int, int] = (30, 26)) -> Image.Image:
    """Noise, different for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, format: str = "png") -> bytes:
    """The picture as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def write_classification_set(
    folder: Path, labels: Sequence[int], *, class_names: Sequence[str], templates: Sequence[str] = ("a photo of {c}.",)
) -> Path:
    """Picture i is `picture(i)`; two shards."""
    half = len(labels) // 2
    for shard, numbers in enumerate((range(half), range(half, len(labels)))):
        members = [
            member
            for i in numbers
            for member in ((f"s{i:04d}.cls", str(labels[i]).encode()), (f"s{i:04d}.png", encoded(picture(i))))
        ]
        write_tar(folder / "test" / f"{shard}.tar", members)
    (folder / "test" / "nshards.txt").write_text("2\n")
    (folder / "classnames.txt").write_text("\n".join(class_names) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    return folder


def write_retrieval_set(folder: Path, captions: Sequence[Sequence[str]]) -> Path:
    """Picture i is `picture(i)`, with `captions[i]`, one per line."""
    members = [
        member
        for i, lines in enumerate(captions)
        for member in ((f"s{i:04d}.png", encoded(picture(i))), (f"s{i:04d}.txt", "\n".join(lines).encode()))
    ]
    write_tar(folder / "test" / "0.tar", members)
    (folder / "test" / "nshards.txt").write_text("1")
    (folder / "dataset_type.txt").write_text("retrieval\n")
    return folder


def write_mixed_sets(folder: Path) -> Path:
    """captioned/, 90 pictures with three captions in JSON, and labelled/, 40 with a class; one of each is bad."""
    captioned = {
        i: {
            "png": encoded(picture(i)),
            "json": json.dumps({"captions": [f"number {i}", f"picture {i}", f"a {i % 7}"]}).encode(),
        }
        for i in range(90)
    }
    captioned[7] = {"png": b"broken", "json": b"{}"}
    write_shards(folder / "captioned", [50, 40], replaced=captioned)
    labelled = {i: {"png": encoded(picture(1000 + i)), "cls": str(i % 4).encode()} for i in range(40)}
    labelled[3] = {"png": encoded(picture(3)), "cls": b"99"}
    write_shards(folder / "labelled", [40], replaced=labelled)
    return folder
