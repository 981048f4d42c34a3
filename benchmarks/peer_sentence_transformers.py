"""sentence-transformers' `encode` on shards, pictures and texts, as use_embed.py times it.

    peer_sentence_transformers.py EXPORT OUT BATCH SHARD ...

Samples are read by the standard library's tarfile, and pictures opened by Pillow, which `encode` decodes.
"""

import io
import json
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
from PIL import Image
from sentence_transformers import SentenceTransformer


def samples(shard: str) -> Iterator[tuple[str, Image.Image, str]]:
    """Key, picture and caption of each sample; members of a sample are neighbours."""
    with tarfile.open(shard) as tar:
        fields: dict[str, dict[str, bytes]] = {}
        for member in tar:
            key, _, extension = member.name.partition(".")
            file = tar.extractfile(member)
            assert file is not None
            fields.setdefault(key, {})[extension] = file.read()
    for key, found in fields.items():
        yield key, Image.open(io.BytesIO(found["jpg"])), found["txt"].decode()


def main(export: str, out: str, batch: str, *shards: str) -> None:
    model = SentenceTransformer(export, device="cpu", local_files_only=True)
    options = {"batch_size": int(batch), "normalize_embeddings": True, "show_progress_bar": False}
    began, before = time.monotonic(), time.process_time()
    folder = Path(out)
    folder.mkdir()
    rows: list[Sequence[np.ndarray]] = []
    keys: list[str] = []
    rest = chain.from_iterable(map(samples, shards))
    while some := list(islice(rest, 1024)):
        found, pictures, texts = zip(*some, strict=True)
        keys += found
        rows.append((model.encode(list(pictures), **options), model.encode(list(texts), **options)))
    for name, parts in zip(("image", "text"), zip(*rows, strict=True), strict=True):
        np.save(folder / f"{name}.npy", np.concatenate(parts).astype(np.float16))
    (folder / "keys.json").write_text(json.dumps(keys))
    found = {"samples": len(keys), "seconds": time.monotonic() - began}
    print(json.dumps(found | {"cpu_seconds": time.process_time() - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
