"""Vectors of frozen towers, computed once before training and kept in the run folder with all else that a batch needs.

    RUN_DIR/features/<set>-<fingerprint>/COLUMN.npy     row i is that of sample i; `clipx.evaluate.feature_cache`
                     <set>_targets-<fingerprint>/       the targets, so that other ones cost no pass of a tower
                    .<set>-<fingerprint>.parts/         blocks of a pass that goes on, or was killed

The ranks take turns with blocks of samples. A finished block is a file of its own that appears whole, so what a killed
pass left is taken up, on any number of ranks. A block is one forward pass with one thread, so its bits depend on its
samples and the model alone. At the end rank 0 joins the blocks.

Shapes: B good samples of a block, N all of a set, I those of them with a picture, D embedding.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed import ProcessGroup

from clipx.config.fit import FitConfig
from clipx.data.in_order import Block, InOrder, block_samples, read_in_order
from clipx.data.index.shard_index import ShardIndex
from clipx.data.kept_samples import PRESENCE, KeptSamples
from clipx.data.samples import SampleReader
from clipx.distributed.collectives import gather_objects, raise_on_all_ranks, rank, world_size
from clipx.errors import RunError
from clipx.evaluate.feature_cache import Arrays, read_entry
from clipx.fitting.feature_parts import BAD, Parts
from clipx.models.evaluating import evaluating
from clipx.models.fused import KEPT
from clipx.pretrained import Pretrained
from clipx.pretrained.fingerprint import fingerprint_of_weights
from clipx.pretrained.threads import ON_DEVICE, cores_of_rank, side_by_side
from clipx.types import BadSample

T = TypeVar("T")

BLOCK = 256
"""Samples of a forward pass."""
FOLDER = "features"
_FORMAT = 2
_DIGITS = 16
_SAY_EVERY_S = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """A set whose samples are kept."""

    name: str
    """For the folder and the log: train, val."""
    index: ShardIndex
    inputs: SampleReader
    """Reads pictures, texts and values of the table, and draws nothing."""
    targets: SampleReader
    """Reads targets alone."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What computes vectors, and for whom.

    Args:
        config: resolved, of a run that keeps features.
        pretrained: the bare model with the weights of the run's towers.
        autocast: the precision of the run.
        group: all ranks, for messages between hosts; None if there is one process.
        between: called by all ranks after every round of blocks. An exception of its own ends the pass, and another one
            takes it up.
    """

    config: FitConfig
    pretrained: Pretrained
    group: ProcessGroup | None
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext
    between: Callable[[], None] = lambda: None


Computed = tuple[Sequence[int], Arrays, Sequence[BadSample]]
"""Numbers of the good samples of a block, their arrays, and the bad ones."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """Arrays of all samples of a set that stand and fall together."""

    name: str
    what: str
    """For the log."""
    index: ShardIndex
    samples: SampleReader
    image_size: int
    depends_on: Callable[[], list[object]]
    """What the arrays depend on beside the shards, as JSON has it."""
    compute: Callable[[InOrder], Computed]


def kept_samples(work: Pass, wanted: FeatureSet) -> KeptSamples:
    """The samples of a set with their vectors: those that are kept, or computed now; all ranks call this.

    Raises:
        RunError: the storage failed, or the run folder cannot be written.
    """
    config = work.config
    inputs = _Entry(
        name=wanted.name,
        what=f"features of {wanted.name}",
        index=wanted.index,
        samples=wanted.inputs,
        image_size=work.pretrained.config.image.image_size if "image" in config.modalities else 0,
        depends_on=partial(_inputs_depend_on, work),
        compute=partial(_with_vectors, work),
    )
    targets = _Entry(
        name=f"{wanted.name}_targets",
        what=f"targets of {wanted.name}",
        index=wanted.index,
        samples=wanted.targets,
        image_size=0,
        depends_on=lambda: [{name: asdict(replace(item, weight=1.0)) for name, item in config.targets.items()}],
        compute=_as_read,
    )
    entries = [_arrays(work, entry) for entry in (inputs, targets)]
    # the first word is that on inputs, as where nothing is kept
    bad = [BadSample(**record) for arrays in reversed(entries) for record in json.loads(arrays.pop(BAD).tobytes())]
    return KeptSamples(
        columns={name: values for arrays in entries for name, values in arrays.items()},
        bad={sample.sample_id: sample for sample in bad},
        blank_tokens=work.pretrained.tokenizer.encode([""])[0].numpy(),
    )


def _arrays(work: Pass, wanted: _Entry) -> dict[str, NDArray[Any]]:
    """The arrays that are kept, or computed now."""
    group = work.group
    folder = f"{wanted.name}-{_from_rank0(partial(_fingerprint, wanted), group)}"
    entry = Path(work.config.run_dir) / FOLDER / folder
    if not _from_rank0(lambda: read_entry(entry) is not None, group):
        _compute(work, wanted, entry)
    with raise_on_all_ranks(group):
        arrays = read_entry(entry, compare=False)
        if arrays is None:
            raise RunError(f"{entry} cannot be read right after it was written: is run_dir on a disk of all ranks?")
    return dict(arrays)


def _from_rank0(find: Callable[[], T], group: ProcessGroup | None) -> T:
    """What rank 0 finds, on every rank."""
    found: list[T] = []
    with raise_on_all_ranks(group):
        if rank(group) == 0:
            found.append(find())
    value: T = gather_objects(found, group)[0][0]
    return value


def _fingerprint(wanted: _Entry) -> str:
    """Hex digits of all that the arrays depend on."""
    content = [_FORMAT, BLOCK, wanted.index.fingerprint(), wanted.depends_on()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def _inputs_depend_on(work: Pass) -> list[object]:
    config, model = work.config, work.pretrained.model
    towers = tuple(f"{name}_tower." for name in ("image", "text") if name in config.modalities)
    weights = {name: value for name, value in model.state_dict().items() if name.startswith(towers)}
    return [
        fingerprint_of_weights(weights, work.pretrained.config, work.pretrained.tokenizer),
        config.precision,
        config.data.decode,
        {name: asdict(item) for name, item in config.inputs.items()},
    ]


def _compute(work: Pass, wanted: _Entry, entry: Path) -> None:
    """Has all ranks compute the blocks that are missing, and rank 0 join them."""
    parts, group, ranks = Parts(entry), work.group, world_size(work.group)
    num_samples = int(wanted.index.counts.sum())
    num_blocks = -(-num_samples // BLOCK)
    missing = _from_rank0(lambda: parts.missing(num_blocks), group)
    blocks = [
        Block(number, block_samples(number, num_samples, batch_size=BLOCK)) for number in missing[rank(group) :: ranks]
    ]
    progress = _Progress(wanted.what, num_samples, missing=len(missing) * BLOCK, told=rank(group) == 0)
    threads = cores_of_rank(group) if work.pretrained.device.type == "cpu" else ON_DEVICE
    with closing(_computed(work, wanted, blocks, threads=threads)) as computed:
        for number in range(1, -(-len(missing) // ranks) + 1):
            with raise_on_all_ranks(group):
                if (block := next(computed, None)) is not None:
                    parts.write(*block)
            work.between()
            progress.say(number * BLOCK * ranks)
    with raise_on_all_ranks(group):
        if rank(group) == 0:
            parts.join(num_blocks, num_samples)
    progress.end(entry)


def _computed(
    work: Pass, wanted: _Entry, blocks: Sequence[Block], *, threads: int
) -> Generator[tuple[int, Arrays, Sequence[BadSample]]]:
    """Number, arrays and bad samples of each block."""
    pretrained, device = work.pretrained, work.pretrained.device
    read = read_in_order(
        wanted.samples,
        tokenizer=pretrained.tokenizer,
        counts=wanted.index.counts,
        image_size=wanted.image_size,
        blocks=blocks,
    )
    with evaluating(pretrained.model):  # before there are threads, which would switch it under each other
        found = side_by_side(wanted.compute, read, device=device, threads=threads)
        for block, (numbers, columns, bad) in zip(blocks, found, strict=True):
            yield block.number, _spread(columns, numbers, block.samples), bad


def _with_vectors(work: Pass, found: InOrder) -> Computed:
    """The columns of a block, with the vectors of what is there; zeros for what is absent."""
    batch, pretrained = found.batch, work.pretrained
    columns = dict(batch.columns)
    for modality, name in KEPT.items():
        if modality not in work.config.modalities:
            continue
        there_B = columns[PRESENCE][:, work.config.modalities.index(modality)] > 0
        columns[name] = torch.zeros(len(batch), work.config.encoder.embed_dim)
        if not there_B.any():
            continue
        with torch.no_grad(), work.autocast():
            if modality == "image":
                vectors_ID = pretrained.encode_image(batch.images_IHWC[there_B])
            else:
                tokens_T = batch.tokens_T[there_B.repeat_interleave(batch.lengths_B)]
                vectors_ID = pretrained.encode_tokens(tokens_T, batch.lengths_B[there_B])
        columns[name][there_B] = vectors_ID.float().cpu()
    return found.numbers, {name: value.numpy() for name, value in columns.items()}, batch.bad


def _as_read(found: InOrder) -> Computed:
    """The columns of a block, of which nothing is computed."""
    batch = found.batch
    return found.numbers, {name: value.numpy() for name, value in batch.columns.items()}, batch.bad


def _spread(columns: Arrays, numbers: Sequence[int], samples: range) -> Arrays:
    """The good rows of a block in their places among all."""
    rows = [number - samples.start for number in numbers]
    spread: dict[str, NDArray[Any]] = {}
    for name, values in columns.items():
        spread[name] = np.zeros((len(samples), *values.shape[1:]), values.dtype)
        spread[name][rows] = values[: len(rows)]
    return spread


class _Progress:
    """Tells a person how far the pass is.

    Args:
        what: is computed.
        num_samples: of the set.
        missing: those that this pass computes.
        told: whether this rank tells.
    """

    def __init__(self, what: str, num_samples: int, *, missing: int, told: bool) -> None:
        self._what, self._num_samples, self._told = what, num_samples, told
        self._missing = min(missing, num_samples)
        self._began = self._said = time.monotonic()

    def say(self, done: int) -> None:
        """Logs a line now and then; `done` of the missing samples are computed."""
        if self._told and time.monotonic() - self._said >= _SAY_EVERY_S:
            self._said = time.monotonic()
            pace = done / (self._said - self._began)
            log.info("%s: %d of %d samples, %.0f a second", self._what, done, self._missing, pace)

    def end(self, entry: Path) -> None:
        """Logs what it took."""
        if self._told:
            took = max(time.monotonic() - self._began, 1e-9)
            log.info(
                "%s: %d samples in %.1f s (%.0f a second), kept in %s",
                *(self._what, self._num_samples, took, self._missing / took, entry),
            )
