"""CPU time per picture of clipx's loader beside open_clip's, by source size; or captions per second of the tokenizers.

    taskset -c 2 .venv/bin/python benchmarks/loader.py
    .venv/bin/python benchmarks/loader.py --tokens

Both sides read the same local shards with one loader process into batches of 64, at 224 pixels, and take turns. A turn
begins and ends with that side's loader process asleep, its queue full, so all the work for its batches and none for
others' is in it. CPU time is that of the loader process and of this one together, system time included.

clipx: the stream of `clipx.data.stream`, decode fast, scaled and pil.
open_clip: `get_wds_dataset` of `open_clip_train`, resampled, its default training transform (random crop of 0.9 to 1 of
the area, ToTensor, Normalize) and its tokenizer. Its shuffle buffer is cut to 256 samples: one that still fills reads
two samples for each that it gives.

Parts: `loader` is all of that; `transform` the bytes of a picture to the tensor, in this process; `decode` the bytes to
pixels. The difference to Pillow is the mean absolute one over whole pictures, of 255.
"""

import argparse
import io
import itertools
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median
from types import ModuleType
from typing import Any, Literal

import open_clip
import torch
from harness import RESULTS, Timing, print_table, ratio, write_rows
from open_clip.transform import image_transform
from pictures import jpeg, natural_picture, write_shards
from PIL import Image
from torch import Tensor
from webdataset.tariterators import tar_file_expander
from workload import captions

from clipx.config.data import AugmentConfig, DataConfig
from clipx.data.build import open_reader
from clipx.data.decode import decode_image, decode_jpeg, jpeg_size, to_tensor
from clipx.data.index.shard_index import build_index
from clipx.data.order import DataOrder
from clipx.data.stream import PairStream
from clipx.data.tokenizer import ClipTokenizer
from clipx.data.transforms import TrainTransform

SIZES = {"256": (256, 256), "512": (512, 512), "1500": (1500, 1000)}
"""Width and height of the sources."""
TURN = {"256": 256, "512": 128, "1500": 64}
"""Pictures of a turn."""
MODES: tuple[Literal["fast", "scaled", "pil"], ...] = ("fast", "scaled", "pil")
IMAGE_SIZE = 224
BATCH = 64
_SETTLED_S = 0.03
_QUEUED = 3  # turns that empty the queue of two batches
_WAITS = 5


@dataclass
class Side:
    """One contender; every list has an entry for each turn."""

    turn: Callable[[], int]
    """Handles its pictures, returns how many."""
    processes: Sequence[int] = ()
    """Ids of its loader processes."""
    bytes_per_image: float | None = None
    """Handed over by the loader."""
    cpu_s: list[float] = field(default_factory=list)
    """Per picture, of all processes."""
    main_s: list[float] = field(default_factory=list)
    """Per picture, of this process."""

    def clock(self) -> float:
        """CPU seconds of its loader processes so far."""
        return sum(time.clock_gettime(~process << 3 | 2) for process in self.processes)  # Linux: a process's CPU clock

    def settle(self) -> float:
        """Waits until the loader processes sleep and stay asleep; their clock then."""
        now = self.clock()
        while self.processes:
            time.sleep(_SETTLED_S)
            before, now = now, self.clock()
            if now - before < 0.02 * _SETTLED_S and all(map(_asleep, self.processes)):
                break
        return now

    def take_turn(self, *, counted: bool) -> None:
        """Runs a turn."""
        loaders, main = self.settle(), time.process_time()
        count = self.turn()
        main = time.process_time() - main
        loaders = self.settle() - loaders
        if counted:
            self.cpu_s.append((main + loaders) / count)
            self.main_s.append(main / count)

    def waited_s(self) -> float:
        """Seconds per picture that this process waits for its loader process when it does nothing else."""
        for _ in range(_QUEUED):
            self.turn()
        samples = []
        for _ in range(_WAITS):
            wall, main = time.perf_counter(), time.process_time()
            count = self.turn()
            samples.append((time.perf_counter() - wall - time.process_time() + main) / count)
        return median(samples)


def _asleep(process: int) -> bool:
    """Whether it waits, and not merely for a core."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def measure(sides: Mapping[str, Side], *, repetitions: int, warmup: int) -> None:
    """Turns in rotation; another side begins each time."""
    names = list(sides)
    for repetition in range(-warmup, repetitions):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            sides[name].take_turn(counted=repetition >= 0)


def open_side(open_batches: Callable[[], Iterator[Any]], sizes: Callable[[Any], tuple[int, int]], count: int) -> Side:
    """A side that takes batches until it has `count` pictures; `sizes` gives a batch's pictures and bytes."""
    before = {process.pid for process in multiprocessing.active_children()}
    batches = open_batches()
    num_images, num_bytes = sizes(next(batches))

    def turn() -> int:
        taken = 0
        while taken < count:
            taken += sizes(next(batches))[0]
        return taken

    started = [process.pid for process in multiprocessing.active_children() if process.pid not in before]
    return Side(turn, [pid for pid in started if pid is not None], num_bytes / num_images)


