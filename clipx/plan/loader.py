"""What the pace asks of the loader and the storage."""

from dataclasses import dataclass
from pathlib import Path

from clipx.config.data import sources
from clipx.config.schema import RunConfig
from clipx.data.index.shard_index import load_index
from clipx.errors import InputError

CPU_MS = {"fast": 1.75, "scaled": 1.29, "pil": 4.59}
"""Of a core for a JPEG of 512 pixels, by `data.decode` (benchmarks/LOG.md, 2026-11-22)."""
BYTES_PER_SAMPLE = 60e3
"""Of such a picture with its caption; the same rows."""
_HEADROOM = 1.25  # as `data.workers: auto` takes
_MOST_SHARDS = 2000  # whose sizes are looked up


@dataclass(frozen=True, kw_only=True)
class Loader:
    """For one phase's pace."""

    pictures_per_s: float
    """Of all GPUs."""
    cores_per_gpu: float
    """Busy with loading, a quarter to spare."""
    storage_bytes_per_s: float
    """For all machines."""
    most_pictures_per_s: float | None
    """What `data.workers` can load, where the config says how many; none: as many as are needed."""


def plan_loader(
    config: RunConfig, *, pairs_per_s: float, world_size: int, cpu_s: float, bytes_per_sample: float
) -> Loader:
    """At a pace.

    Args:
        config: of the run.
        pairs_per_s: of all GPUs.
        world_size: GPUs.
        cpu_s: seconds of a core for a picture.
        bytes_per_sample: in the shards.
    """
    pictures_per_s = pairs_per_s / config.data.captions_per_image
    workers = config.data.workers
    return Loader(
        pictures_per_s=pictures_per_s,
        cores_per_gpu=_HEADROOM * pictures_per_s / world_size * cpu_s,
        storage_bytes_per_s=pictures_per_s * bytes_per_sample,
        most_pictures_per_s=None if workers == "auto" else max(1, workers) * world_size / cpu_s,
    )


def indexed_bytes(config: RunConfig) -> float | None:
    """Bytes of a sample, the mean over the run's shards; None where these are remote, many, or have no index here."""
    shards = [(source.shards, source.index) for source in sources(config.data)]
    if any("://" in pattern or pattern.startswith("pipe:") for patterns, _ in shards for pattern in patterns):
        return None
    try:
        indexes = [load_index(patterns, index_dir=index) for patterns, index in shards]
    except InputError:
        return None
    if sum(len(index.paths) for index in indexes) > _MOST_SHARDS:
        return None
    sizes = sum(Path(path).stat().st_size for index in indexes for path in index.paths)
    return sizes / sum(index.num_samples for index in indexes)
