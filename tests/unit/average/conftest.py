"""Three models to be averaged."""

from pathlib import Path

import pytest
from stored_averages import State, stored


@pytest.fixture
def three(tmp_path: Path) -> list[State]:
    return [stored(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
