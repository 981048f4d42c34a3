"""The cores and the storage that keep up with the pace of training."""

from dataclasses import dataclass
from pathlib import Path

from clipx.config.data import sources
from clipx.config.schema import RunConfig
from clipx.data.index.shard_index import load_index
from clipx.errors import InputError

CPU_MS = {"fast": 1.75, "scaled": 1.29, "pil": 4.59}
"""Milliseconds of a core to load a JPEG of 512 pixels, by `data.decode` (benchmarks/LOG.md, 2026-11-22)."""
BYTES_PER_SAMPLE = 60e3
"""Bytes of such an image with its caption; the same rows."""
_BF16 = 2  # bytes
_HEADROOM = 1.25  # the same as in `data.workers: auto`
_MAX_SHARDS = 2000  # whose sizes are looked up


@dataclass(frozen=True, kw_only=True)
class Loader:
    """The loading that one phase needs."""

    pictures_per_s: float
    """Images that all GPUs train on, or choose from."""
    read_per_pair: float
    """Pairs that are read for one that is trained on."""
    cores_per_gpu: float
    """Cores that loading keeps busy, and a quarter more."""
    storage_bytes_per_s: float
    """Bytes that all machines read of shards."""
    taught_bytes_per_s: float
    """Bytes that all machines read of stored teachers' embeddings."""
    most_pictures_per_s: float | None
    """Images that `data.workers` processes can load; None if the config leaves their number open."""


def plan_loader(
    config: RunConfig, *, pairs_per_s: float, world_size: int, cpu_s: float, bytes_per_sample: float
) -> Loader:
    """Estimates the loading that a pace of all GPUs needs; an image takes `cpu_s` seconds of a core."""
    images_per_s = pairs_per_s / config.data.captions_per_image * config.pairs_read / config.global_batch_size
    workers = config.data.workers
    return Loader(
        pictures_per_s=images_per_s,
        read_per_pair=config.pairs_read / config.global_batch_size,
        cores_per_gpu=_HEADROOM * images_per_s / world_size * cpu_s,
        storage_bytes_per_s=images_per_s * bytes_per_sample,
        taught_bytes_per_s=images_per_s * taught_bytes(config),
        most_pictures_per_s=None if workers == "auto" else max(1, workers) * world_size / cpu_s,
    )


def taught_bytes(config: RunConfig) -> int:
    """Bytes of what the run reads of its teachers for a picture: the embeddings of a view and of its captions, in bf16.

    A reference that chooses batches is one of them; where nothing else is read, it is assumed to be as wide as the
    learner, so that a store need not be there yet.

    Raises:
        InputError: the store is not finished.
    """
    distill, select = config.loss.terms.distill, config.select
    has_reference = select is not None and select.needs_reference
    of_picture = _BF16 * (1 + config.data.captions_per_image)
    if distill is None:
        return of_picture * config.model.embed_dim if has_reference else 0
    from clipx.data.teachers import teachers_of

    store = teachers_of(config)
    assert store is not None, "the config's rules want teachers"
    asked = set(distill.teachers or store.names)
    if select is not None and has_reference:
        asked.add(select.teacher or store.names[0])
    return of_picture * sum(dim for name, dim in store.dims.items() if name in asked)


def indexed_bytes(config: RunConfig) -> float | None:
    """Mean bytes of a sample in the run's shards; None if they are remote, more than 2,000, or not indexed here."""
    shards = [(source.shards, source.index) for source in sources(config.data)]
    if any("://" in pattern or pattern.startswith("pipe:") for patterns, _ in shards for pattern in patterns):
        return None
    try:
        indexes = [load_index(patterns, index_dir=index) for patterns, index in shards]
    except InputError:
        return None
    if sum(len(index.paths) for index in indexes) > _MAX_SHARDS:
        return None
    sizes = sum(Path(path).stat().st_size for index in indexes for path in index.paths)
    return sizes / sum(index.num_samples for index in indexes)
