"""The planted set of the benchmark of chosen batches, and that right pairs are chosen from it."""

import csv
from pathlib import Path

import chosen
import numpy as np
import pytest
from tiny import write_scenes


def test_captions_are_shuffled_among_a_share_of_the_samples(tmp_path: Path) -> None:
    shards = write_scenes(tmp_path / "scenes") / "train"
    right_N = chosen.plant(shards, tmp_path / "planted", share=0.4, seed=1)
    before, after = (
        [sample for path in sorted(folder.glob("*.tar")) for sample in chosen._samples(path)]
        for folder in (shards, tmp_path / "planted")
    )
    assert [key for key, _ in before] == [key for key, _ in after]
    assert [members["jpg"] for _, members in before] == [members["jpg"] for _, members in after]
    texts = [[members["txt"] for _, members in samples] for samples in (before, after)]
    assert sorted(texts[0]) == sorted(texts[1])
    assert right_N.tolist() == [one == two for one, two in zip(*texts, strict=True)]
    assert 0.6 <= right_N.mean() < 0.7
    assert np.array_equal(right_N, chosen.plant(shards, tmp_path / "again", share=0.4, seed=1))


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_right_pairs_are_chosen_three_to_one(tmp_path: Path) -> None:
    sizes = [
        "--train",
        "2000",
        "--reference-train",
        "4000",
        "--reference-steps",
        "90",
        "--steps",
        "20",
        "--every",
        "10",
    ]
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "rows"), "--threads", "1", "--views", "1"]
    chosen.main([*sizes, *places, "--set", "data.workers=0", "global_batch_size=64", "optim.warmup_steps=10"])
    rows = list(csv.DictReader((tmp_path / "rows" / "chosen.csv").open()))
    assert [row["row"] for row in rows] == ["plain"] * 2 + ["chosen"] * 2 + ["sum"]
    shares = [float(rows[-1][f"right_{quarter}"]) for quarter in range(1, 5)]
    assert min(shares) >= 0.75, "3 to 1, from the first quarter on"
    assert float(rows[-1]["right_to_wrong"]) >= 3
    assert 0 < float(rows[-1]["select_share"]) < 1
