"""A long run over data with every kind of badness: each bad sample is listed once, and memory stays flat."""

import io
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_files import Sample, write_tar
from tiny import CONFIG, metrics

GLOBAL_BATCH_SIZE, BAD_SHARE = 500, 0.02


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def good_samples() -> list[Sample]:
    """Pictures of all kinds that people have, those among them that the fast decoder cannot read."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(60):
        noise = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((40 + number, 50), Image.Resampling.BICUBIC)
        data = {
            0: lambda image=image: encoded(image.convert("CMYK"), "jpeg"),
            1: lambda image=image: encoded(image.convert("P"), "png"),
            2: lambda image=image: encoded(image.convert("L"), "jpeg"),
            3: lambda image=image: encoded(image, "webp"),
            4: lambda image=image: encoded(image.convert("RGBA"), "png"),
        }.get(number % 12, lambda image=image: encoded(image, "jpeg", quality=90))()
        samples.append({"jpg": data, "txt": f"picture {number} of a test".encode()})
    return samples


def bad_samples() -> dict[str, Sample]:
    """One of every kind."""
    good = good_samples()[7]
    picture = good["jpg"]
    return {
        "empty picture": good | {"jpg": b""},
        "half a picture": good | {"jpg": picture[: len(picture) // 2]},
        "a web page": good | {"jpg": b"<html>403 Forbidden</html>"},
        "noise": good | {"jpg": bytes(range(256)) * 8},
        "a header alone": good | {"jpg": picture[:20]},
        "a bomb": good | {"jpg": bomb()},
        "no picture": {"txt": b"a caption alone"},
        "no caption": {"jpg": picture},
        "empty caption": good | {"txt": b""},
        "blank caption": good | {"txt": b" \n\t"},
        "caption that is no text": good | {"txt": b"\xff\xfe\xfa"},
    }


def bomb() -> bytes:
    """A small PNG whose header claims 40,000 x 40,000 pixels."""
    data = bytearray(encoded(Image.new("RGB", (4, 4)), "png"))
    data[16:24] = (40_000).to_bytes(4, "big") * 2
    return bytes(data)


def write_set(folder: Path, *, num_samples: int, shard_size: int) -> Counter[str]:
    """Writes shards and returns how many of each kind of bad sample are in them."""
    good, bad = good_samples(), bad_samples()
    rng = np.random.default_rng(1)
    planted: Counter[str] = Counter()
    for shard, first in enumerate(range(0, num_samples, shard_size)):
        members = []
        for number in range(first, first + shard_size):
            sample = good[number % len(good)]
            if rng.random() < BAD_SHARE:
                kind = list(bad)[rng.integers(len(bad))]
                planted[kind] += 1
                sample = bad[kind]
            members += [(f"{number:06d}.{extension}", content) for extension, content in sample.items()]
        write_tar(folder / f"{shard:05d}.tar", members)
    return planted


def anonymous_mb(pid: int) -> float:
    """Memory of a process and its children that no file backs and nobody else shares."""
    total = 0.0
    for each in [pid, *children(pid)]:
        lines = Path(f"/proc/{each}/status").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024  # none of a zombie
    return total


def children(pid: int) -> list[int]:
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [grandchild for child in found for grandchild in children(child)]


@pytest.mark.full
@pytest.mark.parametrize("num_samples", [4_000, pytest.param(100_000, marks=pytest.mark.timeout(1800))])
def test_every_bad_sample_is_listed_once_and_memory_stays_flat(tmp_path: Path, num_samples: int) -> None:
    planted = write_set(tmp_path / "data", num_samples=num_samples, shard_size=1000)
    run_dir, steps = tmp_path / "run", num_samples // GLOBAL_BATCH_SIZE  # one epoch: lanes divide the samples
    overrides = {
        "run_dir": run_dir,
        "data.train": f"[{tmp_path / 'data'}]",
        "data.workers": 3,
        "data.max_bad_fraction": 0.05,
        "global_batch_size": GLOBAL_BATCH_SIZE,
        "steps": steps,
        "checkpoint.every_steps": 0,
    }
    command = [sys.executable, "-m", "clipx", "train", str(CONFIG)]
    process = subprocess.Popen([*command, *(f"{key}={value}" for key, value in overrides.items())])
    sizes = []
    while process.poll() is None:
        if (run_dir / "metrics.jsonl").exists() and len(metrics(run_dir)) >= steps // 4:
            try:
                sizes.append(anonymous_mb(process.pid))
            except FileNotFoundError:  # one of them ended just now
                break
        time.sleep(0.2)
    assert process.wait() == 0
    rows = [json.loads(line) for line in (run_dir / "quarantine.jsonl").read_text().splitlines()]
    assert len({(row["shard"], row["key"]) for row in rows}) == len(rows) == sum(planted.values())
    last = metrics(run_dir)[-1]
    assert (last["bad_samples"], last["epoch"], last["skipped_steps"]) == (len(rows), 1.0, 0)
    print(
        f"{len(rows)} bad samples; MB from a quarter on: {sizes[:1]} to {sizes[-1:]}, at most {max(sizes, default=0)}"
    )
    if num_samples == 100_000:
        early, late = np.median(sizes[: len(sizes) // 4]), np.median(sizes[-len(sizes) // 4 :])
        assert late < early + 40
