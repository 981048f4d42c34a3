"""Small shards for tests."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from clipx.data.sample_refs import SampleRef

Sample = Mapping[str, bytes]


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], *, format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar of (name, content) members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def png(value: int, size: int = 6) -> bytes:
    """A one-coloured picture, different for each value below 2^24."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (value % 256, value // 256 % 256, value // 65536)).save(buffer, "png")
    return buffer.getvalue()


def pair(number: int) -> dict[str, bytes]:
    """A good sample whose picture and caption tell its number."""
    return {"png": png(number), "txt": f"picture {number}".encode()}


def write_shards(folder: Path, counts: Sequence[int], *, replaced: Mapping[int, Sample] | None = None) -> list[str]:
    """Shards of `counts` good pairs, numbered through as their sample ids are; `replaced` samples stand in for some."""
    paths, first = [], 0
    for number, count in enumerate(counts):
        members = [
            (f"{i:06d}.{extension}", content)
            for i in range(first, first + count)
            for extension, content in (replaced or {}).get(i, pair(i)).items()
        ]
        paths.append(str(write_tar(folder / f"{number:05d}.tar", members)))
        first += count
    return paths


def sample_ref(source: int, shard: int, index: int, *, epoch: int = 0) -> SampleRef:
    """A sample of a run whose shards have 100,000 samples each, and whose sources have 1,000 shards."""
    return SampleRef(source, shard, index, epoch, sample_id=(1000 * source + shard) * 100_000 + index)
