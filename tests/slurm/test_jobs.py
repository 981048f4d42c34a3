"""launch/slurm on a real Slurm: whatever a cluster does to a job, it ends with the weights of an undisturbed run."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm.cluster import Cluster, Job
from tiny import losses, saved_tensors, status, tiny_config

from clipx.config.load import dump_config

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)  # Slurm's own waits are minutes

STEPS, EVERY = 24, 4
TWO_NODES = ("--nodes=2", "--gpus-per-node=1")
ONE_NODE = ("--nodes=1", "--gpus-per-node=2")
COMPLETE = {"status": "complete", "step": STEPS, "reason": "all steps done"}

FAKE_PYTHON = """#!/usr/bin/env bash
# Python, but for `clipx train`.
if [[ " $* " == *" train "* ]]; then {train}; exit; fi
exec {python} "$@"
"""


def write_config(folder: Path, shards: Path) -> Path:
    """The run of all tests here: on two ranks, each with a loader process."""
    file = folder / "config.yaml"
    overrides = (f"steps={STEPS}", f"checkpoint.every_steps={EVERY}", "micro_batch_size=12", "data.workers=1")
    file.write_text(dump_config(tiny_config(folder / "run", shards, *overrides)))
    return file


@pytest.fixture(scope="module")
def undisturbed(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the same config on two ranks, without Slurm."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_config(folder, scenes / "train")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, "-m", "clipx", "train", str(config)], cwd=ROOT, env=environment, check=True)
    return folder / "run"


class Submitted:
    """A run in `folder`, and the job that trains it."""

    def __init__(self, cluster: Cluster, folder: Path, shards: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.run_dir = folder / "run"
        self.config = write_config(folder, shards)

    def submit(
        self, *options: str, script: str = "train", arguments: tuple[str, ...] = (), step_seconds: float = 0, **env: str
    ) -> Job:
        """sbatch, from the folder of the repository as a person does."""
        variables = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | env
        if step_seconds:
            folders = os.pathsep.join([str(ROOT), str(Path(__file__).with_name("slow_first_start"))])
            variables |= {"PYTHONPATH": folders, "STEP_SECONDS": str(step_seconds)}
        command = (*options, f"launch/slurm/{script}.sbatch", str(self.config), *arguments)
        return self.cluster.submit(command, cwd=ROOT, log=self.folder / "log.txt", variables=variables)

    def fake_python(self, train: str) -> str:
        """An interpreter that runs a line of bash in place of `clipx train`."""
        file = self.folder / "python"
        file.write_text(FAKE_PYTHON.format(train=train, python=sys.executable))
        file.chmod(0o755)
        return str(file)

    def wait_for_step(self, step: int, job: Job) -> None:
        """Returns when that step stands in metrics.jsonl."""
        file = self.run_dir / "metrics.jsonl"
        wait_until(lambda: file.exists() and len(file.read_text().splitlines()) >= step, f"step {step}", job)

    def assert_complete(self, job: Job, undisturbed: Path, *, restarts: int) -> None:
        """The job has ended well; losses, weights and moments are those of the undisturbed run, bit for bit."""
        fields = job.wait()
        assert (fields["JobState"], fields["ExitCode"]) == ("COMPLETED", "0:0"), job.text
        assert fields["Restarts"] == str(restarts), job.text
        assert status(self.run_dir) == COMPLETE
        assert losses(self.run_dir) == losses(undisturbed)
        ours, theirs = (
            saved_tensors(folder / "checkpoints" / f"step-{STEPS:08d}", self.folder / "scratch" / str(i))
            for i, folder in enumerate((self.run_dir, undisturbed))
        )
        assert ours.keys() == theirs.keys()
        assert len(ours) > 30
        assert [name for name in ours if not ours[name].equal(theirs[name])] == []


@pytest.fixture
def submitted(cluster: Cluster, scenes: Path, tmp_path: Path) -> Iterator[Submitted]:
    yield Submitted(cluster, tmp_path, scenes / "train")
    cluster.cancel_all()  # what a test that failed left


def wait_until(condition: Callable[[], object], what: str, job: Job, *, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s; {job.fields}\n{job.text}"
        time.sleep(0.05)


def saved_at(job: Job) -> int:
    """The step at which the job's first start said that it was stopped and would go on."""
    words = re.search(r"again at step (\d+)", job.text)
    assert words, job.text
    return int(words[1])


