"""Which rank this process is: what torchrun, accelerate launch, srun and mpirun tell it by variables.

torch and accelerate read torchrun's names; the others' are translated, in this place alone. A process of no launcher,
or of one that started a single task, is alone.
"""

import logging
import re
from collections.abc import Mapping, MutableMapping

from clipx.errors import InputError

log = logging.getLogger(__name__)

_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_TORCH = (*_RANK, "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_DEFAULT_PORT = "29500"  # torchrun's

# Open MPI; MPICH and Intel MPI; MVAPICH2
_MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALNRANKS"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
)


def adopt_ranks(environment: MutableMapping[str, str]) -> None:
    """Makes torchrun's variables say which rank this process is; takes all of them away if it is alone.

    Raises:
        InputError: the variables contradict each other, or one of them is missing or is no number.
    """
    for name in _TORCH:
        if not environment.get(name, "").strip():
            environment.pop(name, None)
    if not any(name in environment for name in _RANK):
        for name, value in (_from_slurm(environment) or _from_mpi(environment)).items():
            environment.setdefault(name, value)
    for name in (name for names in _MPI for name in names):  # accelerate would come to an answer of its own
        environment.pop(name, None)
    if any(name in environment for name in _RANK):
        _check(environment)
        environment.setdefault("MASTER_PORT", _DEFAULT_PORT)
        if "MASTER_ADDR" not in environment:  # of one rank, which meets nobody
            for name in _TORCH:
                environment.pop(name, None)


def is_first_rank(environment: Mapping[str, str]) -> bool:
    """Whether this process is the one that speaks for all, before the variables are checked."""
    names = ("RANK", "SLURM_PROCID", *(names[0] for names in _MPI))
    return next((environment[name] for name in names if environment.get(name)), "0") == "0"


def is_slurm_task(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process as one of several tasks.

    Slurm sets the job's SLURM_NTASKS and a SLURM_PROCID of 0 in a batch script as well, and in a shell of salloc; what
    it tells of a step, srun alone sets.
    """
    return environment.get("SLURM_STEP_NUM_TASKS", "1") not in ("", "1") and "SLURM_PROCID" in environment


def warn_if_alone(environment: Mapping[str, str]) -> None:
    """Says so where a job has several tasks, but this process, which no launcher started, is not one of them."""
    if (tasks := idle_slurm_tasks(environment)) and not environment.get("RANK"):
        log.warning("this Slurm job has %d tasks, and this process is none of them: it runs alone (no srun)", tasks)


def idle_slurm_tasks(environment: Mapping[str, str]) -> int:
    """Tasks of the Slurm job if there are several and srun has started none of them here: a batch script, or a shell.

    0 otherwise.
    """
    tasks = environment.get("SLURM_NTASKS", "")
    in_step = "SLURM_STEP_NUM_TASKS" in environment
    return int(tasks) if tasks.isdecimal() and int(tasks) > 1 and not in_step else 0


def _from_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables for a task of srun; empty if this is none, or the only one.

    The first task runs on the first node of the step, where a batch script starts `srun`: that node is the rendezvous,
    unless MASTER_ADDR and MASTER_PORT are set.
    """
    if not is_slurm_task(environment):
        return {}
    tasks = environment["SLURM_STEP_NUM_TASKS"]
    nodes = environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES", "1")
    address = "127.0.0.1" if nodes == "1" else environment.get("SLURM_LAUNCH_NODE_IPADDR", "")
    adopted = {"RANK": environment["SLURM_PROCID"], "LOCAL_RANK": environment.get("SLURM_LOCALID", "")}
    adopted |= {"WORLD_SIZE": tasks, "MASTER_ADDR": address, "MASTER_PORT": _port_of_step(environment)}
    return {name: value for name, value in adopted.items() if value}


def _port_of_step(environment: Mapping[str, str]) -> str:
    """A port that the steps of a node's jobs seldom share."""
    job, step = (re.sub(r"\D", "", environment.get(name, "")) or "0" for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return str(20_000 + (int(job) + 97 * int(step)) % 20_000)


def _from_mpi(environment: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables for a process of mpirun; empty if this is none, or the only one.

    On one machine the rendezvous is known; on several MASTER_ADDR must name it.
    """
    for names in _MPI:
        rank, local_rank, size, local_size = (environment.get(name, "") for name in names)
        if rank and local_rank and size not in ("", "1"):
            adopted = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": size}
            adopted |= {"LOCAL_WORLD_SIZE": local_size} if local_size else {}
            return adopted | ({"MASTER_ADDR": "127.0.0.1"} if local_size == size else {})
    return {}


def _check(environment: Mapping[str, str]) -> None:
    missing = [name for name in _RANK if name not in environment]
    if missing:
        given = ", ".join(f"{name}={environment[name]}" for name in _RANK if name in environment)
        raise InputError(
            f"{given} without {' and '.join(missing)}: torchrun and srun tell a process all three; start it with one "
            "of them, or unset them for a run of one process"
        )
    world_size = _number(environment, "WORLD_SIZE", 1)
    _number(environment, "RANK", 0, world_size - 1)
    _number(environment, "LOCAL_RANK", 0, world_size - 1)
    _number(environment, "LOCAL_WORLD_SIZE", 1, world_size, default=1)
    _number(environment, "MASTER_PORT", 1, 2**16 - 1, default=1)
    if world_size > 1 and "MASTER_ADDR" not in environment:
        raise InputError(f"WORLD_SIZE={world_size} without MASTER_ADDR: name a node that all others reach")


def _number(
    environment: Mapping[str, str], name: str, least: int, most: int | None = None, *, default: int | None = None
) -> int:
    """A variable's number.

    Raises:
        InputError: it is none, or out of bounds.
    """
    if default is not None and name not in environment:
        return default
    text = environment[name].strip()
    value = int(text) if text.isascii() and text.isdecimal() else -1
    if value < least or (most is not None and value > most):
        expected = f"{least} or more" if most is None else f"a number from {least} to {most}"
        raise InputError(f"{name}={environment[name]}: expected {expected}; a launcher sets it, unset it without one")
    return value
