"""The same 20 losses, bit for bit, in every environment; or one line that says why not, and exit code 2.

Most runs are forks of a process that has imported torch; what libraries read when they are imported gets a process of
its own.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.processes import Starter, adopt_orphans
from faults.processes import environment as clean
from tiny import CONFIG, losses

RANK = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "4"}

# What leaves the losses as they are.
SAME = {
    "accumulation": {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
    "dynamo": {"ACCELERATE_DYNAMO_BACKEND": "inductor", "ACCELERATE_DYNAMO_USE_FULLGRAPH": "true"},
    "precision": {"ACCELERATE_MIXED_PRECISION": "bf16"},
    "tracking": {"WANDB_MODE": "disabled", "WANDB_DISABLED": "true", "WANDB_PROJECT": "", "TENSORBOARD_PORT": "x"},
    "caches": {"CLIPX_CACHE": "", "TRITON_CACHE_DIR": "/dev/null", "TORCHINDUCTOR_CACHE_DIR": "/dev/null"},
    "device": {"ACCELERATE_TORCH_DEVICE": "meta"},
    "deepspeed": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
    "megatron": {"ACCELERATE_USE_MEGATRON_LM": "true", "MEGATRON_LM_TP_DEGREE": "2"},
    "parallelism": {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"},
    "debug": {"ACCELERATE_DEBUG_MODE": "1", "TORCH_DISTRIBUTED_DEBUG": "DETAIL", "NCCL_DEBUG": "INFO"},
    "affinity": {"ACCELERATE_CPU_AFFINITY": "1"},
    "sagemaker": {"ACCELERATE_USE_SAGEMAKER": "true", "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE": "DATA_PARALLEL"},
    "threads": {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
    "threads that are no number": {"OMP_NUM_THREADS": "", "MKL_NUM_THREADS": "two"},
    "hub": {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": "/dev/null"},
    "batch script": BATCH | {"SLURM_NNODES": "1"},
    "batch script of two nodes": BATCH | {"SLURM_NNODES": "2"},
    "interactive step": BATCH | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
    "mpi of one": {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
    "pmi without a rank": {"PMI_SIZE": "4"},
    "empty launcher": dict.fromkeys((*RANK, "MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS", "SLURM_PROCID"), ""),
    "rank of one": RANK,
    "no home": {"HOME": "/dev/null/home"},
    "empty home": {"HOME": "", "XDG_CACHE_HOME": "", "TMPDIR": ""},
    "locale": {"LC_ALL": "C", "LANG": "tr_TR.ISO-8859-9", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "7"},
    "cuda": {"CUDA_LAUNCH_BLOCKING": "1", "CUBLAS_WORKSPACE_CONFIG": ":0:0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
}
# Those of `make test`.
SHORT = ("accumulation", "precision", "deepspeed", "threads", "batch script of two nodes", "rank of one", "no home")
# Of which the config says the first six.
WANDB = {
    "WANDB_MODE": "online",
    "WANDB_RUN_ID": "other",
    "WANDB_RESUME": "must",
    "WANDB_DIR": "/dev/null",
    "WANDB_PROJECT": "other",
    "WANDB_NAME": "other",
    "WANDB_API_KEY": "x" * 40,
    "HOME": "/dev/null",
}
# What is refused, with the word that names the cause.
REFUSED = {
    "half a launcher": ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without RANK and LOCAL_RANK"),
    "no address": (RANK | {"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without MASTER_ADDR"),
    "no number": (RANK | {"RANK": "first"}, "RANK=first: expected"),
    "rank out of range": (RANK | {"RANK": "1", "MASTER_ADDR": "localhost"}, "RANK=1: expected a number from 0 to 0"),
    "port": (RANK | {"MASTER_ADDR": "localhost", "MASTER_PORT": "ssh"}, "MASTER_PORT=ssh: expected"),
    "fsdp": ({"ACCELERATE_USE_FSDP": "true"}, "parallel.type=ddp; set parallel.type=fsdp2"),
    "read already": ({"ATEN_CPU_CAPABILITY": "default"}, "ATEN_CPU_CAPABILITY=default in the environment changes"),
}
# Read when torch, oneDNN, MKL, timm or Python itself start; each of the first five changed bits before.
AT_IMPORT = {
    "ATEN_CPU_CAPABILITY": "default",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "2",
    "TIMM_FUSED_ATTN": "0",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "LC_ALL": "C",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONUTF8": "0",
    "TORCHDYNAMO_DISABLE": "1",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
}


@pytest.fixture(scope="module")
def starter() -> Iterator[Starter]:
    adopt_orphans()
    starter = Starter()
    yield starter
    starter.close()


class Tried:
    """The tiny run in some environment."""

    def __init__(self, folder: Path, shards: Path, starter: Starter) -> None:
        self.run_dir = folder / "run"
        self._log = folder / "log"
        self._arguments = ["train", str(CONFIG), f"run_dir={self.run_dir}", f"data.train=[{shards}]"]
        self._starter = starter

    def warm(self, variables: dict[str, str], *overrides: str) -> tuple[int, list[str]]:
        """Exit code and lines of a fork."""
        process = self._starter.warm([*self._arguments, *overrides], self._log, clean(**variables))
        return process.wait(timeout_s=120), process.text.splitlines()

    def cold(self, variables: dict[str, str]) -> tuple[int, list[str]]:
        """Exit code and lines of a new interpreter, whose files are for nobody else."""
        command = ["bash", "-c", 'umask 077; exec "$@"', "bash", sys.executable, "-m", "clipx", *self._arguments]
        process = self._starter.cold(command, self._log, clean(**variables))
        return process.wait(timeout_s=120), process.text.splitlines()


@pytest.fixture
def tried(tmp_path: Path, scenes: Path, starter: Starter) -> Tried:
    return Tried(tmp_path, scenes / "train", starter)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, scenes: Path, starter: Starter) -> list[float]:
    """The losses in the plain environment."""
    tried = Tried(tmp_path_factory.mktemp("plain"), scenes / "train", starter)
    assert tried.warm({})[0] == 0
    return losses(tried.run_dir)


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.full) for name in SAME]
)
def test_losses_stay(name: str, tried: Tried, expected: list[float]) -> None:
    assert len(expected) == 20
    code, lines = tried.warm(SAME[name])
    assert code == 0, lines
    assert losses(tried.run_dir) == expected


def test_wandb_sends_and_mixes_nothing_that_the_config_keeps_apart(tried: Tried, expected: list[float]) -> None:
    code, lines = tried.warm(WANDB, "track.wandb=offline")
    assert (code, losses(tried.run_dir)) == (0, expected)
    assert not any("cannot start" in line or "server" in line for line in lines)
    (folder,) = (tried.run_dir / "wandb").glob("offline-run-*")
    assert not folder.name.endswith("other")


def test_what_was_ignored_is_named_once(tried: Tried) -> None:
    code, lines = tried.warm(SAME["deepspeed"] | SAME["precision"], "steps=1")
    named = "ACCELERATE_DEEPSPEED_ZERO_STAGE, ACCELERATE_MIXED_PRECISION, ACCELERATE_USE_DEEPSPEED"
    said = [line for line in lines if "ACCELERATE" in line]
    assert (code, said) == (0, [f"the config alone says what is computed; ignored from the environment: {named}"])


def test_variables_that_libraries_read_at_once(tried: Tried, expected: list[float]) -> None:
    code, lines = tried.cold(AT_IMPORT)
    assert code == 0, lines
    assert losses(tried.run_dir) == expected
    assert (tried.run_dir / "metrics.jsonl").stat().st_mode & 0o777 == 0o600
    (said,) = [line for line in lines if "ignored from the environment" in line]
    assert "ATEN_CPU_CAPABILITY" in said
    assert "OMP_NUM_THREADS" not in said  # a run without GPUs has one thread per rank in any case


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_line(name: str, tried: Tried) -> None:
    variables, reason = REFUSED[name]
    code, lines = tried.warm(variables)
    errors = [line for line in lines if line.startswith("clipx: error: ")]
    assert (code, len(errors)) == (2, 1), lines
    assert reason in errors[0]
    assert not any("Traceback" in line for line in lines)