@pytest.mark.full
@pytest.mark.parametrize("script", ["train", "torchrun"])
def test_two_nodes_train_to_the_end(submitted: Submitted, undisturbed: Path, script: str) -> None:
    job = submitted.submit(*TWO_NODES, script=script)
    submitted.assert_complete(job, undisturbed, restarts=0)


@pytest.mark.full
@pytest.mark.parametrize("script", ["train", "torchrun"])
def test_before_the_time_is_up_it_saves_and_goes_on_in_a_second_start(
    submitted: Submitted, undisturbed: Path, script: str
) -> None:
    job = submitted.submit(*ONE_NODE, "--time=60", "--signal=USR1@60", script=script, step_seconds=4)
    submitted.wait_for_step(3, job)
    # Slurm looks twice a minute, and signals half a minute early: within a minute from now, and 21 steps take longer
    minutes = int(job.fields["RunTime"].split(":")[1]) + 2
    submitted.cluster.ask("scontrol", "update", f"JobId={job.id}", f"TimeLimit={minutes}")
    wait_until(lambda: job.fields["Restarts"] == "1", "the second start", job)
    submitted.cluster.ask("scontrol", "update", f"JobId={job.id}", "TimeLimit=60")
    submitted.assert_complete(job, undisturbed, restarts=1)
    assert 0 < saved_at(job) < STEPS
    assert "DUE TO TIME LIMIT" not in job.text


@pytest.mark.full
@pytest.mark.parametrize("script", ["train", "torchrun"])
def test_preempted_it_saves_makes_place_and_comes_back(submitted: Submitted, undisturbed: Path, script: str) -> None:
    job = submitted.submit(*TWO_NODES, script=script, step_seconds=2)
    submitted.wait_for_step(5, job)
    options = ("--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1")
    other = submitted.cluster.submit(options, cwd=submitted.folder, log=submitted.folder / "other.txt", variables={})
    assert other.wait()["JobState"] == "COMPLETED"
    submitted.assert_complete(job, undisturbed, restarts=1)
    assert 5 <= saved_at(job) < STEPS


@pytest.mark.full
def test_a_signal_by_hand_saves_and_queues_again(submitted: Submitted, undisturbed: Path) -> None:
    job = submitted.submit(*ONE_NODE, step_seconds=0.5)
    submitted.wait_for_step(5, job)
    submitted.cluster.ask("scancel", "--signal=USR1", str(job.id))
    submitted.assert_complete(job, undisturbed, restarts=1)
    assert 5 <= saved_at(job) < STEPS


@pytest.mark.full
def test_a_killed_rank_ends_the_start_and_the_next_one_goes_on(submitted: Submitted, undisturbed: Path) -> None:
    job = submitted.submit(*TWO_NODES, step_seconds=0.5)
    submitted.wait_for_step(EVERY + 1, job)
    os.kill(submitted.cluster.task_pid(job, node="n2"), signal.SIGKILL)
    submitted.assert_complete(job, undisturbed, restarts=1)
    assert re.search(rf"resuming from {submitted.run_dir}/checkpoints/step-\d+", job.text)
    assert (
        (submitted.run_dir / "failed_starts").read_text().startswith(f"job {job.id}, start 0: failed with exit code ")
    )


@pytest.mark.full
def test_the_file_stop_ends_the_job_and_the_same_line_goes_on(submitted: Submitted, undisturbed: Path) -> None:
    job = submitted.submit(*TWO_NODES, step_seconds=0.5)
    submitted.wait_for_step(5, job)
    (submitted.run_dir / "STOP").touch()
    fields = job.wait()
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "0")
    assert status(submitted.run_dir)["status"] == "again"
    submitted.assert_complete(submitted.submit(*TWO_NODES), undisturbed, restarts=0)


@pytest.mark.full
def test_cancelled_it_does_not_come_back(submitted: Submitted) -> None:
    job = submitted.submit(*TWO_NODES, step_seconds=0.5)
    submitted.wait_for_step(5, job)
    submitted.cluster.ask("scancel", str(job.id))
    fields = job.wait()
    assert (fields["JobState"], fields["Restarts"]) == ("CANCELLED", "0")
    assert "queued again" not in job.text


