import csv
from pathlib import Path

import grad_cache
import pytest
import scaling


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_cached_and_plain_rows(tmp_path: Path) -> None:
    grad_cache.main(["--micro-batch", "2", "--k", "1", "3", "--repetitions", "2", "--out", str(tmp_path)])
    whole, cached = read(tmp_path / "grad_cache.csv")
    assert (whole["pairs"], cached["pairs"]) == ("2", "6")
    assert whole["cached_mb"] == whole["plain_mb"]  # k = 1 is the plain step
    assert float(cached["cached_mb"]) > float(cached["plain_mb"])  # the inputs and embeddings of all pairs
    assert float(cached["ratio_p20"]) <= float(cached["ratio_p50"]) <= float(cached["ratio_p80"])
    assert cached["repetitions"] == "2"


@pytest.mark.full
def test_scaling_rows(tmp_path: Path) -> None:
    scaling.main(["--batch", "4", "--world-sizes", "1", "2", "--repetitions", "2", "--out", str(tmp_path)])
    rows = read(tmp_path / "scaling.csv")
    assert [(row["scaling"], row["world_size"], row["global_batch"]) for row in rows] == [
        ("strong", "1", "4"),
        ("strong", "2", "4"),
        ("weak", "1", "4"),
        ("weak", "2", "8"),
    ]
    assert [row["efficiency"] for row in rows if row["world_size"] == "1"] == ["1", "1"]
    assert all(float(row["backward_ms"]) > 0 for row in rows)