def clipx_batches(shards: list[str], decode: Literal["fast", "scaled", "pil"]) -> Iterator[Any]:
    data = DataConfig(train=shards, decode=decode, workers=1)
    indexes = [build_index(shards, index_dir=None)]
    order = DataOrder([indexes[0].counts], global_batch_size=BATCH, seed=0)
    reader = open_reader(indexes, order, data=data, image_size=IMAGE_SIZE, tokenizer=ClipTokenizer(77))
    stream = PairStream(reader, slots=range(BATCH), image_size=IMAGE_SIZE, workers=1)
    return stream.batches()


def clipx_sizes(batch: Any) -> tuple[int, int]:
    return len(batch.images_IHWC), sum(tensor.nbytes for tensor in vars(batch).values() if isinstance(tensor, Tensor))


def open_clip_batches(shards: list[str]) -> Iterator[Any]:
    open_clip_data = open_clip_data_module()
    # from webdataset 1.0 on the end of a shard is marked by an empty member, which open_clip 3.3 takes for a file
    open_clip_data.tar_file_expander = partial(tar_file_expander, eof_value=None)
    open_clip_data._SAMPLE_SHUFFLE_SIZE = open_clip_data._SAMPLE_SHUFFLE_INITIAL = 256
    arguments = argparse.Namespace(
        train_data="::".join(shards),
        train_num_samples=1 << 40,
        train_data_upsampling_factors=None,
        dataset_resampled=True,
        batch_size=BATCH,
        workers=1,
        world_size=1,
        seed=0,
    )
    preprocess = open_clip_transform()
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    info = open_clip_data.get_wds_dataset(arguments, preprocess, is_train=True, tokenizer=tokenizer)
    return iter(info.dataloader)


def open_clip_data_module() -> Any:
    """`open_clip_train.data`, which imports pandas for CSV files; they are not read here."""
    absent = find_spec("pandas") is None
    if absent:
        sys.modules["pandas"] = ModuleType("pandas")
    try:
        return import_module("open_clip_train.data")
    finally:
        if absent:
            del sys.modules["pandas"]


def open_clip_transform() -> Callable[[Image.Image], Tensor]:
    return image_transform(IMAGE_SIZE, is_train=True)


def open_clip_sizes(batch: Any) -> tuple[int, int]:
    return len(batch[0]), sum(tensor.nbytes for tensor in batch)


def each(function: Callable[[bytes], object], pictures: Sequence[bytes], count: int) -> Side:
    """A side that handles `count` pictures in this process."""
    endless = itertools.cycle(pictures)

    def turn() -> int:
        for data in itertools.islice(endless, count):
            function(data)
        return count

    return Side(turn)


def parts_of(pictures: Sequence[bytes], count: int) -> dict[str, dict[str, Side]]:
    """The sides of the parts `transform` and `decode`."""
    theirs, out, seeds = (
        open_clip_transform(),
        torch.empty(IMAGE_SIZE, IMAGE_SIZE, 3, dtype=torch.uint8),
        itertools.count(),
    )

    def transform(decode: Literal["fast", "scaled", "pil"]) -> Callable[[bytes], object]:
        ours = TrainTransform(IMAGE_SIZE, AugmentConfig(), decode=decode)
        return lambda data: ours(data, seed=next(seeds), out=out)

    transforms: dict[str, Callable[[bytes], object]] = {mode: transform(mode) for mode in MODES}
    transforms["open_clip"] = lambda data: theirs(Image.open(io.BytesIO(data)).convert("RGB"))
    decoders: dict[str, Callable[[bytes], object]] = {
        "fast": lambda data: decode_jpeg(data, jpeg_size(data) or (0, 0)),
        "pil": lambda data: to_tensor(decode_image(data)),
    }
    return {
        part: {name: each(function, pictures, count) for name, function in functions.items()}
        for part, functions in (("transform", transforms), ("decode", decoders))
    }


def difference(pictures: Sequence[bytes], decode: Literal["fast", "scaled"]) -> float:
    """Mean absolute difference to Pillow over whole pictures."""
    results = []
    for data in pictures:
        size = jpeg_size(data)
        assert size is not None
        ratio_of_sides = size[1] / size[0]
        whole = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(ratio_of_sides, ratio_of_sides))
        outs = torch.empty(2, IMAGE_SIZE, IMAGE_SIZE, 3, dtype=torch.uint8)
        for out, mode in zip(outs, (decode, "pil"), strict=True):
            TrainTransform(IMAGE_SIZE, whole, decode=mode)(data, seed=0, out=out)
        results.append((outs[0].float() - outs[1].float()).abs().mean().item())
    return mean(results)


