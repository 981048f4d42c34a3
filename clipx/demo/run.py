"""Runs `clipx demo`: the main workflow on generated data, on a CPU, with the commands that a person would type.

It renders shards, starts a run, stops it in the middle with SIGTERM and starts it again, evaluates it zero-shot on
held-out images and on combinations that are not in the training data, exports it for transformers and open_clip, and
writes a report with pictures.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipx.config.load import dump_config, load_config
from clipx.config.schema import RunConfig, require_pretraining
from clipx.demo.scenes import write_synthetic_set
from clipx.errors import InputError, RunError
from clipx.printable import shown

_NUM_TRAIN = 24_000
_IMAGES_PER_CLASS = 20
_SHARD_SIZE = 1_000
_MIN_SEEN, _MIN_UNSEEN = 0.90, 0.50
_MAX_SECONDS = 600
_FORMATS = ("hf", "open_clip")
SEEN, UNSEEN, RETRIEVAL = "wds_scenes", "wds_scenes_unseen", "wds_scenes_retrieval"


@dataclass(frozen=True)
class _Row:
    what: str
    figure: str
    against: str
    good: bool = True


def run_demo(out: Path) -> int:
    """Runs the demo in the folder `out`.

    Returns:
        0 if all results are as good as promised, else 1.

    Raises:
        InputError: `out` cannot be written.
        RunError: a command ended with another exit code than expected.
    """
    console = Console()
    began = time.monotonic()
    data, run_dir, config_file = out / "data", out / "run", out / "config.yaml"
    config = _config(data=data.resolve(), run_dir=run_dir.resolve())
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write_config(config_file, dump_config(config))
    except OSError as error:
        raise InputError(f"--out {out} cannot be written ({error.strerror}); choose another folder") from error

    console.rule(f"1. {_NUM_TRAIN:,} pictures with captions, as webdataset shards")
    if not data.exists():
        write_synthetic_set(
            data,
            num_train=_NUM_TRAIN,
            num_eval_per_class=_IMAGES_PER_CLASS,
            image_size=config.model.image.image_size,
            seed=config.seed,
            shard_size=_SHARD_SIZE,
        )
    rows = [_Row("pictures rendered", f"{_NUM_TRAIN:,}", f"{time.monotonic() - began:.0f} s")]

    console.rule("2. training, with a stop in the middle and the same command again")
    rows += _train_with_a_stop(config_file, run_dir, num_steps=config.num_steps)

    console.rule("3. zero-shot on held-out pictures, and on combinations never seen in training")
    rows += _evaluate(run_dir, data)

    console.rule("4. export for transformers and open_clip, loaded by both and compared")
    rows += _export(run_dir, out / "export")

    console.rule("5. a report: the curves, the mistakes with their pictures, a map of the embeddings")
    rows += _report(run_dir, data, out / "report.html")

    rows.append(_Row("the whole demo", f"{time.monotonic() - began:.0f} s", f"{_MAX_SECONDS} s on 2 cores"))
    _print_table(console, rows, out)
    return 0 if all(row.good for row in rows) else 1


def _write_config(path: Path, text: str) -> None:
    """Writes the config with a mark, over an earlier one that still fits its own.

    Raises:
        InputError: there is a file that the demo did not write, or that was edited.
    """
    mark = "# Written by `clipx demo`, checksum {}.\n"
    marked = mark.format(hashlib.sha256(text.encode()).hexdigest()) + text
    if path.exists():
        there = path.read_text(errors="replace")
        body = there.partition("\n")[2]
        if there != text and there != mark.format(hashlib.sha256(body.encode()).hexdigest()) + body:
            raise InputError(f"{path} is there, and the demo did not write it like that; choose another --out")
    path.write_text(marked)


def _config(*, data: Path, run_dir: Path) -> RunConfig:
    """The shipped config with the folders of this demo."""
    overrides = [f"run_dir={run_dir}", f"data.train=[{data / 'train'}]"]
    overrides += [f"evaluate.seen.data={data / SEEN}", f"evaluate.unseen.data={data / UNSEEN}"]
    with as_file(files("clipx.demo").joinpath("demo.yaml")) as config_file:
        return require_pretraining(load_config([config_file], overrides), "clipx demo")


def _train_with_a_stop(config_file: Path, run_dir: Path, *, num_steps: int) -> list[_Row]:
    command = [sys.executable, "-m", "clipx", "train", str(config_file)]
    began = time.monotonic()
    rows = []
    if _last_step(run_dir) < num_steps // 2:
        process = subprocess.Popen(command, env=_environment())
        while process.poll() is None and _last_step(run_dir) < num_steps // 2:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _expect(process.wait(), 85, command)
        rows.append(_Row("stopped by SIGTERM at step", _saved_step(run_dir), f"exit 85 of {num_steps} steps"))
    _command("train", str(config_file))
    rows.append(_Row("resumed and completed at step", _saved_step(run_dir), f"exit 0 of {num_steps} steps"))
    rows.append(_Row("training, both halves", f"{time.monotonic() - began:.0f} s", ""))
    return rows


def _evaluate(run_dir: Path, data: Path) -> list[_Row]:
    metrics = run_dir.parent / "zeroshot.json"
    _command(
        "zeroshot", str(run_dir), *(str(data / name) for name in (SEEN, UNSEEN, RETRIEVAL)), "--json", str(metrics)
    )
    scores = {Path(folder).name: row for folder, row in json.loads(metrics.read_text()).items()}
    seen, unseen = scores[SEEN]["acc1"], scores[UNSEEN]["acc1"]
    recall = scores[RETRIEVAL]["text_to_image_recall@1"]
    return [
        _Row("held-out pictures, 48 classes", f"{seen:.1%}", f"at least {_MIN_SEEN:.0%}", seen >= _MIN_SEEN),
        _Row("unseen combinations, of 56", f"{unseen:.1%}", f"at least {_MIN_UNSEEN:.0%}", unseen >= _MIN_UNSEEN),
        _Row("caption to picture, R@1 of 384", f"{recall:.1%}", "chance 0.3%"),
    ]


def _export(run_dir: Path, folder: Path) -> list[_Row]:
    _command("export", str(run_dir), "--to", str(folder), "--format", ",".join(_FORMATS))
    parity: dict[str, Any] = json.loads((folder / "parity.json").read_text())
    rows = parity["consumers"].values()
    return [_parity_row([row for row in rows if row["format"] == name], parity["limit"]) for name in _FORMATS]


def _parity_row(consumers: list[dict[str, Any]], limit: float) -> _Row:
    """The row of one format; not good if nobody compared it. `clipx export` itself fails above the limit."""
    bound = [row for row in consumers if row["checked"] and row["limit"] is not None]
    if not bound:
        return _Row("parity", "not compared", consumers[0]["reason"], good=False)
    largest = max(difference for row in bound for difference in row["largest_difference"].values())
    return _Row(
        f"largest difference, {bound[0]['library']}", f"{largest:.1e}", f"at most {limit:.0e}", largest <= limit
    )


def _report(run_dir: Path, data: Path, page: Path) -> list[_Row]:
    began = time.monotonic()
    _command("report", str(run_dir), "--out", str(page), "--on", str(data / RETRIEVAL))
    return [_Row("report, a page for a browser", f"{time.monotonic() - began:.0f} s", page.name)]


def _command(*arguments: str) -> None:
    command = [sys.executable, "-m", "clipx", *arguments]
    _expect(subprocess.run(command, env=_environment(), check=False).returncode, 0, command)


def _environment() -> dict[str, str]:
    """The environment of a command: waiting threads sleep, because two that spin beside a busy process were slower."""
    return {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ


def _expect(code: int, expected: int, command: list[str]) -> None:
    if code != expected:
        raise RunError(f"`clipx {' '.join(command[3:])}` ended with {code} instead of {expected}")


def _last_step(run_dir: Path) -> int:
    metrics = run_dir / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def _saved_step(run_dir: Path) -> str:
    return str(json.loads((run_dir / "status.json").read_text())["step"])


def _print_table(console: Console, rows: list[_Row], out: Path) -> None:
    table = Table("what", "figure", "against", "", title=Text(shown(f"clipx demo, in {out}")))
    for row in rows:
        table.add_row(Text(row.what), row.figure, row.against, "ok" if row.good else "BELOW ITS MARK")
    console.print(table)
