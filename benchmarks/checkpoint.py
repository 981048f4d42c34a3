"""Training time that a save costs: written in its way, and beside it (`checkpoint.async_save`).

    OMP_WAIT_POLICY=PASSIVE taskset -c 0,1 .venv/bin/python benchmarks/checkpoint.py --threads 1

The model is ViT-B/32 with as many blocks of text as make 500 MB of float32 weights; with AdamW's moments a checkpoint
has three times as much. A repetition takes the same steps three times: without a save, after a blocking one, and after
an asynchronous one, at whose end the last of it is waited for. What a save costs is the difference in wall time to the
steps without one, of the same repetition; its pause is what `Saver.save` itself takes. The background needs a core or a
share of one: `cpu_s` is what the process computed beyond the steps, and `cores` how many it may use.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from harness import Timing, alternate, device_argument, prepare, print_table, write_rows
from workload import Steps, benchmark_config, make_batch

from clipx.config.model import TransformerTextConfig
from clipx.distributed.runtime import start_runtime
from clipx.train.build import Run, build_run
from clipx.train.saving import Saver

TEXT_LAYERS = 4
"""Instead of 12: 126 million parameters."""


class Saved:
    """Steps, after a save or without one, until everything is on the disk."""

    def __init__(self, steps: Steps, saver: Saver | None) -> None:
        self.steps, self.saver = steps, saver
        self.pauses_s: list[float] = []
        self.cpu_s: list[float] = []

    def __call__(self) -> None:
        began_s = time.process_time()
        if self.saver is not None:
            self.steps.run.progress.step += 1
            self.saver.save(stopping=False)
            self.pauses_s.append(self.saver.pop_pause_seconds())
        self.steps()
        if self.saver is not None:
            self.saver.wait()
            assert self.saver.saved_step == self.steps.run.progress.step
        self.cpu_s.append(time.process_time() - began_s)


def contenders(run: Run, arguments: argparse.Namespace) -> dict[str, Saved]:
    """The same run without saves, with blocking and with asynchronous ones."""
    steps = Steps(run, [make_batch(run.config, arguments.batch, index=0)], num_steps=arguments.steps)
    found = {"none": Saved(steps, None)}
    for name, beside in (("blocking", False), ("asynchronous", True)):
        policy = replace(run.config.checkpoint, async_save=beside, keep_last=1)
        found[name] = Saved(steps, Saver(replace(run, config=replace(run.config, checkpoint=policy))))
    return found


def rows_of(
    arguments: argparse.Namespace, run: Run, sides: dict[str, Saved], timings: dict[str, Timing]
) -> list[dict[str, object]]:
    """One row for each way of saving."""
    weights = sum(parameter.nbytes for parameter in run.stepper.objective.model.parameters())
    none, timed = timings["none"], slice(arguments.warmup, None)
    rows: list[dict[str, object]] = []
    for name, timing in timings.items():
        if name == "none":
            continue
        side = sides[name]
        lost = Timing.of([a - b for a, b in zip(timing.samples, none.samples, strict=True)])
        pause = Timing.of(side.pauses_s[timed])
        cpu_s = Timing.of([a - b for a, b in zip(side.cpu_s[timed], sides["none"].cpu_s[timed], strict=True)])
        rows.append(
            {
                "contender": name,
                "device": arguments.device,
                "weights_mb": weights / 1e6,
                "cores": len(os.sched_getaffinity(0)),
                "steps": arguments.steps,
                "step_s": none.p50 / arguments.steps,
                "first_pause_s": side.pauses_s[0],
                **{f"pause_s_{part}": getattr(pause, part) for part in ("p20", "p50", "p80")},
                **{f"lost_s_{part}": getattr(lost, part) for part in ("p20", "p50", "p80")},
                "cpu_s": cpu_s.p50,
                "repetitions": timing.count,
            }
        )
    for row, wanted in ((row, key) for row in rows for key in ("pause_s_p50", "lost_s_p50")):
        row[f"{wanted}_of_blocking"] = row[wanted] / rows[0][wanted]  # type: ignore[operator]
    return rows


@contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[Run]:
    """A run of ViT-B/32, its text tower cut to the wanted size."""
    with TemporaryDirectory(dir=arguments.folder) as folder:
        config = benchmark_config("b32", arguments.batch, precision="fp32", folder=Path(folder))
        assert isinstance(config.model.text, TransformerTextConfig)
        text = replace(config.model.text, layers=TEXT_LAYERS)
        config = replace(config, model=replace(config.model, text=text))
        with start_runtime(config) as runtime:
            yield build_run(config, runtime)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device_argument(parser)
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=6, help="steps after each save (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="repetitions before the clock runs")
    parser.add_argument("--folder", type=Path, help="where the checkpoints go (default: the system's temporary folder)")
    arguments = parser.parse_args(argv)
    device = prepare(arguments)
    with opened(arguments) as run:
        sides = contenders(run, arguments)
        timings = alternate(sides, repetitions=arguments.repetitions, warmup=arguments.warmup, device=device)
        rows = rows_of(arguments, run, sides, timings)
        for side in sides.values():
            if side.saver is not None:
                side.saver.close()
    write_rows("checkpoint", rows, arguments.out)
    columns = ["contender", "weights_mb", "cores", "step_s", "first_pause_s", "pause_s_p50", "pause_s_p50_of_blocking"]
    print_table(rows, [*columns, "lost_s_p20", "lost_s_p50", "lost_s_p80", "lost_s_p50_of_blocking", "cpu_s"])


if __name__ == "__main__":
    main()
