"""`inference` of clip-retrieval on shards, in an environment of its own, as use_embed.py times it.

    PYTHON benchmarks/peer_clip_retrieval.py EXPORT OUT BATCH SHARD ...

PYTHON has clip-retrieval 2.45, numpy 1.26, transformers 4.57 and setuptools before 81 (its clip imports pkg_resources).
The export is read by open_clip, whose models clip-retrieval knows by name: a model of transformers would get texts of
77 tokens, whatever its own length. The clock stops at the writer's flush: the logger that follows only waits.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import open_clip
from clip_retrieval.clip_inference import worker
from clip_retrieval.clip_inference.main import main as inference


def clock() -> np.ndarray:
    """Seconds on the wall, and on the cores for this process and its loaders that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return np.array([time.monotonic(), sum(use.ru_utime + use.ru_stime for use in usage)])


marks: list[np.ndarray] = []


class Mapper(worker.ClipMapper):
    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        marks.append(clock())


class Writer(worker.NumpyWriter):
    def flush(self) -> None:
        super().flush()
        marks.append(clock())


def main(export: str, out: str, batch: str, *shards: str) -> None:
    worker.ClipMapper, worker.NumpyWriter = Mapper, Writer
    config = json.loads((Path(export) / "open_clip_config.json").read_text())["model_cfg"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "exported.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder)
    inference(
        "{" + ",".join(shards) + "}" if len(shards) > 1 else shards[0],
        out,
        input_format="webdataset",
        batch_size=int(batch),
        num_prepro_workers=1,
        output_partition_count=1,
        clip_model=f"open_clip:exported/{export}/open_clip_model.safetensors",
    )
    seconds, cpu_seconds = marks[-1] - marks[0]
    samples = sum(len(np.load(path)) for path in Path(out, "img_emb").glob("*.npy"))
    print()
    print(json.dumps({"samples": samples, "seconds": seconds, "cpu_seconds": cpu_seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
