"""Chosen batches (`select`) on a set of which a share of the captions is shuffled, beside a plain run on the same set.

    benchmarks/chosen.py --steps 800 --every 50 --keep 0.5

Scenes as the demo draws them; of `--shuffled` of the samples the captions are shuffled among themselves. A reference is
trained on other scenes, whose captions are right (`--reference clean`), or for as long as it takes on the shuffled set
itself (`--reference same`), and says what it knows by `clipx data teach`. Then a plain run and one that chooses, with
equal steps, batches, seeds and evaluations; each evaluation is a row. The closing rows say which share of the chosen
pairs were right ones, by quarters of the run, the part of the step that choosing took, and how many pairs the run that
chooses had been trained on when it first reached the plain run's last accuracy, over those of the plain run.

The name is not select.py, which would hide Python's module of that name from everything that is run here.
"""

import argparse
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from harness import device_argument, prepare, print_table, write_rows

from clipx import load
from clipx.config.load import load_config
from clipx.config.schema import RunConfig
from clipx.data.shard_writer import write_shard
from clipx.demo.scenes import write_synthetic_set
from clipx.prepare.teach import TeachOptions, teach
from clipx.prepare.teach_rows import TeacherModel
from clipx.train.trainer import train

CONFIG = Path(__file__).parents[1] / "configs" / "tiny.yaml"
QUARTERS = 4


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one comparison, for each seed, and writes its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device_argument(parser)
    parser.add_argument("--work", type=Path, help="folder that is kept (default: one that is removed)")
    parser.add_argument("--steps", type=int, default=800, help="of both runs (default: %(default)s)")
    parser.add_argument("--every", type=int, default=50, help="steps between evaluations (default: %(default)s)")
    parser.add_argument("--train", type=int, default=24_000, help="samples of the set (default: %(default)s)")
    parser.add_argument("--shuffled", type=float, default=0.5, help="share of wrong captions (default: %(default)s)")
    parser.add_argument("--reference", choices=("clean", "same"), default="clean", help="(default: %(default)s)")
    parser.add_argument("--reference-steps", type=int, default=400, help="(default: %(default)s)")
    parser.add_argument("--reference-train", type=int, default=6_000, help="its clean scenes (default: %(default)s)")
    parser.add_argument("--keep", type=float, default=0.5, help="(default: %(default)s)")
    parser.add_argument("--score", default="learnability", help="(default: %(default)s)")
    parser.add_argument("--chunks", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--gain", type=float, default=1.0, help="(default: %(default)s)")
    parser.add_argument("--score-size", type=int, help="pixels of scored pictures (default: as in training)")
    parser.add_argument("--views", type=int, default=2, help="of the reference (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="(default: %(default)s)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of all three runs")
    arguments = parser.parse_args(argv)
    prepare(arguments)
    found: list[dict[str, object]] = []
    with TemporaryDirectory() as scratch:
        for seed in arguments.seeds:
            for row in compare(arguments, arguments.work or Path(scratch), seed=seed):
                found.append(row)
                write_rows("chosen", [row], arguments.out)
    print_table([row for row in found if row["row"] == "sum"], [name for name in found[-1] if name != "row"])


def compare(arguments: argparse.Namespace, work: Path, *, seed: int) -> Iterator[dict[str, object]]:
    """The rows of one seed."""
    data, folder = work / "data", work / f"seed{seed}"
    if not data.exists():
        _write_sets(data, arguments)
    right = np.array(json.loads((data / "right.json").read_text()))
    settings = {"keep": arguments.keep, "score": arguments.score, "chunks": arguments.chunks, "gain": arguments.gain}
    given = {**settings, "shuffled": arguments.shuffled, "reference": arguments.reference, "seed": seed}
    store = folder / "store"
    if arguments.score != "hard_learner" and not (store / "teachers.json").exists():
        _teach(arguments, data, folder, store, seed=seed)
    curves = {}
    for name in ("plain", "chosen"):
        more = () if name == "plain" else (_select(arguments, store), "track.samples=true")
        config = _config(arguments, data, folder / name, *more, seed=seed)
        assert train(config) == 0, f"the {name} run did not end"
        curves[name] = list(_curve(folder / name, config))
        for step, accuracy in curves[name]:
            yield {"row": name, **given, "step": step, "pairs": step * config.global_batch_size, "acc1": accuracy}
    yield {"row": "sum", **given, **_summary(folder, curves, right)}


def _summary(folder: Path, curves: dict[str, list[tuple[int, float]]], right: np.ndarray) -> dict[str, object]:
    steps, goal = curves["plain"][-1]
    reached = next((step for step, accuracy in curves["chosen"] if accuracy >= goal), None)
    rows = _rows(folder / "chosen" / "metrics.jsonl")
    seconds = sum(row["elapsed_s"] - row["pause_s"] for row in rows[1:])
    plain_s = sum(row["elapsed_s"] - row["pause_s"] for row in _rows(folder / "plain" / "metrics.jsonl")[1:])
    parts = np.array_split(
        [right[row["samples"]].mean() for row in _rows(folder / "chosen" / "samples.jsonl")], QUARTERS
    )
    shares = [float(part.mean()) for part in parts]
    return {
        "plain_acc1": goal,
        "chosen_acc1": curves["chosen"][-1][1],
        "pairs_to_plain": None if reached is None else reached / steps,
        "seconds_to_plain": None if reached is None else reached / steps * seconds / plain_s,
        **{f"right_{number + 1}": share for number, share in enumerate(shares)},
        "right_to_wrong": shares[-1] / max(1 - shares[-1], 1e-9),
        "select_share": sum(row["select_s"] for row in rows[1:]) / seconds,
    }


def _write_sets(data: Path, arguments: argparse.Namespace) -> None:
    """The shuffled set with the demo's evaluation sets, the reference's own scenes, and which samples are right."""
    sizes = {"image_size": 48, "shard_size": 1000}
    write_synthetic_set(data / "scenes", num_train=arguments.train, num_eval_per_class=20, seed=0, **sizes)
    write_synthetic_set(data / "clean", num_train=arguments.reference_train, num_eval_per_class=1, seed=1, **sizes)
    right = plant(data / "scenes" / "train", data / "planted", share=arguments.shuffled, seed=0)
    (data / "right.json").write_text(json.dumps(right.tolist()))


def plant(shards: Path, out: Path, *, share: float, seed: int) -> np.ndarray:
    """Writes shards in which a share of the captions is shuffled; returns which samples keep their own, bool (N,).

    Samples are numbered through in the order of shards, as a run's sample ids are.
    """
    of_shards = [list(_samples(path)) for path in sorted(shards.glob("*.tar"))]
    samples = [sample for of_shard in of_shards for sample in of_shard]
    rng = np.random.default_rng(seed)
    wrong = np.sort(rng.permutation(len(samples))[: round(share * len(samples))])
    texts = [members["txt"] for _, members in samples]
    for place, other in zip(wrong, np.roll(rng.permutation(wrong), 1), strict=True):
        samples[place] = (samples[place][0], {**samples[place][1], "txt": texts[other]})
    first = 0
    for number, of_shard in enumerate(of_shards):
        write_shard(out / f"{number:05d}.tar", samples[first : first + len(of_shard)])
        first += len(of_shard)
    # a shuffled caption may still say what the picture shows
    return np.array([members["txt"] == text for (_, members), text in zip(samples, texts, strict=True)])


def _samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            content = tar.extractfile(member)
            assert content is not None, f"{member.name} of {path} is no file"
            found.setdefault(key, {})[extension] = content.read()
    yield from found.items()


def _teach(arguments: argparse.Namespace, data: Path, folder: Path, store: Path, *, seed: int) -> None:
    """The reference, trained, and what it says of the shuffled set in the views of a run of this seed."""
    shards = data / ("clean/train" if arguments.reference == "clean" else "planted")
    seldom = [f"evaluate.{name}.every_steps={arguments.reference_steps}" for name in ("seen", "unseen")]
    more = (f"data.train=[{shards}]", f"steps={arguments.reference_steps}", f"seed={seed + 1000}", *seldom)
    assert train(_config(arguments, data, folder / "reference", *more, seed=seed)) == 0, "the reference did not end"
    model = load(str(folder / "reference"), device=torch.device(arguments.device))
    student = _config(arguments, data, folder / "plain", seed=seed)
    options = TeachOptions(views=arguments.views, seed=seed)
    teach(student.data, [TeacherModel("reference", str(folder / "reference"), model)], str(store), options=options)


def _select(arguments: argparse.Namespace, store: Path) -> str:
    reference = "" if arguments.score == "hard_learner" else f", reference: {store}"
    size = "" if arguments.score_size is None else f", image_size: {arguments.score_size}"
    return (
        f"select={{keep: {arguments.keep}, score: {arguments.score}, chunks: {arguments.chunks}, "
        f"gain: {arguments.gain}{reference}{size}}}"
    )


def _config(arguments: argparse.Namespace, data: Path, run_dir: Path, *more: str, seed: int) -> RunConfig:
    """The demo's recipe on the shuffled set."""
    scenes = data / "scenes"
    own = (
        f"run_dir={run_dir}",
        f"seed={seed}",
        f"steps={arguments.steps}",
        f"data.train=[{data / 'planted'}]",
        "checkpoint={every_steps: 0, every_minutes: 0, keep_last: 1}",
        "track={wandb: disabled, every_steps: 10}",
        f"evaluate.seen={{data: {scenes / 'wds_scenes'}, every_steps: {arguments.every}}}",
        f"evaluate.unseen={{data: {scenes / 'wds_scenes_unseen'}, every_steps: {arguments.every}}}",
    )
    config = load_config([CONFIG], [*own, *arguments.set, *more])
    assert isinstance(config, RunConfig)
    return config


def _curve(run_dir: Path, config: RunConfig) -> Iterator[tuple[int, float]]:
    """Steps and accuracies of a run's evaluations."""
    for path in sorted((run_dir / "eval").glob("seen-*.json")):
        result = json.loads(path.read_text())
        if result["step"] <= config.num_steps:
            yield result["step"], result["acc1"]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
