"""The training stream: shards -> decode -> transform -> tokenize -> Batch, along the plan.

`PairReader` makes one pair; `PairDataset` makes any contiguous part of a rank's share of a batch and replaces bad
samples; `PairStream` spreads the parts over loader processes and joins them. A part is a function of (plan, batch,
slots), so neither ranks nor workers nor the batch that a run starts at can change what is read.
"""

import atexit
import itertools
import signal
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipx import counter_random
from clipx.config.data import DataConfig
from clipx.counter_random import Stream
from clipx.data.decode import UndecodableError, alternatives, decode_captions, decode_image, first_present
from clipx.data.index import ShardIndex
from clipx.data.plan import Address, Plan
from clipx.data.shards import BadSampleError, ShardReader
from clipx.data.tokenizer import Tokenizer
from clipx.errors import ClipxError, RunError
from clipx.types import BadSample, Batch


class ImageTransform(Protocol):
    """A picture to uint8 (S, S, 3), a pure function of the picture and the seed."""

    def __call__(self, image: Image.Image, *, seed: int) -> Tensor:
        """The transformed picture."""


@dataclass(frozen=True, eq=False)
class Pair:
    """One picture and one of its captions."""

    image_HWC: Tensor
    caption: str


class PairReader:
    """Reads, decodes and augments single pairs.

    Args:
        index: the shards.
        transform: the augmentation.
        image_key: extensions that hold the picture, `;` between alternatives.
        caption_key: as in `data.caption_key`.
        seed: of the run.
    """

    def __init__(
        self, index: ShardIndex, *, transform: ImageTransform, image_key: str, caption_key: str, seed: int
    ) -> None:
        self.image_key, self.caption_key = image_key, caption_key
        keys = alternatives(f"{image_key};{caption_key}")
        self.shards = ShardReader(index, extensions={extension for extension, _ in keys})
        self._transform = transform
        self._seed = seed

    def read(self, address: Address) -> Pair:
        """The pair at `address`; its crop and the choice among its captions come from (seed, epoch, sample).

        Raises:
            BadSampleError: picture or caption is absent or undecodable, or the shard is cut.
            RunError: the storage failed.
        """
        fields = self.shards.read(address.shard, address.index).fields
        try:
            captions = decode_captions(fields, self.caption_key)  # first: cheaper than a picture to find absent
            data = first_present(fields, self.image_key)
            if data is None:
                raise BadSampleError(f"no picture under {self.image_key!r}")
            image = decode_image(data)
        except UndecodableError as error:
            raise BadSampleError(str(error)) from error
        of_sample = (address.epoch, address.sample_id)
        chosen = counter_random.key(self._seed, Stream.CAPTION, *of_sample) % len(captions)
        crop = counter_random.key(self._seed, Stream.AUGMENT, *of_sample)
        return Pair(self._transform(image, seed=crop), captions[chosen])


