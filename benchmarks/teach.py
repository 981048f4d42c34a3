"""Teachers' embeddings: what reading them costs a run, and how close teaching comes to the teacher's bare forward pass.

    .venv/bin/python benchmarks/teach.py read --from SHARDS --threads 1
    .venv/bin/python benchmarks/teach.py speed --from SHARDS --threads 1 --tower vit_base_patch32_clip_224

Rows go to results/teach.csv. `read` compares a run's reader with and without two teachers of 512 numbers, and with the
step that the read samples are for; `speed` compares `clipx data teach` with forward passes over pixels and tokens that
are there already, in the same batches and threads. Both count CPU seconds of the process beside wall time, as others on
the machine disturb those less; `load` is the machine's, a minute before the end.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from harness import Timing, device_argument, prepare, print_table, ratio, write_rows

from clipx.config.data import AugmentConfig, DataConfig
from clipx.config.model import ModelConfig, TimmImageConfig, TransformerTextConfig
from clipx.data.build import open_reader
from clipx.data.columns import Wanted
from clipx.data.index.shard_index import ShardIndex, build_index
from clipx.data.order import DataOrder
from clipx.data.parallel import num_cores
from clipx.data.teachers import Teachers, open_teachers
from clipx.data.tokenizer import ClipTokenizer
from clipx.models.clip import build_model
from clipx.prepare.teach import TeachOptions, teach
from clipx.prepare.teach_rows import TeacherModel
from clipx.pretrained import Pretrained
from clipx.pretrained.threads import ON_DEVICE, side_by_side

VIEWS = 5
AUGMENT = AugmentConfig(crop_scale=(0.4, 1.0))
BATCH = 40
SMALL = {"patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}


def model(tower: str, *, image_size: int, seed: int = 0, **options: object) -> Pretrained:
    """A model with random weights and 512 numbers of an embedding."""
    text = TransformerTextConfig(width=64 if options else 512, layers=1 if options else 12, heads=2 if options else 8)
    config = ModelConfig(
        embed_dim=512, image=TimmImageConfig(name=tower, image_size=image_size, options=dict(options)), text=text
    )
    return Pretrained(build_model(config, vocab_size=ClipTokenizer(77).vocab_size, seed=seed).eval(), config)


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(contenders: dict[str, Callable[[], object]], repetitions: int) -> dict[str, tuple[Timing, Timing]]:
    """Wall and CPU seconds of each, in turns."""
    names = list(contenders)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for repetition in range(-1, repetitions):
        for name in names[repetition % len(names) :] + names[: repetition % len(names)]:
            measured = seconds(contenders[name])
            if repetition >= 0:
                found[name].append(measured)
    return {
        name: (Timing.of([wall for wall, _ in rows]), Timing.of([cpu for _, cpu in rows]))
        for name, rows in found.items()
    }


def measure_read(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Microseconds a sample, with and without teachers."""
    data, index = DataConfig(train=arguments.shards, augment=AUGMENT), build_index(arguments.shards)
    size = arguments.image_size
    teachers = [
        TeacherModel(name, "", model("vit_base_patch16_clip_224", image_size=32, seed=seed, **SMALL))
        for seed, name in enumerate(("one", "two"))
    ]
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        teach(data, teachers, store, options=TeachOptions(views=VIEWS))
        opened = open_teachers(store)
        count = min(arguments.samples, index.num_samples)
        contenders = {
            "plain": _reading(data, index, None, size=size, count=count),
            "teachers": _reading(data, index, opened, size=size, count=count),
        }
        times = compare(contenders, arguments.repetitions)
    (plain_wall, plain_cpu), (taught_wall, taught_cpu) = times["plain"], times["teachers"]
    return [
        {
            "what": "read",
            "image_size": size,
            "samples": count,
            "repetitions": plain_wall.count,
            "plain_us": 1e6 * plain_cpu.p50 / count,
            "teachers_us": 1e6 * taught_cpu.p50 / count,
            "cpu_ratio": ratio(taught_cpu, plain_cpu).p50,
            "wall_ratio": ratio(taught_wall, plain_wall).p50,
        }
    ]