def test_one_task_per_gpu(submitted: Submitted) -> None:
    say = 'echo "$SLURM_PROCID of $SLURM_NTASKS, on its node $SLURM_LOCALID, to $MASTER_ADDR:$MASTER_PORT: ${*:2}"'
    job = submitted.submit("--nodes=2", "--gpus-per-node=2", arguments=("seed=3",), PYTHON=submitted.fake_python(say))
    assert job.wait()["JobState"] == "COMPLETED"
    rest = f"to 127.0.0.1:{20_000 + job.id % 10_000}: clipx train {submitted.config} seed=3"
    expected = [f"{rank} of 4, on its node {rank % 2}, {rest}" for rank in range(4)]
    assert sorted(job.text.splitlines()) == expected


def test_torchrun_once_per_node(submitted: Submitted) -> None:
    python = submitted.fake_python('echo "$PET_SIGNALS_TO_HANDLE $PET_SHUTDOWN_TIMEOUT $*"')
    job = submitted.submit(*TWO_NODES, script="torchrun", PYTHON=python)
    assert job.wait()["JobState"] == "COMPLETED"
    first, second = job.text.splitlines()
    assert first == second
    signals, timeout_s, command = first.split(" ", 2)
    assert set(signals.split(",")) >= {"SIGTERM", "SIGUSR1"}  # torchrun dies of what it does not handle
    assert int(timeout_s) >= 300
    sizes = "--nnodes=2 --nproc-per-node=1 --max-restarts=0"
    endpoint = f"127.0.0.1:{20_000 + job.id % 10_000}"
    rendezvous = f"--rdzv-backend=c10d --rdzv-endpoint={endpoint} --rdzv-id={job.id}-0"
    assert command == f"-m torch.distributed.run {sizes} {rendezvous} -m clipx train {submitted.config}"


def test_asked_for_it_the_job_is_queued_again_and_an_old_word_does_not_count(submitted: Submitted) -> None:
    word = json.dumps({"status": "again", "step": 1, "reason": "SIGUSR1"})
    again = f"mkdir -p {submitted.run_dir}; echo '{word}' > {submitted.run_dir}/status.json; exit 85"
    python = submitted.fake_python(f"[[ -v SLURM_RESTART_COUNT ]] || {{ {again}; }}")
    fields = submitted.submit(*ONE_NODE, PYTHON=python).wait()
    assert (fields["JobState"], fields["ExitCode"], fields["Restarts"]) == ("COMPLETED", "0:0", "1")


@pytest.mark.parametrize("script", ["train", "torchrun"])
def test_a_bad_config_is_one_line_and_not_queued_again(submitted: Submitted, script: str) -> None:
    job = submitted.submit(*TWO_NODES, script=script, arguments=("data.worker=1",))
    fields = job.wait()
    assert (fields["JobState"], fields["ExitCode"], fields["Restarts"]) == ("FAILED", "2:0", "0")
    assert job.text == "clipx: error: data.worker=1: unknown key; the nearest known is data.workers\n"


@pytest.mark.full
def test_what_keeps_failing_is_started_so_many_times_only(submitted: Submitted) -> None:
    job = submitted.submit(*TWO_NODES, PYTHON=submitted.fake_python("exit 7"), MAX_FAILURES="2")
    fields = job.wait()
    assert (fields["JobState"], fields["ExitCode"], fields["Restarts"]) == ("FAILED", "7:0", "1")
    assert "2 failed starts in a row, and MAX_FAILURES=2; the job ends" in job.text
    assert len((submitted.run_dir / "failed_starts").read_text().splitlines()) == 2


@pytest.mark.full
def test_a_run_that_does_not_save_in_time_is_queued_again(submitted: Submitted) -> None:
    deaf = 'if [[ -v SLURM_RESTART_COUNT ]]; then exit 0; fi; trap "" USR1 TERM; for i in {1..200}; do sleep 1; done'
    job = submitted.submit(*ONE_NODE, "--time=1", PYTHON=submitted.fake_python(deaf))
    fields = job.wait()
    assert (fields["JobState"], fields["ExitCode"], fields["Restarts"]) == ("COMPLETED", "0:0", "1")
    assert "DUE TO TIME LIMIT" in job.text
    assert "out of time, after" in (submitted.run_dir / "failed_starts").read_text()
