"""The way of chosen pairs to the ranks that train on them, scores of smaller pictures, and runs with a reference."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_stores import AUGMENT, data_of, taught, write_noise
from tiny import losses, metrics, tiny_config

from clipx.config.schema import RunConfig
from clipx.data.teachers import Teachers
from clipx.errors import InputError
from clipx.train.selection import Route, resized
from clipx.train.trainer import train


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))
def test_each_pair_comes_to_the_rank_that_trains_on_it(world_size: int, per_rank: int, times: int, seed: int) -> None:
    """What all ranks send, delivered by hand, is the chosen pairs in their order, with their own tokens."""
    rng = np.random.default_rng(seed)
    chosen, num_pairs = world_size * per_rank, world_size * per_rank * times
    places_G = np.sort(rng.permutation(num_pairs)[:chosen])
    lengths_N = rng.integers(1, 7, num_pairs)
    ends_N = np.cumsum(lengths_N)
    tokens_of = [np.arange(end - length, end) for end, length in zip(ends_N, lengths_N, strict=True)]
    read = num_pairs // world_size
    routes = [Route.of(places_G, lengths_N, rank=rank, world_size=world_size) for rank in range(world_size)]
    boxes: dict[str, list[list[np.ndarray]]] = {"pairs": [], "tokens": []}
    for rank, route in enumerate(routes):
        own = slice(rank * read, (rank + 1) * read)
        rows = {"pairs": np.arange(num_pairs)[own], "tokens": np.concatenate(tokens_of[own])}
        for name, box in boxes.items():
            of_name = getattr(route, name)
            box.append(np.split(rows[name][of_name.sent], np.cumsum(of_name.num_sent)[:-1]))
    for rank, route in enumerate(routes):
        expected = places_G[rank * per_rank : (rank + 1) * per_rank]
        assert route.trained.tolist() == expected.tolist()
        arrived = {name: [sent[rank] for sent in box] for name, box in boxes.items()}
        assert np.concatenate(arrived["pairs"]).tolist() == expected.tolist()
        assert np.concatenate(arrived["tokens"]).tolist() == np.concatenate([tokens_of[i] for i in expected]).tolist()
        for name, parts in arrived.items():
            assert [len(part) for part in parts] == getattr(route, name).num_received


def test_pictures_are_made_smaller_and_never_larger() -> None:
    images_IHWC = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    small = resized(images_IHWC, 8)
    assert small.shape == (2, 8, 8, 3)
    assert small.dtype == torch.uint8
    assert small.is_contiguous()
    assert resized(images_IHWC, 16) is images_IHWC
    flat = torch.full((1, 12, 12, 3), 77, dtype=torch.uint8)
    assert resized(flat, 5).equal(torch.full((1, 5, 5, 3), 77, dtype=torch.uint8))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_noise(tmp_path_factory.mktemp("shards"), (30, 20, 30))


@pytest.fixture(scope="module")
def store(shards: list[str], tmp_path_factory: pytest.TempPathFactory) -> Teachers:
    return taught(data_of(shards), tmp_path_factory.mktemp("store") / "store")


def _config(run_dir: Path, shards: list[str], store: str, *overrides: str) -> RunConfig:
    augment = json.dumps({"crop_scale": AUGMENT.crop_scale, "flip": 0.5, "grayscale": 0.2, "color_jitter": {}})
    augment = augment[:-1] + ', "rand_augment": {}}'
    return tiny_config(
        run_dir,
        ",".join(shards),
        f"data.augment={augment}",
        "data.caption_key={txt: 1.0, 'json:long': 2.0}",
        f"select={{keep: 0.5, chunks: 4, reference: {store}, teacher: small}}",
        "steps=4",
        *overrides,
    )


@pytest.mark.parametrize(
    "more",
    [(), ("select.score=easy_reference",), ("loss.type=sigmoid", "model.init_logit_bias=-10", "select.logit_bias=-8")],
)
def test_a_run_with_a_reference(more: tuple[str, ...], shards: list[str], store: Teachers, tmp_path: Path) -> None:
    assert train(_config(tmp_path / "run", shards, str(store.folder), *more)) == 0
    assert len(losses(tmp_path / "run")) == 4
    learner = "select/learner_loss" in metrics(tmp_path / "run")[0]
    assert learner == ("select.score=easy_reference" not in more)
    for row in metrics(tmp_path / "run"):
        score = row.get("select/learner_loss", 0) - row["select/reference_loss"]
        assert row["select/score"] == pytest.approx(score, abs=1e-3)


def _refused(config: Any) -> str:
    with pytest.raises(InputError) as error:
        train(config)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_references_that_cannot_be(shards: list[str], store: Teachers, tmp_path: Path) -> None:
    folder, run_dir = str(store.folder), tmp_path / "run"
    assert _refused(_config(run_dir, shards, folder, "select.teacher=null")) == (
        f"select.teacher is not set, and {folder} has small, other; name one of them"
    )
    assert f"select.teacher is who, and {folder} has" in _refused(
        _config(run_dir, shards, folder, "select.teacher=who")
    )
    assert "select.reference=" in _refused(_config(run_dir, shards, str(tmp_path)))
    (tmp_path / "begun" / ".clipx-teach").mkdir(parents=True)
    assert "is unfinished; run the same `clipx data teach`" in _refused(
        _config(run_dir, shards, str(tmp_path / "begun"))
    )
    others = write_noise(tmp_path / "others", (60,), first=500)
    assert "taught" in _refused(_config(run_dir, others, folder))
    assert "select.image_size=24 is no multiple" in _refused(_config(run_dir, shards, folder, "select.image_size=24"))
