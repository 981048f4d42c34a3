"""What the student sees is what its teachers saw, bit for bit, whatever shards a run reads and mixes."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_files import write_shards
from teacher_stores import AUGMENT, SIZE, VIEWS, Recorder, data_of, sample, taught, teacher, write_noise
from tiny_clip import tiny_model_config

from clipx.config.data import AugmentConfig, DataConfig, SourceConfig, sources
from clipx.data.build import open_reader
from clipx.data.columns import Wanted
from clipx.data.device_augment import DeviceAugment
from clipx.data.index.shard_index import build_index
from clipx.data.order import DataOrder
from clipx.data.samples import BatchReader, PartialBatch
from clipx.data.stream import PairStream
from clipx.data.teacher_columns import image_column, text_column
from clipx.data.teachers import open_teachers
from clipx.data.tokenizer import build_tokenizer
from clipx.prepare.teach_rows import TeacherModel

BAD = 3
SHARDS = 5
EPOCHS = 2 * VIEWS
TOKENIZER = build_tokenizer(tiny_model_config().text)


class Taught(NamedTuple):
    folder: Path
    shards: list[str]
    recorder: Recorder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    """Five shards in two folders, of which two have the same name."""
    root = tmp_path_factory.mktemp("taught")
    shards = [*write_noise(root / "a", bad=[BAD]), *write_noise(root / "b", (4, 6), first=18)]
    recorder = Recorder(teacher("small").pretrained)
    taught(data_of(shards), root / "out", TeacherModel("small", "", recorder), teacher("other", seed=1, image_size=32))
    return Taught(root / "out", shards, recorder)


def open_run(data: DataConfig, store: Taught, *, seed: int) -> tuple[BatchReader, DataOrder]:
    """What reads a run's batches of four pairs, with both teachers' columns."""
    described = sources(data)
    indexes = [build_index(source.shards) for source in described]
    order = DataOrder(
        [index.counts for index in indexes],
        weights=[source.weight for source in described],
        names=[source.name for source in described],
        global_batch_size=4,
        seed=seed,
        lanes=2,
        window=4,
        allow_repeats=True,
    )
    teachers = open_teachers(str(store.folder))
    reader = open_reader(
        indexes,
        order,
        data=data,
        image_size=SIZE,
        tokenizer=TOKENIZER,
        wanted=Wanted(columns=[teachers.column_reader(["other", "small"])]),
        teachers=teachers,
    )
    return reader, order


def read(data: DataConfig, store: Taught, *, seed: int, epochs: int = EPOCHS) -> list[PartialBatch]:
    """All parts of some epochs; each with its pixels as the device makes them, and its columns."""
    reader, order = open_run(data, store, seed=seed)
    pictures = 4 // data.captions_per_image
    count = epochs * order.num_samples // 4
    pixels = torch.empty((count, pictures, SIZE, SIZE, 3), dtype=torch.uint8)
    parts = [reader.read(number, range(pictures), out=pixels[number]) for number in range(count)]
    seeds = torch.from_numpy(np.stack([part.columns["augment_seed_I"] for part in parts]))
    coloured = DeviceAugment(AUGMENT)(pixels.flatten(0, 1), seeds.flatten()).reshape(pixels.shape)
    return [
        replace(part, columns={**part.columns, "pixels": rows.numpy()})
        for part, rows in zip(parts, coloured, strict=True)
    ]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_pixels_and_embeddings_belong_together(store: Taught, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(store.shards), min_size=1, max_size=SHARDS, unique=True))
    options = {"teachers": str(store.folder), "captions_per_image": data.draw(st.sampled_from([1, 2]))}
    if len(chosen) > 1 and data.draw(st.booleans()):
        cut = data.draw(st.integers(1, len(chosen) - 1))
        mixed = {"x": SourceConfig(shards=chosen[:cut]), "y": SourceConfig(shards=chosen[cut:], weight=2.0)}
        config = data_of([], train=None, sources=mixed, **options)
    else:
        config = data_of(chosen, **options)
    for part in read(config, store, seed=data.draw(st.integers(0, 5)), epochs=2):
        columns = part.columns
        for pixels, image_D in zip(columns["pixels"], columns[image_column("small")], strict=True):
            np.testing.assert_array_equal(image_D, store.recorder.pictures[pixels.tobytes()])
        ends = np.cumsum(columns["lengths_B"])[:-1]
        for tokens, text_D in zip(np.split(columns["tokens_T"], ends), columns[text_column("small")], strict=True):
            np.testing.assert_array_equal(text_D, store.recorder.texts[tokens.tobytes()])


def test_in_as_many_epochs_as_there_are_views_each_is_drawn_once(store: Taught) -> None:
    parts = read(data_of(store.shards), store, seed=1)
    seen: dict[int, list[int]] = {}
    for part in parts:
        for sample_id, seed in zip(part.columns["sample_id_I"], part.columns["augment_seed_I"], strict=True):
            seen.setdefault(int(sample_id), []).append(int(seed))
    whole = [seeds for number, seeds in seen.items() if len(seeds) >= EPOCHS - 1 and number != BAD]
    assert len(whole) > 20
    assert all(len(set(seeds)) == VIEWS for seeds in whole)
    firsts = {tuple(sorted(set(seeds))).index(seeds[0]) for seeds in whole}
    assert firsts == set(range(VIEWS)), "samples begin with different views"


def test_the_views_are_those_wherever_shards_lie(store: Taught, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "a" / "00001.tar"
    moved.parent.mkdir(parents=True)
    shutil.copy(store.shards[1], moved)
    for part in read(data_of([str(moved)]), store, seed=0, epochs=1):
        for pixels, image_D in zip(part.columns["pixels"], part.columns[image_column("small")], strict=True):
            np.testing.assert_array_equal(image_D, store.recorder.pictures[pixels.tobytes()])


def test_loader_processes_read_the_same(store: Taught) -> None:
    data = data_of(store.shards)
    reader, _ = open_run(data, store, seed=3)
    stream = PairStream(reader, slots=range(4), image_size=SIZE, workers=2)
    batches = list(stream.batches(0, 6))
    for part, batch in zip(read(data, store, seed=3, epochs=1), batches, strict=False):
        for name in (image_column("small"), text_column("other")):
            np.testing.assert_array_equal(batch.columns[name].numpy(), part.columns[name])
        assert batch.augment_seed_I is not None
        np.testing.assert_array_equal(batch.augment_seed_I.numpy(), part.columns["augment_seed_I"])


def test_a_sample_that_could_not_be_taught_is_replaced(store: Taught) -> None:
    parts = read(data_of(store.shards), store, seed=1)
    assert {bad.sample_id for part in parts for bad in part.bad} == {BAD}
    assert all(BAD not in part.columns["sample_id_I"] for part in parts)


def test_other_sizes_see_the_same_crop(tmp_path: Path) -> None:
    """Each view of one is alike one of the other alone, at half of its size."""
    shards = write_shards(tmp_path / "s", [6], replaced={number: sample(number) for number in range(6)})
    plain = data_of(shards, augment=AugmentConfig(crop_scale=(0.3, 1.0), flip=0.5))
    models = [Recorder(teacher("small").pretrained), Recorder(teacher("large", image_size=48).pretrained)]
    taught(plain, tmp_path / "out", TeacherModel("small", "", models[0]), TeacherModel("large", "", models[1]))
    small_VSSC, large_VSSC = (_pixels(model, size) for model, size in zip(models, (SIZE, 2 * SIZE), strict=True))
    halved_VSSC = large_VSSC.reshape(-1, SIZE, 2, SIZE, 2, 3).mean(dim=(2, 4))
    alike_VV = torch.corrcoef(torch.cat([small_VSSC, halved_VSSC]).flatten(1))[: len(small_VSSC), len(small_VSSC) :]
    best_V = alike_VV.max(dim=1)
    assert len(small_VSSC) == 6 * VIEWS
    assert sorted(best_V.indices.tolist()) == list(range(6 * VIEWS))
    assert best_V.values.min() > 0.8


def _pixels(model: Recorder, size: int) -> torch.Tensor:
    """float32 (V, S, S, 3): all that a teacher saw."""
    seen = [torch.frombuffer(bytearray(pixels), dtype=torch.uint8) for pixels in model.pictures]
    return torch.stack(seen).reshape(-1, size, size, 3).float()
