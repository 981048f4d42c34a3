"""What is kept of a block until its shard is whole."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from teacher_stores import data_of, taught, teacher, write_noise

from clipx.prepare import teach
from clipx.prepare.teach_reading import ReadBlock


def test_pixels_end_with_their_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard of 10,000 samples would keep 7.5 GB of five views of 224 pixels."""
    read_views, joined = teach.read_views, teach.joined
    arrays: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def watched(*arguments: Any, **options: Any) -> Iterator[ReadBlock]:
        for block in read_views(*arguments, **options):
            arrays.extend(weakref.ref(pixels) for pixels in block.pixels.values())
            yield block

    def counted(*arguments: Any, **options: Any) -> Any:
        gc.collect()
        alive.append(sum(array() is not None for array in arrays))
        return joined(*arguments, **options)

    monkeypatch.setattr(teach, "read_views", watched)
    monkeypatch.setattr(teach, "joined", counted)
    taught(data_of(write_noise(tmp_path / "s", [40])), tmp_path / "out", teacher("small"))
    assert len(arrays) == 10
    assert alive[0] <= 2  # of the last block, which generators still name
