"""Resolved configs as text, so that a changed default shows in review; `--update-golden` writes them anew."""

import re
from pathlib import Path

import pytest

from clipx.config.describe import describe
from clipx.config.load import dump_config, load_config

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "configs"
CONFIGS = sorted(path for folder in ("", "finetune", "fit") for path in (ROOT / "configs" / folder).glob("*.yaml"))
TOWER = "image.name=vit_base_patch32_clip_224"  # instead of that of a model that is not here


def compare(path: Path, text: str, *, update: bool) -> None:
    if update:
        path.write_text(text)
    assert path.is_file(), f"{path.name} is not there yet: run pytest tests/golden --update-golden"
    assert text == path.read_text(), f"{path.name} changed: if that is meant, run pytest tests/golden --update-golden"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_resolves_as_recorded(path: Path, request: pytest.FixtureRequest) -> None:
    begins = {"start_from:": "model", "from:": "encoder"}
    keys = [key for mark, key in begins.items() if re.search(rf"(?<!\w){mark}", path.read_text())]
    config = load_config([path], [f"{key}.{TOWER}" for key in keys])
    compare(FOLDER / _name(path), dump_config(config), update=request.config.getoption("--update-golden"))


def test_knobs_and_defaults_are_as_recorded(request: pytest.FixtureRequest) -> None:
    update = request.config.getoption("--update-golden")
    compare(FOLDER / "knobs.txt", describe() + "\n", update=update)


def test_no_recorded_config_is_left_over() -> None:
    recorded = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.*")}
    assert recorded == {_name(path) for path in CONFIGS} | {"knobs.txt"}


def _name(path: Path) -> str:
    return path.relative_to(ROOT / "configs").as_posix()
