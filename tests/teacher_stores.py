"""Stores of teachers' embeddings over small shards, for tests."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from shard_files import write_shards
from tiny_clip import tiny_model_config, tiny_pretrained

from clipx import counter_random
from clipx.config.data import AugmentConfig, DataConfig, JitterConfig, RandAugmentConfig
from clipx.counter_random import Stream
from clipx.data.teachers import Teachers, open_teachers
from clipx.prepare.teach import TeachOptions, teach
from clipx.prepare.teach_rows import TeacherModel
from clipx.pretrained import Pretrained

SIZE = 24
"""Pixels of the first teacher's pictures."""
VIEWS = 3
AUGMENT = AugmentConfig(
    crop_scale=(0.3, 1.0),
    flip=0.5,
    grayscale=0.2,
    color_jitter=JitterConfig(),
    rand_augment=RandAugmentConfig(),
)


def noise(number: int) -> bytes:
    """A picture of 40 x 56 pixels or more, different for each number; even ones are JPEGs."""
    height, width = 40 + number % 3 * 8, 56 + number % 5 * 4
    bits = counter_random.start(number, Stream.FOLD) + np.arange(height * width * 3)
    pixels = (counter_random.uniform(counter_random.fold(bits, 1)) * 256).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.reshape(height, width, 3)).save(buffer, "png" if number % 2 else "jpeg")
    return buffer.getvalue()


def sample(number: int) -> dict[str, bytes]:
    """A good sample with two captions in a json member and one in a text."""
    captions = f'{{"long": ["a long caption {number}", "another of {number}"]}}'
    extension = "png" if number % 2 else "jpg"
    return {extension: noise(number), "txt": f"picture {number}".encode(), "json": captions.encode()}


def write_noise(
    folder: Path, counts: Sequence[int] = (7, 5, 6), *, first: int = 0, bad: Sequence[int] = ()
) -> list[str]:
    """Shards of good samples, but those numbered in `bad`, whose pictures are none."""
    broken = {number - first: {"jpg": b"no picture", "txt": b"a"} for number in bad}
    good = {number: sample(first + number) for number in range(sum(counts))}
    return write_shards(folder, counts, replaced=good | broken)


def data_of(shards: Sequence[str], **options: Any) -> DataConfig:
    """How tests read and augment them."""
    keys: dict[str, Any] = {"augment": AUGMENT, "caption_key": {"txt": 1.0, "json:long": 2.0}}
    return DataConfig(**{"train": list(shards), **keys, **options})


def teacher(name: str, *, seed: int = 0, image_size: int = SIZE) -> TeacherModel:
    """A small model with random weights."""
    config = tiny_model_config()
    config = replace(config, image=replace(config.image, image_size=image_size))
    return TeacherModel(name, f"runs/{name}", tiny_pretrained(config, seed=seed))


def taught(data: DataConfig, out: Path, *teachers: TeacherModel, **options: Any) -> Teachers:
    """A store of these teachers, or of two."""
    given = teachers or (teacher("small"), teacher("other", seed=1, image_size=32))
    teach(data, given, str(out), options=TeachOptions(**{"views": VIEWS, "batch_size": 12, "seed": 5, **options}))
    return open_teachers(str(out))


class Recorder(Pretrained):
    """A model that keeps what it was shown, with what it made of it."""

    def __init__(self, pretrained: Pretrained) -> None:
        super().__init__(pretrained.model, pretrained.config, tokenizer=pretrained.tokenizer)
        self.pictures: dict[bytes, np.ndarray] = {}
        self.texts: dict[bytes, np.ndarray] = {}

    def encode_image(self, images: Any) -> torch.Tensor:
        """Of pixels alone."""
        image_BD = super().encode_image(images)
        for pixels_SSC, image_D in zip(images, image_BD, strict=True):
            self.pictures[pixels_SSC.numpy().tobytes()] = stored(image_D)
        return image_BD

    def encode_tokens(self, tokens_T: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """See `Pretrained`."""
        text_BD = super().encode_tokens(tokens_T, lengths_B)
        for tokens, text_D in zip(tokens_T.split(lengths_B.tolist()), text_BD, strict=True):
            self.texts[tokens.numpy().tobytes()] = stored(text_D)
        return text_BD


def stored(embedding_D: torch.Tensor) -> np.ndarray:
    """An embedding as it comes back: rounded to bfloat16, then made of unit length."""
    rounded_D: np.ndarray = embedding_D.to(torch.bfloat16).float().numpy()
    return rounded_D * np.float32(float(rounded_D.dot(rounded_D)) ** -0.5)
