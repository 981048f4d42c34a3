"""One set of labelled pictures, written as each kind of set that people have."""

import hashlib
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_files import png

WORDS = ("cat", "dog", "red fox")
LABELS = (2, 0, 1, 1, 0, 2, 0)
"""Picture i, `png(i)`, is of class `LABELS[i]`."""


def write_class_folders(folder: Path) -> Path:
    for number, label in enumerate(LABELS):
        path = folder / WORDS[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return folder


def write_csv(path: Path, labels: Sequence[object]) -> Path:
    """The table and, beside it, its pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(len(labels)):
        (path.parent / f"{number}.png").write_bytes(png(number))
    path.write_text("path,label\n" + "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels)))
    return path


def labelled_table(labels: Sequence[object], *, names: Sequence[str] = WORDS) -> pa.Table:
    """As HF datasets has it in memory."""
    images = [{"bytes": png(number), "path": None} for number in range(len(labels))]
    kind = {"names": list(names), "_type": "ClassLabel"}
    label_type = {"feature": kind, "_type": "List"} if isinstance(labels[0], list) else kind
    features = {"image": {"_type": "Image"}, "label": label_type}
    table = pa.table({"image": images, "label": list(labels)})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_saved(folder: Path, labels: Sequence[object] = LABELS, *, names: Sequence[str] = WORDS) -> Path:
    """As `Dataset.save_to_disk` of HF datasets 5.2 writes it."""
    table = labelled_table(labels, names=names)
    folder.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def write_saved_splits(folder: Path, *splits: str) -> Path:
    for split in splits:
        write_saved(folder / split)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder


def write_hub_parquet(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    for number, rows in enumerate((slice(0, 4), slice(4, 7))):
        table = labelled_table(LABELS)
        path = folder / "data" / f"test-{number:05}-of-00002.parquet"
        pq.write_table(table.slice(rows.start, rows.stop - rows.start), path, row_group_size=2)
    return folder


def write_numbered_csv(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "classnames.txt").write_text("\n".join(WORDS))
    return write_csv(folder / "sub" / "t.csv", LABELS)


def write_jsonl(folder: Path) -> Path:
    path = write_csv(folder / "t.csv", LABELS)
    path.unlink()
    rows = [{"file_name": f"{number}.png", "label": WORDS[label]} for number, label in enumerate(LABELS)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_metadata(folder: Path) -> Path:
    """HF's imagefolder with a table."""
    write_csv(folder / "test" / "metadata.csv", [WORDS[label] for label in LABELS])
    text = (folder / "test" / "metadata.csv").read_text()
    (folder / "test" / "metadata.csv").write_text(text.replace("path,", "file_name,"))
    return folder


KINDS: dict[str, Callable[[Path], Path]] = {
    "class folders": write_class_folders,
    "class folders of splits": lambda folder: write_class_folders(folder / "test").parent,
    "csv of words": lambda folder: write_csv(folder / "t.csv", [WORDS[label] for label in LABELS]),
    "csv of numbers": write_numbered_csv,
    "csv for each split": lambda folder: write_csv(folder / "test.csv", [WORDS[label] for label in LABELS]).parent,
    "jsonl for each split": write_jsonl,
    "metadata.csv": write_metadata,
    "saved set": write_saved,
    "saved splits": lambda folder: write_saved_splits(folder, "train", "test"),
    "hub's parquet": write_hub_parquet,
}


def write_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """CIFAR-10's files of two pictures for training and three for testing, whose sums torchvision takes for right.

    Returns:
        uint8 (3, 3072), the pictures for testing.
    """
    from torchvision.datasets import CIFAR10

    place = folder / "cifar-10-batches-py"
    place.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, size=(3, 3072), dtype=np.uint8)
    contents = {
        "data_batch_1": {"data": pixels[:2], "labels": [1, 2]},
        "test_batch": {"data": pixels, "labels": [2, 0, 1]},
        "batches.meta": {"label_names": list(WORDS)},
    }
    sums = {}
    for name, content in contents.items():
        (place / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((place / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    return pixels
