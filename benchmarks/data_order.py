"""The data order at internet scale, on paper and simulated: planning, memory, resuming, remote reads, shuffling.

    python benchmarks/data_order.py [--shards 500000] [--per-shard 10000] [--ranks 8 1024] [--batch 4096 65536]

No shard is read: the data order is all there is to a stream's order, so the set may be of any size. Rows go to
results/data_order.csv, `what` says which of three tables they belong to.

planning: in a fresh process, what index (addresses and counts) and data order add to its memory, and the time to name
the samples of one rank's share of a batch: of the first one, of a random later one with nothing cached (a resumed run),
and of those after it. Beside it the time of one block's request at 30 ms and 75 MB/s, what a resumed rank waits for.

reading: what the loader processes of a rank ask a remote store for, by the code that asks (`PrefetchSchedule` and
`merge_spans`), where a sample's members lie side by side in its shard and have `--sample-kb` together. Read bytes are
divided by used ones; `held` are those in memory, fetched ahead. Beside it webdataset: each process has one connection,
reads whole shards, and holds a buffer of encoded samples.

shuffling: pairs of its own shard that a pair meets in its batch, and distinct shards of a batch, where each shard holds
one topic. webdataset is simulated by its documented algorithm with open_clip's numbers: shards in random order, dealt
to 512 processes in turn, each with a buffer of 5,000 samples that yields from 1,000 on, takes in two samples for each
that it yields until it is full, and yields at random. `even`: every process gives an equal share of every batch, its
best case. `open_clip`: 64 ranks take each batch from one of their 8 processes in turn, as its loader does. `first`:
the first 1,000 samples of each process, as after every start; the others are with full buffers.
"""

import argparse
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness import RESULTS, print_table, write_rows

from clipx.data.order import DataOrder
from clipx.data.prefetch import Span, merge_spans
from clipx.data.prefetch_schedule import PrefetchSchedule
from clipx.data.sample_refs import SampleRef

PROCESSES, RANKS = 512, 64  # of webdataset
BUFFER, INITIAL = 5_000, 1_000  # open_clip's, in each process
FEW_SHARDS = (2_000, 5_000)  # shards of a second set, and samples of each
HEADER = 512  # bytes before a member of a tar file
REQUEST_S, BYTES_PER_S = 0.03, 75e6  # of an object store: the middle of what `clipx.data.prefetch` counts on

