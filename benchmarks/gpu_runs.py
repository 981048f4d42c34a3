"""Steps of the GPU plan that run whole programs: a training that is killed and resumed, the GPU tests; and waits."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from gpu_report import Report
from gpu_speed import no_waits
from workload import MODELS, ROOT, Steps, make_batch, open_run

import clipx
from clipx.config.load import dump_config, load_config
from clipx.config.optim import EmaConfig, StableAdamWConfig
from clipx.config.parallel import Fsdp2Config
from clipx.demo.scenes import write_synthetic_set
from clipx.storage.json_rows import read_rows

_SAVE_EVERY = 40
_WITHOUT_CUDNN = "import torch; torch.backends.cuda.enable_cudnn_sdp(False); from clipx.cli import main; main()"
"""`python -m clipx` for a rehearsal: a CUDA that computes nothing has no cuDNN."""


def run_and_tests(report: Report) -> None:
    """The GPU tests beside two trainings: neither is timed, and the machine has cores for all of them."""
    tests = _start_tests(report)
    try:
        _killed_and_resumed(report)
    finally:
        _read_tests(report, tests)


def waits(report: Report) -> None:
    """Steps in settings that are seldom used: they run, and none of them waits for the device.

    The last ones leave switches and process groups behind.
    """
    variants: dict[str, dict[str, object]] = {
        "bf16": {},
        "fp32": {"precision": "fp32"},
        "fp16": {"precision": "fp16"},
        "average of the weights": {"ema": EmaConfig()},
        "gradient cache": {"micro_batch_size": 16},
        "stable_adamw": {"optim": StableAdamWConfig(lr=1e-3, weight_decay=0.1, warmup_steps=10)},
        "FSDP2": {"parallel": Fsdp2Config()},
        "deterministic": {"deterministic": True},
    }
    if report.rehearse:
        torch.distributed.all_gather_object = _objects_stay_here
    for name, changes in variants.items():
        began = time.monotonic()
        try:
            with open_run("demo", 64, **({"precision": "bf16", "compile": False} | changes)) as run:
                steps = Steps(run, [make_batch(run.config, 64, index=i) for i in range(2)])
                for _ in range(3):
                    steps()
                with no_waits():
                    steps()
            report.say(what="waits", mode=name, found="none", s=time.monotonic() - began)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
            report.say(what="waits", mode=name, found=reason, s=time.monotonic() - began)
            report.failures.append(f"{name}: {reason}")


def _objects_stay_here(values: list[object], value: object, group: object = None) -> None:
    """`all_gather_object` of one process, for a rehearsal: it sends an object's size by the device's memory."""
    values[:] = [value]


def _killed_and_resumed(report: Report) -> None:
    """One run, deterministic, unbroken; another one, killed after a checkpoint and started again: equal to the bit."""
    with TemporaryDirectory() as scratch:  # not in the report's folder, of which only a few files come back
        folder = Path(scratch)
        write_synthetic_set(
            folder / "scenes", num_train=600, num_eval_per_class=1, image_size=48, seed=0, shard_size=1000
        )
        began = time.monotonic()
        whole, broken = (_Training(folder, name, report) for name in ("whole", "broken"))
        broken.kill_after_a_checkpoint()
        killed_at = broken.last_step
        broken.start()
        codes = [training.wait() for training in (whole, broken)]
        figures = {"codes": codes, "killed_at": killed_at, "s": time.monotonic() - began}
        if report.rehearse:  # what is read from the device is nonsense there, a request to stop too
            report.say(what="killed and resumed", **figures)
            return
        equal = [
            all(row[name] == again[name] for name in ("loss", "grad_norm"))
            for row, again in zip(whole.rows, broken.rows, strict=True)
        ]
        states = [clipx.load(training.run_dir).model.state_dict() for training in (whole, broken)]
        same = all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())
        figures |= {"steps": len(equal), "equal_steps": sum(equal), "same_weights": same}
        report.say(what="killed and resumed", **figures)
        report.check(codes == [0, 0] and bool(equal) and all(equal) and same, "the resumed run is another one")


class _Training:
    """`clipx train` of the demo's model in a process of its own, with checkpoints."""

    def __init__(self, folder: Path, name: str, report: Report) -> None:
        self.run_dir = folder / name
        self.config_file = folder / f"{name}.yaml"
        self.num_steps = report.size(5, 2) * _SAVE_EVERY
        self._log = report.folder / "gpu_plan.log"
        self._rehearse = report.rehearse
        self._program = ["-c", _WITHOUT_CUDNN] if report.rehearse else ["-m", "clipx"]
        config = load_config([MODELS["demo"]])
        config = replace(
            config,
            run_dir=str(self.run_dir),
            steps=self.num_steps,
            precision="bf16",
            deterministic=True,
            data=replace(config.data, train=[str(folder / "scenes/train")], workers=2),
            checkpoint=replace(config.checkpoint, every_steps=_SAVE_EVERY, every_minutes=0),
            evaluate={},
            track=replace(config.track, wandb="disabled", tensorboard=False, every_steps=1),
        )
        self.config_file.write_text(dump_config(config))
        self.start()

    def start(self) -> None:
        """The same command each time."""
        with self._log.open("a") as log:
            command = [sys.executable, *self._program, "train", str(self.config_file)]
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def kill_after_a_checkpoint(self) -> None:
        """Waits for the first checkpoint and a few steps more."""
        manifest = self.run_dir / "checkpoints" / f"step-{_SAVE_EVERY:08d}" / "manifest.json"
        while not (manifest.exists() and self.last_step > _SAVE_EVERY + 5):
            if self._process.poll() is not None:
                if self._rehearse:
                    return
                raise RuntimeError(f"clipx train ended with {self._process.returncode} before it was killed")
            time.sleep(0.01)
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def wait(self) -> int:
        """The exit code."""
        return self._process.wait()

    @property
    def rows(self) -> list[dict[str, float]]:
        """Of metrics.jsonl, the last one of each step, in order."""
        return list({row["step"]: row for row in read_rows(self.run_dir / "metrics.jsonl") if "loss" in row}.values())

    @property
    def last_step(self) -> int:
        """The step of the last row."""
        return max((int(row["step"]) for row in self.rows), default=0)


def _start_tests(report: Report) -> subprocess.Popen[bytes]:
    """pytest over the files that have tests for a GPU; in a rehearsal it only collects them."""
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    options = ["-m", "gpu", "-p", "no:cacheprovider", "--timeout=50", *(["--collect-only"] if report.rehearse else [])]
    if importlib.util.find_spec("xdist") and not report.rehearse:
        options += ["-n", "8"]
    with (report.folder / "gpu_tests.txt").open("w") as output:
        command = [sys.executable, "-m", "pytest", *options, *files]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=environment)


def _read_tests(report: Report, tests: subprocess.Popen[bytes]) -> None:
    began = time.monotonic()
    code = tests.wait()
    output = (report.folder / "gpu_tests.txt").read_text()
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    last = output.strip().splitlines()[-1] if output.strip() else ""
    report.say(what="gpu tests", code=code, summary=last[:120], failed=failed[:10], waited_s=time.monotonic() - began)
    report.check(code == 0, f"gpu tests: {last[:100]}")
