"""Loss, gradient norm and multiplier of every step as text: what the step computes does not change unseen.

Written by one kind of CPU and one version of torch, which each file names: where both are the same, every digit must
be; elsewhere the curves must agree to rounding. `--update-golden` writes them anew.
"""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from distributed.ranks import run_ranks
from tiny import metrics, tiny_config, write_scenes
from tiny_clip import write_mixed_sets

from clipx.config.schema import RunConfig
from clipx.train.trainer import train

FOLDER = Path(__file__).parent / "curves"
COLUMNS = ("loss", "grad_norm", "logit_scale")
CACHED = {1: "micro_batch_size=8", 2: "micro_batch_size=4"}  # k = 3
SHORT = ("cached", "mixture")  # of the cases on two ranks, those of `make test`
CASES: Mapping[str, tuple[str, ...]] = {
    "plain": (),
    "cached": (),
    "patch_dropout": ("model.image.patch_drop=0.5",),
    "captions": ("data.captions_per_image=2", "data.caption_key=json:captions"),
    "sigmoid": ("loss.type=sigmoid", "model.init_logit_bias=-10", "model.init_logit_scale=10"),
    "stages": (
        "stages.small={until_step: 7, image_size: 16, context_length: 6}",
        "stages.dropped={until_samples: 312, patch_drop: 0.5}",  # 13 steps of 24
        "optim.text.locked_steps=10",
    ),
    "mixture": (
        "data.train=null",
        "data.sources.one={shards: [SETS/captioned], weight: 3, caption_key: 'json:captions'}",
        "data.sources.two={shards: [SETS/labelled], caption_key: cls, class_names: [cat, dog, emu, fox], "
        "templates: ['a photo of a {c}', 'the {c}'], equal_captions: ignored}",
        "data.captions_per_image=2",
        "data.max_bad_fraction=0.1",
        "data.augment={color_jitter: {}, grayscale: 0.2, flip: 0.5}",
    ),
    "ema": ("ema.decay=0.6", "optim.clip_grad_norm=0.5"),
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes; pictures with three captions in JSON; pictures with a class. One of each of the last two is bad."""
    folder = tmp_path_factory.mktemp("sets")
    write_scenes(folder / "scenes")
    return write_mixed_sets(folder)


def case_config(name: str, world_size: int, run_dir: Path, sets: Path) -> RunConfig:
    shards = sets / ("captioned" if name == "captions" else "scenes/train")
    cached = (CACHED[world_size],) if name == "cached" else ()
    options = [option.replace("SETS", str(sets)) for option in CASES[name]]
    return tiny_config(run_dir, shards, "data.max_bad_fraction=0.1", *cached, *options)


def curve(run_dir: Path) -> str:
    rows = metrics(run_dir)
    assert [row["step"] for row in rows] == list(range(1, 21))
    lines = [" ".join(repr(row[column]) for column in COLUMNS) for row in rows]
    return "\n".join([f"# {machine()}: {' '.join(COLUMNS)}", *lines]) + "\n"


def machine() -> str:
    """What decides the last digits."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return f"torch {torch.__version__.partition('+')[0]}, {cpu.partition(':')[2].strip()}"


def numbers(text: str) -> list[list[float]]:
    return [list(map(float, line.split())) for line in text.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize(
    ("name", "world_size"),
    [
        *[(name, 1) for name in CASES],
        *[pytest.param(name, 2, marks=[] if name in SHORT else [pytest.mark.full]) for name in CASES],
    ],
)
def test_curve_is_as_recorded(
    name: str, world_size: int, sets: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = case_config(name, world_size, tmp_path / "run", sets)
    assert run_ranks(train, world_size, config) == [0] * world_size
    path, text = FOLDER / f"{name}_{world_size}.txt", curve(tmp_path / "run")
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    recorded = path.read_text()
    if recorded.splitlines()[0] == text.splitlines()[0]:
        assert text == recorded
    else:
        assert numbers(text) == [pytest.approx(row, rel=1e-3) for row in numbers(recorded)]


def test_no_recorded_curve_is_left_over() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {f"{name}_{size}" for name in CASES for size in (1, 2)}