def _reading(
    data: DataConfig, index: ShardIndex, teachers: Teachers | None, *, size: int, count: int
) -> Callable[[], object]:
    order = DataOrder([index.counts], global_batch_size=32, seed=0, lanes=32, window=16, allow_repeats=True)
    wanted = Wanted(columns=[] if teachers is None else [teachers.column_reader(teachers.names)])
    reader = open_reader(
        [index], order, data=data, image_size=size, tokenizer=ClipTokenizer(77), wanted=wanted, teachers=teachers
    )
    out = torch.empty(32, size, size, 3, dtype=torch.uint8)

    def read() -> None:
        for batch in range(count // 32):
            reader.read(batch, range(32), out=out)

    return read


def measure_speed(arguments: argparse.Namespace, device: torch.device) -> list[dict[str, object]]:
    """Views a second, from shards to a store and of the forward passes alone."""
    pretrained = model(arguments.tower, image_size=arguments.image_size)
    pretrained.model.to(device)
    data = DataConfig(train=arguments.shards, augment=AUGMENT)
    count = build_index(arguments.shards).num_samples
    options = TeachOptions(views=VIEWS, batch_size=BATCH, precision=arguments.precision)
    threads = num_cores() if device.type == "cpu" else ON_DEVICE

    def taught() -> None:
        with tempfile.TemporaryDirectory() as folder:
            teach(data, [TeacherModel("one", "", pretrained)], str(Path(folder) / "out"), options=options)

    def bare() -> None:
        size = arguments.image_size
        pixels_BSSC = torch.randint(256, (BATCH, size, size, 3), dtype=torch.uint8)
        texts = pretrained.tokenizer.encode(["a photograph of a street with several people"] * (BATCH // VIEWS))
        blocks: Iterator[int] = iter(range(-(-count * VIEWS // BATCH)))
        forward = partial(_forward, pretrained, pixels_BSSC, texts, arguments.precision)
        for _ in side_by_side(forward, blocks, device=device, threads=threads):
            pass

    times = compare({"bare": bare, "teach": taught}, arguments.repetitions)
    (bare_wall, bare_cpu), (taught_wall, taught_cpu) = times["bare"], times["teach"]
    return [
        {
            "what": "speed",
            "tower": arguments.tower,
            "image_size": arguments.image_size,
            "precision": arguments.precision,
            "samples": count,
            "threads": threads,
            "repetitions": bare_wall.count,
            "views_per_s": count * VIEWS / taught_wall.p50,
            "wall_ratio": ratio(bare_wall, taught_wall).p50,
            "cpu_ratio": ratio(bare_cpu, taught_cpu).p50,
        }
    ]


def _forward(
    pretrained: Pretrained,
    pixels_BSSC: torch.Tensor,
    texts: tuple[torch.Tensor, torch.Tensor],
    precision: str,
    block: int,
) -> torch.Tensor:
    with torch.autocast(pretrained.device.type, torch.bfloat16, enabled=precision == "bf16"):
        image_BD = pretrained.encode_image(pixels_BSSC)
        pretrained.encode_tokens(*texts).float().cpu()
    return image_BD.float().cpu()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("read", "speed"))
    parser.add_argument("--from", dest="shards", nargs="+", required=True, help="tar files with jpg and txt")
    parser.add_argument("--image-size", type=int, default=224, help="(default: %(default)s)")
    parser.add_argument("--samples", type=int, default=512, help="that are read (default: %(default)s)")
    parser.add_argument("--tower", default="vit_base_patch32_clip_224", help="(default: %(default)s)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    device_argument(parser)
    arguments = parser.parse_args(argv)
    device = prepare(arguments)
    rows = measure_read(arguments) if arguments.what == "read" else measure_speed(arguments, device)
    for row in rows:
        row["load"] = round(os.getloadavg()[0], 1)
    print_table(rows, list(rows[0]))
    write_rows("teach", rows, arguments.out)


if __name__ == "__main__":
    main()