def rows_of(size: str, part: str, sides: Mapping[str, Side], pictures: Sequence[bytes]) -> list[dict[str, object]]:
    rows = []
    theirs = Timing.of(sides["open_clip"].cpu_s) if "open_clip" in sides else None
    for name, side in sides.items():
        timing = Timing.of(side.cpu_s)
        faster = None if theirs is None else ratio(theirs, timing)
        rows.append(
            {
                "size": size,
                "jpeg_kb": mean(map(len, pictures)) / 1000,
                "part": part,
                "contender": name,
                "cpu_ms_p20": timing.p20 * 1e3,
                "cpu_ms_p50": timing.p50 * 1e3,
                "cpu_ms_p80": timing.p80 * 1e3,
                "repetitions": timing.count,
                "images_per_turn": TURN[size],
                "images_per_s_and_core": 1 / timing.p50,
                "times_open_clip_p20": faster and faster.p20,
                "times_open_clip_p50": faster and faster.p50,
                "times_open_clip_p80": faster and faster.p80,
                "main_ms": Timing.of(side.main_s).p50 * 1e3,
                "wait_ms": side.waited_s() * 1e3 if part == "loader" else None,
                "bytes_per_image": side.bytes_per_image,
                "difference_to_pillow": difference(pictures, name)  # type: ignore[arg-type]
                if part == "transform" and name in ("fast", "scaled")
                else None,
            }
        )
    return rows


def measure_size(size: str, arguments: argparse.Namespace) -> list[dict[str, object]]:
    """All rows of one size of source."""
    width, height = SIZES[size]
    pictures = [
        jpeg(natural_picture(seed, width=width, height=height), quality=arguments.quality)
        for seed in range(arguments.pictures)
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder), pictures, count=max(4 * BATCH, arguments.pictures))
        loaders = {
            mode: open_side(lambda mode=mode: clipx_batches(shards, mode), clipx_sizes, TURN[size]) for mode in MODES
        }
        loaders["open_clip"] = open_side(lambda: open_clip_batches(shards), open_clip_sizes, TURN[size])
        for part, sides in {"loader": loaders, **parts_of(pictures, TURN[size])}.items():
            measure(sides, repetitions=arguments.repetitions, warmup=arguments.warmup)
            rows += rows_of(size, part, sides, pictures)
    return rows


def measure_tokens(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Captions per second of CPU time; open_clip's loader encodes one caption after the other."""
    texts = captions(arguments.captions, seed=1)
    ours, theirs = ClipTokenizer(77), open_clip.get_tokenizer("ViT-B-32")
    flat_T, lengths_B = ours.encode(texts)
    for row, text in zip(flat_T.split(lengths_B.tolist()), texts, strict=True):
        if not torch.equal(theirs(text)[0, : len(row)], row):
            raise SystemExit(f"the tokenizers disagree about {text!r}")

    def encode_ours() -> int:
        for first in range(0, len(texts), BATCH):
            ours.encode(texts[first : first + BATCH])
        return len(texts)

    def encode_theirs() -> int:
        for text in texts:
            theirs(text)[0]
        return len(texts)

    sides = {"clipx": Side(encode_ours), "open_clip": Side(encode_theirs)}
    measure(sides, repetitions=arguments.repetitions, warmup=arguments.warmup)
    timings = {name: Timing.of(side.cpu_s) for name, side in sides.items()}
    return [
        {
            "part": "tokens",
            "contender": name,
            "captions_per_s_p20": 1 / timing.p80,
            "captions_per_s_p50": 1 / timing.p50,
            "captions_per_s_p80": 1 / timing.p20,
            "times_open_clip_p50": ratio(timings["open_clip"], timing).p50,
            "repetitions": timing.count,
        }
        for name, timing in timings.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--pictures", type=int, default=48, help="different ones of a size (default: %(default)s)")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs (default: %(default)s)")
    parser.add_argument("--tokens", action="store_true", help="measure the tokenizers instead")
    parser.add_argument("--captions", type=int, default=4096, help="with --tokens (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=20, help="timed turns of each side (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="turns before (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV file (default: %(default)s)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.tokens:
        rows = measure_tokens(arguments)
        columns = ["contender", "captions_per_s_p50", "times_open_clip_p50"]
    else:
        rows = [row for size in arguments.sizes for row in measure_size(size, arguments)]
        columns = ["size", "jpeg_kb", "part", "contender", "cpu_ms_p50", "times_open_clip_p50", "main_ms", "wait_ms"]
        columns += ["bytes_per_image", "difference_to_pillow"]
    write_rows("loader", rows, arguments.out)
    print_table(rows, columns)


if __name__ == "__main__":
    main()