COLUMNS = {
    "planning": (
        "shards", "pairs", "G", "W", "index_mb", "plan_mb", "peak_mb", "plan_s", "resume_ms", "batch_ms",
        "window_ms",
    ),
    "reading": (
        "method", "G", "W", "workers", "lanes", "window", "open_shards", "requests_per_batch", "read_over_used",
        "held_mb",
    ),
    "shuffling": ("shards", "per_shard", "G", "method", "same_shard_pairs", "distinct_shards"),
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """The run that is planned."""

    shards: int
    per_shard: int
    global_batch_size: int
    world_size: int
    seed: int = 0

    def counts(self) -> np.ndarray:
        """Samples of each shard, a tenth more or less than `per_shard`."""
        draw = np.random.default_rng(self.seed)
        return draw.integers(self.per_shard * 9 // 10, self.per_shard * 11 // 10 + 1, self.shards)

    def order(self, lanes: "Lanes | None" = None) -> DataOrder:
        """The data order of the run, by default with its own choice of lanes."""
        chosen = (lanes or Lanes())._asdict()
        return DataOrder(
            [self.counts()], global_batch_size=self.global_batch_size, seed=self.seed, allow_repeats=True, **chosen
        )

    def slots(self, rank: int, part: int = 0, parts: int = 1) -> range:
        """Those of a rank, or of one of its loader processes."""
        size = self.global_batch_size // self.world_size
        cuts = [rank * size + size * number // parts for number in (part, part + 1)]
        return range(*cuts)


class Lanes(NamedTuple):
    """Lanes and window of a data order."""

    lanes: int | str = "auto"
    window: int | str = "auto"

    @staticmethod
    def parse(text: str) -> "Lanes":
        """From `LANESxWINDOW`."""
        lanes, window = map(int, text.split("x"))
        return Lanes(lanes, window)


def planning(scale: Scale, *, sample_bytes: int = 50_000, num_batches: int = 50) -> dict[str, object]:
    """Time and memory of the data order, in this process: start a fresh one for figures that count."""
    draw = np.random.default_rng(1)
    slots = scale.slots(scale.world_size // 3)
    at_start = _memory("VmRSS")
    paths = [f"s3://bucket/folder/{number:08d}.tar" for number in range(scale.shards)]
    counts = scale.counts()
    with_index = _memory("VmRSS")
    began = time.perf_counter()
    order = scale.order()
    order.sample_refs(0, slice(slots.start, slots.stop))
    plan_s = time.perf_counter() - began
    order = scale.order()
    step = int(draw.integers(3 * int(counts.sum()) // scale.global_batch_size))  # of three epochs
    began = time.perf_counter()
    order.sample_refs(step, slice(slots.start, slots.stop))
    resume_s = time.perf_counter() - began
    began = time.perf_counter()
    for number in range(1, num_batches + 1):
        order.sample_refs(step + number, slice(slots.start, slots.stop))
    batch_s = (time.perf_counter() - began) / num_batches
    return {
        "shards": len(paths),
        "pairs": int(counts.sum()),
        "G": scale.global_batch_size,
        "W": scale.world_size,
        "index_mb": with_index - at_start,
        "plan_mb": _memory("VmRSS") - with_index,
        "peak_mb": _memory("VmHWM") - at_start,
        "plan_s": plan_s,
        "resume_ms": 1000 * resume_s,
        "batch_ms": 1000 * batch_s,
        "window_ms": 1000 * (REQUEST_S + order.window * sample_bytes / BYTES_PER_S),
    }


def _memory(name: str) -> float:
    """MB of this process: VmRSS now, VmHWM at most."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024 / 1e6


class _Fetched(NamedTuple):
    """What one announcement makes a loader process fetch."""

    until: int
    shards: frozenset[int]
    num_bytes: int


@dataclass
class Requests:
    """Stands in for the shard reader: adds up what it would ask of the store."""

    sample_bytes: int
    remote_sources: frozenset[int] = frozenset([0])
    num_requests: int = 0
    num_samples: int = 0
    read_bytes: int = 0
    live: list[_Fetched] = field(default_factory=list)

    def expect(self, refs: Sequence[SampleRef], *, until: int) -> None:
        """Stands for ShardReader.expect; every sample's members are one range."""
        shards = {ref.shard for ref in refs}
        fetched = 0
        for shard in shards:
            starts = [self.sample_bytes * ref.index for ref in refs if ref.shard == shard]
            spans = merge_spans([Span(start + HEADER, start + self.sample_bytes) for start in starts])
            self.num_requests += len(spans)
            fetched += sum(span.stop - span.start for span in spans)
        self.num_samples += len(refs)
        self.read_bytes += fetched
        self.live.append(_Fetched(until, frozenset(shards), fetched))

    def forget(self, before: int) -> None:
        """Stands for ShardReader.forget."""
        self.live = [item for item in self.live if item.until >= before]


def reading(
    scale: Scale, *, workers: int, sample_bytes: int, ranks: int = 2, lanes: Lanes | None = None
) -> dict[str, object]:
    """What a rank's loader processes ask for, the mean of some ranks over some windows."""
    order = scale.order(lanes)
    draw = np.random.default_rng(2)
    span = order.batches_per_block() - 1
    first = span * int(draw.integers(max(1, order.num_samples // scale.global_batch_size // span)))
    num_batches = 4 * span
    total = Requests(sample_bytes)
    open_shards = held_bytes = 0.0
    for rank in draw.integers(scale.world_size, size=ranks).tolist():
        for part in range(workers):
            requests = Requests(sample_bytes)
            schedule = PrefetchSchedule(
                order,
                requests,  # type: ignore[arg-type]
                slots=scale.slots(rank, part, workers),
                read_ahead_batches=2,
            )
            for batch in range(first, first + num_batches):
                schedule.announce(batch)
                open_shards += len(frozenset[int]().union(*(item.shards for item in requests.live)))
                held_bytes += sum(item.num_bytes for item in requests.live)
            total.num_requests += requests.num_requests
            total.num_samples += requests.num_samples
            total.read_bytes += requests.read_bytes
    return {
        "method": "clipx",
        "G": scale.global_batch_size,
        "W": scale.world_size,
        "workers": workers,
        "lanes": order.sources[0].lanes,
        "window": order.window,
        "open_shards": open_shards / ranks / num_batches,
        "requests_per_batch": total.num_requests / total.num_samples * len(scale.slots(0)),
        "read_over_used": total.read_bytes / (total.num_samples * (sample_bytes - HEADER)),
        "held_mb": held_bytes / ranks / num_batches / 1e6,
    }


def webdataset_reading(scale: Scale, *, workers: int, sample_bytes: int) -> dict[str, object]:
    """One connection and one buffer of encoded samples in each process; a shard is a request and is used whole."""
    pairs = scale.global_batch_size // scale.world_size
    return {
        "method": "webdataset",
        "G": scale.global_batch_size,
        "W": scale.world_size,
        "workers": workers,
        "open_shards": workers,
        "requests_per_batch": pairs / scale.per_shard,
        "read_over_used": 1.0,
        "held_mb": workers * BUFFER * sample_bytes / 1e6,
    }


class Streams(NamedTuple):
    """The shards of the samples that webdataset's processes yield, int32 (P, T)."""

    full_PT: np.ndarray
    """With full buffers, for the length of two shards: all phases of a shard's passage."""
    first_PT: np.ndarray
    """From the start on."""

    @staticmethod
    def of(scale: Scale) -> "Streams":
        """Those of a set; neither its batch size nor its ranks matter."""
        return Streams(
            webdataset_stream(scale, start=2 * BUFFER, length=2 * scale.per_shard),
            webdataset_stream(scale, start=0, length=INITIAL),
        )


def shuffling(
    scale: Scale, streams: Streams, *, more: Sequence[Lanes] = (), num_batches: int = 20
) -> Iterator[dict[str, object]]:
    """Shuffle quality of one set and batch size, a row for each method."""
    size = scale.global_batch_size
    draw = np.random.default_rng(3)

    def row(method: str, batches: Iterator[np.ndarray]) -> dict[str, object]:
        same, distinct = np.mean([meetings(shard_G) for shard_G in batches], axis=0)
        where = {"shards": scale.shards, "per_shard": scale.per_shard, "G": size}
        return where | {"method": method, "same_shard_pairs": float(same), "distinct_shards": float(distinct)}

    for lanes in (Lanes(), *more):
        order = scale.order(lanes)
        steps = draw.integers(order.num_samples // size, size=num_batches).tolist()
        name = f"clipx, {order.sources[0].lanes} lanes x {order.window}" + (" (default)" if lanes == Lanes() else "")
        yield row(name, (order.sample_refs(step).shard_B for step in steps))
    yield row("webdataset, even", even_batches(streams.full_PT, size))
    yield row("webdataset, even, first", even_batches(streams.first_PT, size))
    yield row("webdataset, open_clip", open_clip_batches(streams.full_PT, size))
    shares = scale.counts() / scale.counts().sum()
    yield row("independent draws", (draw.choice(scale.shards, size=size, p=shares) for _ in range(num_batches)))


def meetings(shards: np.ndarray) -> tuple[float, int]:
    """Other pairs of its own shard that a pair of the batch meets in the mean, and how many shards there are.

    Args:
        shards: of the pairs, in any shape.
    """
    _, count_S = np.unique(shards, return_counts=True)
    return float((count_S * (count_S - 1)).sum() / shards.size), len(count_S)


def webdataset_stream(scale: Scale, *, start: int, length: int, processes: int = PROCESSES) -> np.ndarray:
    """The shards of the samples that each process yields, from its `start`-th on, int32 (P, `length`).

    The processes are computed side by side: each takes in one or two samples and yields one in turn.
    """
    draw = np.random.default_rng(scale.seed)
    incoming_PN = _incoming(scale, processes, start + length + BUFFER, draw)
    every_P = np.arange(processes)
    held_PN = np.empty((processes, BUFFER), dtype=np.int32)
    out_PT = np.empty((processes, length), dtype=np.int32)
    taken = held = yielded = 0
    while yielded < start + length:
        for _ in range(2 if held + 1 < BUFFER else 1):
            held_PN[:, held] = incoming_PN[:, taken]
            held, taken = held + 1, taken + 1
        if held < INITIAL:
            continue
        pick_P = draw.integers(held, size=processes)
        if yielded >= start:
            out_PT[:, yielded - start] = held_PN[every_P, pick_P]
        held -= 1
        held_PN[every_P, pick_P] = held_PN[:, held]
        yielded += 1
    return out_PT


def _incoming(scale: Scale, processes: int, length: int, draw: np.random.Generator) -> np.ndarray:
    """The shards of the samples that each process reads, int32 (P, `length`): shards in random order, dealt in turn."""
    counts = scale.counts()
    rounds = -(-length // int(counts.min()))
    repeats = -(-processes * rounds // scale.shards)
    order = np.concatenate([draw.permutation(scale.shards) for _ in range(repeats)])[: processes * rounds]
    dealt_PR = order.reshape(rounds, processes).T
    return np.stack([np.repeat(own, counts[own])[:length] for own in dealt_PR]).astype(np.int32)


def even_batches(stream_PT: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Batches to which every process gives the same number of its samples."""
    own = size // len(stream_PT)
    for first in range(0, stream_PT.shape[1] - own + 1, own):
        yield stream_PT[:, first : first + own]


def open_clip_batches(stream_PT: np.ndarray, size: int, *, ranks: int = RANKS) -> Iterator[np.ndarray]:
    """Batches to which each rank gives `size` / `ranks` samples of one of its processes, another one each time."""
    own = size // ranks
    workers = len(stream_PT) // ranks
    for number in range(stream_PT.shape[1] // own * workers):
        first = number // workers * own
        yield stream_PT[number % workers :: workers, first : first + own]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the three tables and appends their rows."""
    arguments = _parser().parse_args(argv)
    out, sample_bytes = arguments.out, 1000 * arguments.sample_kb
    scales = [
        Scale(arguments.shards, arguments.per_shard, size, ranks)
        for size in arguments.batch
        for ranks in arguments.ranks
    ]
    for scale in scales[len(arguments.ranks) - 1 :: len(arguments.ranks)]:  # the last number of ranks
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            show("planning", [fresh.apply(planning, (scale,), {"sample_bytes": sample_bytes})], out)
    for scale in scales:
        options = [Lanes(), *(lanes for lanes in arguments.more if lanes.lanes <= scale.global_batch_size)]
        show(
            "reading",
            [
                *(
                    reading(scale, workers=workers, sample_bytes=sample_bytes, lanes=lanes)
                    for lanes in options
                    for workers in arguments.workers
                ),
                *(webdataset_reading(scale, workers=n, sample_bytes=sample_bytes) for n in arguments.workers),
            ],
            out,
        )
    for shards, per_shard in ((arguments.shards, arguments.per_shard), FEW_SHARDS):
        streams = Streams.of(Scale(shards, per_shard, PROCESSES, 1))
        for size in arguments.batch:
            more = [lanes for lanes in arguments.more if lanes.lanes <= size]
            show("shuffling", list(shuffling(Scale(shards, per_shard, size, 1), streams, more=more)), out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=500_000)
    parser.add_argument("--per-shard", type=int, default=10_000, help="pairs (default: %(default)s)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 1024])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8], help="loader processes of a rank")
    parser.add_argument("--batch", type=int, nargs="+", default=[4096, 16_384, 65_536])
    parser.add_argument("--sample-kb", type=int, default=50, help="of a sample's members (default: %(default)s)")
    parser.add_argument("--more", type=Lanes.parse, nargs="*", default=[], help="LANESxWINDOW, beside the default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV file (default: %(default)s)")
    return parser


def show(what: str, rows: Sequence[dict[str, object]], out: Path) -> None:
    """Prints the rows of a table and appends them to the results."""
    print(f"{what}:")
    print_table(rows, COLUMNS[what])
    print(flush=True)
    write_rows("data_order", [{"what": what} | row for row in rows], out)


if __name__ == "__main__":
    main()
