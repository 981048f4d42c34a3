"""The average of the weights: saved, resumed, evaluated and loaded, the same for any number of processes."""

from pathlib import Path

import pytest
import torch
from distributed.ranks import run_ranks
from tiny import checkpoints, losses, saved_tensors, tiny_config, write_scenes

from clipx.errors import InputError
from clipx.pretrained import load
from clipx.train.trainer import train


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes")


def _average(run_dir: Path, step: int, scratch: Path) -> dict[str, torch.Tensor]:
    tensors = saved_tensors(run_dir / "checkpoints" / f"step-{step:08d}", scratch / f"{run_dir.name}{step}")
    return {name.removeprefix("average/"): value for name, value in tensors.items() if name.startswith("average/")}


def test_is_part_of_the_run(scenes: Path, tmp_path: Path) -> None:
    evaluation = f"evaluate={{colours: {{type: retrieval, data: {scenes / 'train'}}}}}"
    arguments = (scenes / "train", "steps=8", "ema.decay=0.6", "checkpoint.every_steps=4", evaluation)
    for name, world_size in (("one", 1), ("two", 2)):
        config = tiny_config(tmp_path / name, *arguments)
        assert run_ranks(train, world_size, config) == [0] * world_size
    (tmp_path / "two" / "checkpoints" / "step-00000008").rename(tmp_path / "gone")
    assert run_ranks(train, 1, config) == [0]  # goes on alone from step 4
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), abs=1e-5)
    one, two = (_average(tmp_path / name, 8, tmp_path / "scratch") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=0, atol=1e-5)
    trained = load(tmp_path / "one", weights="trained").model.state_dict()
    averaged = load(tmp_path / "one").model.state_dict()
    assert all(averaged[name].equal(value) for name, value in one.items())
    assert not averaged["image_tower.projection.weight"].equal(trained["image_tower.projection.weight"])
    scores = (tmp_path / "one" / "eval" / "colours-00000008.json").read_text()
    assert '"ema_' in scores


def test_begun_in_the_middle_it_starts_with_the_weights(scenes: Path, tmp_path: Path) -> None:
    plain = tiny_config(tmp_path / "run", scenes / "train", "steps=4")
    assert run_ranks(train, 1, plain) == [0]
    with pytest.raises(InputError, match="holds no average"):
        load(tmp_path / "run", weights="average")
    longer = tiny_config(tmp_path / "run", scenes / "train", "steps=5", "ema.decay=0.5", "optim.lr=0")
    assert run_ranks(train, 1, longer) == [0]
    assert len(checkpoints(tmp_path / "run")) == 2
    average = _average(tmp_path / "run", 5, tmp_path / "scratch")
    trained = load(tmp_path / "run", weights="trained").model.state_dict()
    assert all(trained[name].equal(value) for name, value in average.items())
