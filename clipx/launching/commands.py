"""The command line of each launcher, with the file in launch/ that a person would use by hand."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from clipx.config.parallel import Fsdp2Config
from clipx.config.schema import JobConfig
from clipx.errors import InputError
from clipx.launching.files import LAUNCH_FILES
from clipx.launching.nodes import Nodes
from clipx.launching.supervise import SAVE_SECONDS, STOP_SIGNALS

_SIZES = re.compile(r"--(nodes|gpus-per-node)(=|$)|-N")


@dataclass(frozen=True)
class LaunchCommand:
    """A program with its arguments, and environment variables for it; str() gives a line to paste into a shell."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]

    def __str__(self) -> str:
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.arguments)])

    def replace_process(self) -> NoReturn:
        """Replaces this process by the program, which then has its terminal, its signals and its exit code.

        Raises:
            InputError: the program is not on this machine.
        """
        program = self.arguments[0]
        if shutil.which(program) is None:
            raise InputError(f"{program} is not installed here; start on a machine that has it, or see --dry-run")
        os.execvpe(program, self.arguments, {**os.environ, **self.environment})


def sbatch_command(
    run: Sequence[str], *, file: Path, nodes: int, gpus_per_node: int, options: Sequence[str] = ()
) -> LaunchCommand:
    """The command that submits a file of launch/slurm/, with further options of sbatch, e.g. its partition.

    Raises:
        InputError: `options` sets the nodes or GPUs, for which `clipx launch slurm` has its own options.
    """
    for option in options:
        if _SIZES.match(option):
            raise InputError(f"--sbatch {option!r}: give --nodes and --gpus-per-node to `clipx launch slurm` itself")
    sizes = (f"--nodes={nodes}", f"--gpus-per-node={gpus_per_node}")
    return LaunchCommand(("sbatch", *sizes, *options, str(file), *run), {"PYTHON": sys.executable})


def torchrun_command(run: Sequence[str], *, nodes: Nodes, processes_per_node: int) -> LaunchCommand:
    """The command that runs launch/torchrun.sh, which takes its settings from the environment."""
    sizes = {"NNODES": str(nodes), "NPROC_PER_NODE": str(processes_per_node)}
    script = str(LAUNCH_FILES / "torchrun.sh")  # run by bash, since an archive may have lost the executable bit
    return LaunchCommand(("bash", script, *run), sizes | {"PYTHON": sys.executable})


def accelerate_command(
    run: Sequence[str],
    config: JobConfig,
    *,
    nodes: int,
    processes_per_node: int,
    environment: Mapping[str, str],
    options: Sequence[str] = (),
) -> LaunchCommand:
    """The command `accelerate launch` with a file of launch/accelerate/, for one node that of the config's parallelism.

    Variables of `environment` replace our values.

    Raises:
        InputError: several nodes without MASTER_ADDR, or a MASTER_PORT that is no number.
    """
    one_node = "fsdp2" if isinstance(config.parallel, Fsdp2Config) else "ddp"
    file = LAUNCH_FILES / "accelerate" / f"{one_node if nodes == 1 else 'multinode'}.yaml"
    sizes = [f"--num_machines={nodes}", f"--num_processes={nodes * processes_per_node}"]
    if nodes > 1:
        if not environment.get("MASTER_ADDR"):
            raise InputError(f"MASTER_ADDR is not set: with nodes={nodes}, name a node that all others reach")
        port = environment.get("MASTER_PORT") or "29500"
        if not port.isdecimal():
            raise InputError(f"MASTER_PORT={port}: expected the number of a free port")
        sizes += [f"--main_process_ip={environment['MASTER_ADDR']}", f"--main_process_port={port}"]
        sizes += ["--rdzv_backend=c10d"]  # accelerate 1.15 does not read it from its file
    launcher = (sys.executable, "-m", "accelerate.commands.launch", f"--config_file={file}", *sizes, *options)
    ours = {
        "PET_SIGNALS_TO_HANDLE": ",".join(STOP_SIGNALS),
        "PET_SHUTDOWN_TIMEOUT": environment.get("SAVE_SECONDS") or f"{SAVE_SECONDS:.0f}",
        "CLIPX_EXIT_CODE_AGAIN": "0",  # a run that was asked to stop has not failed
        "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS") or "4",  # accelerate's own default is 1
    }
    return LaunchCommand((*launcher, "-m", "clipx", "train", *run), ours)
