"""clip-benchmark's linear probe, in an environment of its own, for use_probe.py beside this.

    echo SEED | PEER/bin/python -O benchmarks/clip_benchmark_probe.py --features FILE.npz
    echo SEED | PEER/bin/python -O benchmarks/clip_benchmark_probe.py --model EXPORT --set SET

Its `linear_probe.evaluate` wants CUDA, by an assert, which -O leaves out, and by `.cuda()`, which does nothing here.
All else is its own: batches of 64, 10 epochs, 7 and then 12 values of the weight decay on a fifth of the training part,
and a last training. For each seed that it reads it prints a line of JSON: seconds, cpu_seconds, acc1 and weight decay.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clip_benchmark.datasets.builder import build_dataset
from clip_benchmark.metrics import linear_probe
from torch.utils.data import DataLoader, Dataset, random_split

torch.nn.Module.cuda = lambda self, *_: self
torch.Tensor.cuda = lambda self, *_: self


class Samples(Dataset):
    """A part of a set with its pictures encoded, as `random_split` needs a length."""

    def __init__(self, folder: str, split: str, transform: Any) -> None:
        part = build_dataset("wds/set", root=folder, split=split, transform=lambda picture: picture, download=False)
        self.samples, self.transform = list(part), transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        picture, label = self.samples[index]
        return self.transform(picture.convert("RGB")), label


def store_features(file: str, folder: Path, seed: int) -> None:
    """The features as `evaluate` would have left them."""
    parts = np.load(file)
    train_ND, train_N = torch.from_numpy(parts["train"]), torch.from_numpy(parts["train_label"])
    order_N = torch.randperm(len(train_N), generator=torch.Generator().manual_seed(seed))
    last = int(0.8 * len(train_N))
    stored = {
        "train": (train_ND[order_N[:last]], train_N[order_N[:last]]),
        "val": (train_ND[order_N[last:]], train_N[order_N[last:]]),
        "test": (torch.from_numpy(parts["test"]), torch.from_numpy(parts["test_label"])),
    }
    folder.mkdir(parents=True)
    for name, (rows_ND, label_N) in stored.items():
        torch.save(rows_ND, folder / f"features_{name}.pt")
        torch.save(label_N, folder / f"targets_{name}.pt")


def loaders(model: str, folder: str, seed: int, workers: int) -> dict[str, Any]:
    """The model and the three parts, as clip_benchmark's command builds them."""
    import open_clip

    net, _, transform = open_clip.create_model_and_transforms(f"local-dir:{model}")
    train, test = Samples(folder, "train", transform), Samples(folder, "test", transform)
    rest, val = random_split(train, [0.8, 0.2], torch.Generator().manual_seed(seed))
    load = [DataLoader(part, batch_size=64, num_workers=workers) for part in (rest, test, val)]
    return {"model": net.eval(), "train_dataloader": load[0], "dataloader": load[1], "val_dataloader": load[2]}


def probe(arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """What one search and training took, and what it reached."""
    with tempfile.TemporaryDirectory() as root, open(os.devnull, "w") as nowhere:
        if arguments.features:
            store_features(arguments.features, Path(root) / "model", seed)
        began, before = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(nowhere):
            given: dict[str, Any] = {"model": torch.nn.Identity(), "train_dataloader": None, "dataloader": None}
            given["val_dataloader"] = True
            if not arguments.features:
                given = loaders(arguments.model, arguments.set, seed, arguments.workers)
            found = linear_probe.evaluate(
                fewshot_k=-1,
                batch_size=64,
                num_workers=arguments.workers,
                lr=0.1,
                epochs=10,
                model_id="model",
                seed=seed,
                feature_root=root,
                device="cpu",
                amp=False,  # bf16 on a CPU, which its own code cannot store
                **given,
            )
        took = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - before}
    return {**took, "acc1": float(found["lp_acc1"]), "weight_decay": float(found["weight_decay"])}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--features")
    parser.add_argument("--model")
    parser.add_argument("--set")
    parser.add_argument("--workers", type=int, default=0, help="0 is its fastest here")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for line in sys.stdin:
        print(json.dumps(probe(arguments, int(line))), flush=True)


if __name__ == "__main__":
    main()
