import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from clipx.use.embeddings import MANIFEST, Manifest, shard_file
from clipx.use.key_table import KeyRow, encoded_keys

ROWS, DIM, SHARD = 1_000_000, 512, 62_500
RUNNER = """
import re, sys
from pathlib import Path
from clipx.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 0
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""


def write_embeddings(folder: Path) -> None:
    """Random directions, of which each shard repeats the same; row i has the key kNNNNNNN and a caption."""
    folder.mkdir()
    rows = np.random.default_rng(0).standard_normal((SHARD, DIM), np.float32)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    for shard, start in enumerate(range(0, ROWS, SHARD)):
        np.save(folder / shard_file(shard, "image.npy"), rows)
        keys = [KeyRow(f"k{i:07}", f"shard k{i:07}", i, f"caption {i}", True, 0.3) for i in range(start, start + SHARD)]
        (folder / shard_file(shard, "parquet")).write_bytes(encoded_keys(keys))
    manifest = Manifest(
        format=1,
        fingerprint="0" * 32,
        model="",
        embed_dim=DIM,
        dtype="float16",
        columns=("image",),
        inputs="",
        decode="pil",
        num_rows=ROWS,
        num_images=ROWS,
        num_texts=0,
        num_left_out=0,
        rows_per_shard=SHARD,
        shard_rows=(SHARD,) * (ROWS // SHARD),
        reduced=None,
        request={},
    )
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest)))


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not say what is in memory")
def test_a_million_rows_take_less_than_a_gigabyte_and_a_half(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "embeddings")
    arguments = ["search", "embeddings", "key:k0000005", "row:999999", "-k", "20", "--json", "found.json"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", RUNNER, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stderr) * 1024 < 1.5e9
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    copies = ROWS // SHARD
    first = [hit["key"] for hit in results[0]["hits"]][: copies - 1]  # all equal rows but itself, in order
    assert first == [f"k{5 + SHARD * copy:07}" for copy in range(1, copies)]
