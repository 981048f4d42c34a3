"""The exact best rows of stored embeddings for many queries, beside faiss's IndexFlatIP with as many threads.

Rows and queries are random directions. Both give the same rows, or the numbers that differ are told; scores of clipx
are rounded once, from float64. `--memory ROWS` measures instead what `clipx search` holds at most while it searches so
many rows of float32 in shards on the disk: the peak of a process of its own, libraries included.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import alternate, speed_rows

from clipx.use.search import Hits, search_rows

_SHARD = 62_500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=200_000, help="(default: %(default)s)")
    parser.add_argument("--dim", type=int, default=512, help="(default: %(default)s)")
    parser.add_argument("--queries", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("-k", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--memory", type=int, default=0, metavar="ROWS", help="measure memory at so many rows instead")


def directions(seed: int, count: int, dim: int) -> np.ndarray:
    """Random vectors of length 1, float32 (count, dim)."""
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((count, dim), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def measure(arguments: argparse.Namespace, device: torch.device) -> list[dict[str, object]]:
    if arguments.memory:
        return [memory(arguments)]
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    rows, queries = (
        directions(seed, count, arguments.dim) for seed, count in enumerate((arguments.rows, arguments.queries))
    )
    index = faiss.IndexFlatIP(arguments.dim)
    index.add(rows)
    shards = [rows[start : start + _SHARD] for start in range(0, len(rows), _SHARD)]
    contenders: dict[str, Callable[[], object]] = {
        "clipx": lambda: search_rows(shards, queries, k=arguments.k, device=device),
        "faiss IndexFlatIP": lambda: index.search(queries, arguments.k),
        "clipx, products in float32": lambda: search_rows(
            shards, queries, k=arguments.k, device=device, bfloat16=False
        ),
    }
    hits = search_rows(shards, queries, k=arguments.k, device=device)
    differing = int((index.search(queries, arguments.k)[1] != hits.row_QK).sum())
    times = alternate(contenders, repetitions=arguments.repetitions, warmup=1, device=device)
    about = {"rows": arguments.rows, "dim": arguments.dim, "k": arguments.k, "differing": differing}
    return [row | about for row in speed_rows(times, arguments.queries)]


def memory(arguments: argparse.Namespace) -> dict[str, object]:
    """The peak of a process that searches rows on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        for number, start in enumerate(range(0, arguments.memory, _SHARD)):
            shard = directions(number, min(_SHARD, arguments.memory - start), arguments.dim)
            np.save(Path(folder) / f"{number:05}.npy", shard)
        asked = [folder, str(arguments.queries), str(arguments.k), str(torch.get_num_threads())]
        told = subprocess.run([sys.executable, __file__, *asked], check=True, capture_output=True, text=True).stdout
    about = {"ours": "clipx", "count": arguments.queries, "rows": arguments.memory, "dim": arguments.dim}
    return about | {"k": arguments.k, "peak_gb": float(told)}


def search_mapped(folder: Path, num_queries: int, k: int) -> Hits:
    """Searches all shards of a folder."""
    shards = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))]
    return search_rows(shards, directions(1 << 20, num_queries, shards[0].shape[1]), k=k)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[4]))
    search_mapped(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    # not getrusage: its peak counts the process that started this one
    [peak] = re.findall(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    print(int(peak) * 1024 / 1e9)