class PairDataset(Dataset[Batch]):
    """Contiguous parts of a rank's share of every global batch.

    Args:
        plan: the order.
        pairs: reads a pair by its address.
        tokenizer: of the text tower.
        slots: the rank's slots of each global batch.
        num_parts: parts that these slots are cut into.
    """

    def __init__(
        self, plan: Plan, pairs: PairReader, tokenizer: Tokenizer, *, slots: range, num_parts: int = 1
    ) -> None:
        self._plan = plan
        self._pairs = pairs
        self._tokenizer = tokenizer
        cuts = [slots.start + len(slots) * part // num_parts for part in range(num_parts + 1)]
        self._parts = [range(*ends) for ends in itertools.pairwise(cuts)]
        self._known_bad: dict[int, BadSample] = {}

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        """Part `key[1]` of the rank's share of global batch `key[0]`.

        Raises:
            RunError: no good sample within the plan's horizon, or the storage failed.
        """
        batch_index, part = key
        slots = self._parts[part]
        bad: dict[int, BadSample] = {}
        used, pairs = [], []
        addresses = self._plan.addresses(batch_index, slice(slots.start, slots.stop))
        for slot, address in zip(slots, addresses, strict=True):
            good, pair = self._first_good(batch_index, slot, address, bad)
            used.append(good.sample_id)
            pairs.append(pair)
        tokens_T, lengths_B = self._tokenizer.encode([pair.caption for pair in pairs])
        return Batch(
            index=batch_index,
            images_BHWC=torch.stack([pair.image_HWC for pair in pairs]),
            tokens_T=tokens_T,
            lengths_B=lengths_B,
            max_length=int(lengths_B.max()),
            sample_id_B=torch.tensor(used),
            slot_B=torch.arange(slots.start, slots.stop),
            source_B=torch.zeros(len(used), dtype=torch.int64),
            bad=tuple(bad.values()),
        )

    def _first_good(
        self, batch_index: int, slot: int, address: Address, bad: dict[int, BadSample]
    ) -> tuple[Address, Pair]:
        """The pair of a slot, or of the next place of its lane that has one; what is bad on the way goes into `bad`."""
        tried: Address | None = address
        for attempt in itertools.count(1):
            if tried is None:
                raise self._nothing_good(address, attempt - 1, bad)
            if tried.sample_id not in self._known_bad:
                try:
                    return tried, self._pairs.read(tried)
                except BadSampleError as error:
                    self._known_bad[tried.sample_id] = self._record(tried, str(error))
            bad[tried.sample_id] = self._known_bad[tried.sample_id]
            tried = self._plan.replacement(batch_index, slot, attempt)
        raise AssertionError("unreachable")

    def _record(self, address: Address, reason: str) -> BadSample:
        name = self._pairs.shards.name(address.shard, address.index)
        return BadSample(name.shard, name.key, reason, address.sample_id)

    def _nothing_good(self, address: Address, tries: int, bad: dict[int, BadSample]) -> RunError:
        first = bad[address.sample_id]
        members = self._pairs.shards.name(address.shard, address.index).members
        return RunError(
            f"none of {tries} samples in a row is a readable pair, from {first.key} of {first.shard} on "
            f"({first.reason}; members there: {', '.join(members)}); looked for a picture under "
            f"{self._pairs.image_key!r} and a caption under {self._pairs.caption_key!r}: "
            "set data.image_key and data.caption_key to what the shards hold"
        )


class _WorkerDataset(Dataset["Batch | ClipxError"]):
    """A dataset whose errors for a person cross to the parent as values: torch would add a traceback to the message."""

    def __init__(self, dataset: PairDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Batch | ClipxError:
        try:
            return self._dataset[key]
        except ClipxError as error:
            return error


class PairStream:
    """A rank's share of the global batches, in their order, from any batch on.

    Args:
        plan: the order.
        pairs: reads a pair by its address.
        tokenizer: of the text tower.
        rank: of this process.
        world_size: W, divides the plan's global batch size.
        workers: loader processes; 0 loads in this one. More than the rank has slots are not started.
        prefetch_batches: batches that the loader processes hold ready.
        pin_memory: give batches in page-locked memory.
    """

    def __init__(
        self,
        plan: Plan,
        pairs: PairReader,
        tokenizer: Tokenizer,
        *,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        prefetch_batches: int = 2,
        pin_memory: bool = False,
    ) -> None:
        size = plan.global_batch_size // world_size
        assert size * world_size == plan.global_batch_size
        self._workers = min(workers, size)
        self._num_parts = max(1, self._workers)
        slots = range(rank * size, (rank + 1) * size)
        self._dataset = PairDataset(plan, pairs, tokenizer, slots=slots, num_parts=self._num_parts)
        self._prefetch_batches = prefetch_batches
        self._pin_memory = pin_memory

    def batches(self, start: int = 0, stop: int | None = None) -> Generator[Batch, None, None]:
        """This rank's share of global batches `start`, `start` + 1, ... up to `stop`, or without end.

        A generator: its `close()` ends the loader processes.

        Raises:
            RunError: no readable sample within reach, failing storage, or a loader process that died.
        """
        order = itertools.count(start) if stop is None else range(start, stop)
        keys = ((batch_index, part) for batch_index in order for part in range(self._num_parts))
        parts = self._load_in_workers(keys) if self._workers else (self._dataset[key] for key in keys)
        try:
            while joined := list(itertools.islice(parts, self._num_parts)):
                batch = Batch.concatenate(joined)
                yield batch.pin_memory() if self._pin_memory else batch
        finally:
            parts.close()

    def _load_in_workers(self, keys: Iterable[tuple[int, int]]) -> Generator[Batch, None, None]:
        """The parts for `keys`, in order; torch hands them to the workers in turn, so that each keeps its own lanes."""
        loader = DataLoader(
            _WorkerDataset(self._dataset),
            batch_size=None,
            sampler=keys,
            num_workers=self._workers,
            prefetch_factor=self._prefetch_batches,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # torch draws a seed for its workers: not from the run's generator
        )
        parts = iter(loader)
        stop: Callable[[], None] = parts._shutdown_workers  # type: ignore[attr-defined]  # torch has no public name
        atexit.register(stop)  # before multiprocessing's own handler, whose SIGTERM the workers ignore
        try:
            while (part := next(parts, None)) is not None:
                if isinstance(part, ClipxError):
                    raise part
                yield part
        except Exception as error:
            # torch has no type for a worker that died, and one that dies while it hands over a batch breaks the
            # connection in one of several ways; a worker whose dataset raised is still alive
            if any(not worker.is_alive() for worker in parts._workers):  # type: ignore[attr-defined]
                raise RunError(
                    f"a loader process died: {' '.join(str(error).split())}; if memory or /dev/shm ran out, lower "
                    "data.workers or data.prefetch_batches; then run the same command again"
                ) from error
            raise
        finally:
            atexit.unregister(stop)
            stop()


def _start_worker(_: int) -> None:
    """Leaves signals to the parent: a stop signal sent to the whole job must not cost the batches it still wants."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def open_stream(
    index: ShardIndex,
    plan: Plan,
    *,
    data: DataConfig,
    transform: ImageTransform,
    tokenizer: Tokenizer,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> PairStream:
    """The stream of one source as the config describes it; arguments as for `PairReader` and `PairStream`."""
    pairs = PairReader(
        index, transform=transform, image_key=data.image_key, caption_key=data.caption_key, seed=plan.seed
    )
    return PairStream(
        plan,
        pairs,
        tokenizer,
        rank=rank,
        world_size=world_size,
        workers=data.workers,
        prefetch_batches=data.prefetch_batches,
        pin_memory=pin_memory,
    )
