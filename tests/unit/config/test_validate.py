"""A config that is made or changed in Python is checked as a file is, and complains in the same words."""

import copy
import pickle
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from clipx.config.data import DataConfig
from clipx.config.load import dump_config, load_config
from clipx.config.loss import SigmoidConfig
from clipx.config.model import ModelConfig, TimmImageConfig, TransformerTextConfig
from clipx.config.optim import AdamWConfig, TowerOptimConfig
from clipx.config.schema import RunConfig
from clipx.config.sections import _inner_nodes
from clipx.errors import InputError


def run_config(**changes: Any) -> RunConfig:
    own: dict[str, Any] = {"run_dir": "runs/x", "steps": 10, "global_batch_size": 8}
    parts = {"data": DataConfig(train=["a.tar"]), "model": ModelConfig(image=TimmImageConfig(name="vit"))}
    return RunConfig(**(own | parts | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": "many"}, "steps=many: expected integer >= 1 or null"),
        ({"steps": 0}, "steps=0: expected integer >= 1 or null"),
        ({"seed": True}, "seed=true: expected integer >= -9.22337e+18 and < 9.22337e+18"),
        ({"precision": "fp64"}, "precision=fp64: expected fp32 or bf16 or fp16 or fp8"),
        ({"bach": 8}, "bach=8: unknown key; known here: job, run_dir, seed, "),
        ({"sed": 8}, "sed=8: unknown key; the nearest known is seed"),
        ({"samples": 80}, "steps=10 and samples=80: give exactly one of the two"),
        ({"loss": SigmoidConfig()}, "loss.type=sigmoid needs a bias: set model.init_logit_bias (SigLIP: -10)"),
        ({"data": 3}, "data=3: expected a mapping of `key: value`"),
        ({"optim": {"lr": "fast"}}, "optim.lr=fast: expected number >= 0"),
        ({"optim": DataConfig(train=["a.tar"])}, 'optim="DataConfig('),
    ],
)
def test_constructor_and_replace_refuse_in_the_words_of_a_file(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as made:
        run_config(**changes)
    assert str(made.value).startswith(message)
    if changes.keys() <= {item.name for item in fields(RunConfig)}:
        with pytest.raises(InputError) as replaced:
            replace(run_config(), **changes)
        assert str(replaced.value) == str(made.value)


def test_the_words_are_those_of_load_config(tmp_path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(dump_config(run_config()))
    with pytest.raises(InputError) as loaded:
        load_config([path], ["steps=many", "precision=fp64"])
    with pytest.raises(InputError) as made:
        run_config(steps="many", precision="fp64")
    assert str(made.value) == str(loaded.value)


def test_every_missing_key_is_a_line() -> None:
    with pytest.raises(InputError) as error:
        RunConfig(steps=3)  # type: ignore[call-arg]
    assert [line.split()[0] for line in str(error.value).splitlines()] == [
        "run_dir",
        "global_batch_size",
        "data",
        "model",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamWConfig(lr=-1), "lr=-1: expected number >= 0"),
        (lambda: AdamWConfig(beta=0.9), "beta=0.9: unknown key; the nearest known is betas"),  # type: ignore[call-arg]
        (lambda: TowerOptimConfig(locked_steps="some"), "locked_steps=some: expected all or integer >= 0"),  # type: ignore[arg-type]
        (
            lambda: TransformerTextConfig(heads=7),
            "model.text.heads=7 does not divide model.text.width=512; choose a divisor",
        ),
    ],
)
def test_a_part_is_checked_when_it_is_made(make: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value) == message


def classes(node: type) -> Iterator[type]:
    yield node
    for hint in get_type_hints(node).values():
        for inner in _inner_nodes(hint):
            yield from classes(inner)


def test_every_class_of_the_config_is_checked() -> None:
    found = set(classes(RunConfig))
    assert len(found) > 20
    assert [node.__name__ for node in found if not hasattr(node.__init__, "__wrapped__")] == []  # type: ignore[misc]


def test_at_most_ten_names_in_a_message() -> None:
    with pytest.raises(InputError) as error:
        run_config(zzz=1)
    assert str(error.value).count(",") == 10
    assert str(error.value).endswith(", ...")


def test_values_are_converted_as_those_of_a_file() -> None:
    config = run_config(optim={"lr": 1, "betas": [0.9, 0.95]}, stages={"small": {"until_step": 5}})
    assert config.optim == AdamWConfig(lr=1.0, betas=(0.9, 0.95))
    assert config.stages["small"].until_step == 5
    assert isinstance(config.optim.lr, float)


def test_paths_of_pathlib_are_paths() -> None:
    config = run_config(run_dir=Path("~/runs"), data=DataConfig(train=[Path("a") / "b.tar"], index=Path("i")))  # type: ignore[list-item, arg-type]
    assert (config.run_dir, config.data.train, config.data.index) == (str(Path.home() / "runs"), ["a/b.tar"], "i")


def test_configs_stay_frozen_equal_and_copyable(tmp_path) -> None:
    config = run_config()
    with pytest.raises(FrozenInstanceError):
        config.steps = 3  # type: ignore[misc]
    assert replace(config) == copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert replace(config, seed=1) != config
    (tmp_path / "a.yaml").write_text(dump_config(config))
    assert load_config([tmp_path / "a.yaml"]) == config
