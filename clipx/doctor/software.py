"""Versions against what clipx needs, who launched this process, and environment variables that hurt."""

import socket
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from clipx.doctor.findings import Finding, ok, problem, warning

_NAMED = ("torch", "torchvision", "transformers", "timm", "accelerate")  # in the line that says that all is well
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

# Variable, the values that hurt (none: any), what they do and the mend.
_SLOW = (
    ("CUDA_LAUNCH_BLOCKING", ("1",), "every kernel waits for the one before; unset it, it is for debugging"),
    ("PYTORCH_NO_CUDA_MEMORY_CACHING", (), "every allocation asks the driver; unset it, it is for debugging"),
    ("TORCH_DISTRIBUTED_DEBUG", ("INFO", "DETAIL"), "collectives are checked each time; unset it once a hang is found"),
    ("NCCL_DEBUG", ("INFO", "TRACE"), "every rank writes pages of log; WARN is enough for a long run"),
    ("NCCL_P2P_DISABLE", ("1",), "GPUs of a machine talk through host memory; unset it unless NCCL hangs without"),
    ("NCCL_SHM_DISABLE", ("1",), "processes of a machine talk through sockets; unset it, and enlarge /dev/shm"),
    ("NCCL_IB_DISABLE", ("1",), "InfiniBand and RoCE are not used; unset it unless NCCL hangs without"),
    ("NCCL_BLOCKING_WAIT", ("1",), "every collective holds up the host; unset it"),
    ("TORCH_NCCL_BLOCKING_WAIT", ("1",), "every collective holds up the host; unset it"),
    ("TORCH_NCCL_ASYNC_ERROR_HANDLING", ("0",), "when a rank dies the others wait for ever; unset it"),
)
_INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


@dataclass(frozen=True)
class Package:
    """A library that clipx needs."""

    name: str
    needed: str
    """Versions, as in `>=2.11`; empty for any."""
    found: str | None
    """None where it is not installed."""


def needed_packages() -> list[Package]:
    """Python and what clipx depends on, with what is installed here; none where clipx itself is not installed."""
    try:
        wanted, python = requires("clipx") or [], metadata("clipx")["Requires-Python"]
    except PackageNotFoundError:
        return []
    needed = [one for one in map(Requirement, wanted) if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [
        Package("Python", python, ".".join(map(str, sys.version_info[:3]))),
        *(Package(one.name, str(one.specifier), _installed(one.name)) for one in needed),
    ]


def judge_packages(packages: Sequence[Package]) -> list[Finding]:
    """A line for each that is missing or too old; else one for all."""
    if not packages:
        return [warning("versions", "clipx runs from a folder: what it needs is not known", "pip install -e FOLDER")]
    findings = []
    for package in packages:
        mend = "use a newer Python" if package.name == "Python" else f"pip install '{package.name}{package.needed}'"
        if package.found is None:
            findings.append(problem(package.name, f"not installed, {package.needed or 'any version'} needed", mend))
        elif not SpecifierSet(package.needed).contains(package.found, prereleases=True):
            findings.append(problem(package.name, f"{package.found}, {package.needed} needed", mend))
    if findings:
        return findings
    found = {package.name: package.found for package in packages}
    named = ", ".join(f"{name} {found[name]}" for name in _NAMED if name in found)
    return [ok("versions", f"Python {found.get('Python', '?')}, {named}, {len(packages)} requirements met")]


def judge_environment(
    env: Mapping[str, str], *, interfaces: Collection[str], ranks_here: int, cores: int
) -> list[Finding]:
    """A line for each variable that hurts; else one for all.

    Args:
        env: the environment as the launcher made it.
        interfaces: names of this machine's network interfaces.
        ranks_here: ranks on this machine.
        cores: on which they run together.
    """
    findings = [
        warning(name, f"set to {env[name]}", advice)
        for name, values, advice in _SLOW
        if name in env and (not values or env[name].upper() in values)
    ]
    findings += [finding for name in _INTERFACES if (finding := _judge_interface(name, env, interfaces))]
    if threads := _judge_threads(env.get("OMP_NUM_THREADS"), ranks_here=ranks_here, cores=cores):
        findings.append(threads)
    if "WORLD_SIZE" in env and (missing := [name for name in _LAUNCHER if name not in env]):
        findings.append(
            problem(
                "WORLD_SIZE",
                f"WORLD_SIZE={env['WORLD_SIZE']} without {', '.join(missing)}",
                "left over from another job, or a launcher that does not say all: unset WORLD_SIZE, "
                "or start with torchrun, accelerate launch or srun",
            )
        )
    return findings or [ok("environment", "no variable that slows down or breaks a run")]


def judge_launch(env: Mapping[str, str], *, now: float) -> Finding:
    """Who started this process, and what clipx takes from it.

    Args:
        env: the environment as the launcher made it.
        now: seconds since 1970, against which a time limit is counted.
    """
    size = f"{env.get('WORLD_SIZE', '1')} ranks, {env.get('LOCAL_WORLD_SIZE', '?')} on this machine"
    if "TORCHELASTIC_RUN_ID" in env:
        return ok("launcher", f"torchrun: {size}{_beneath(env)}")
    if "SLURM_JOB_ID" in env and "RANK" not in env:
        return _judge_slurm(env, now)
    if "RANK" in env:
        return ok("launcher", f"RANK and WORLD_SIZE: {size}{_beneath(env)}")
    return ok("launcher", f"none, one process{_beneath(env)}")


def look_at_launch(env: Mapping[str, str]) -> Finding:
    """As `judge_launch`, now."""
    return judge_launch(env, now=time.time())


def network_interfaces() -> list[str]:
    """Names of this machine's network interfaces."""
    return [name for _, name in socket.if_nameindex()]


def _judge_slurm(env: Mapping[str, str], now: float) -> Finding:
    tasks, job = int(env.get("SLURM_NTASKS", "1")), f"Slurm job {env['SLURM_JOB_ID']}"
    if tasks > 1 and "SLURM_STEP_ID" not in env:
        return problem(
            "launcher",
            f"{job} has {tasks} tasks, and this is none of them but the batch script",
            "put srun before the command, or the one process waits for ranks that nobody starts",
        )
    where = f"{env.get('SLURM_NNODES', '1')} nodes, {tasks} tasks"
    left = ""
    if (ends := env.get("SLURM_JOB_END_TIME", "")).isdigit():
        left = f"; {max(0.0, int(ends) - now) / 60:,.0f} minutes left"
    return ok("launcher", f"{job}: {where}; ranks from SLURM_PROCID{left}")


def _beneath(env: Mapping[str, str]) -> str:
    """The scheduler beneath the launcher."""
    if "SLURM_JOB_ID" in env:
        return f", in Slurm job {env['SLURM_JOB_ID']}"
    return ", in Kubernetes" if "KUBERNETES_SERVICE_HOST" in env else ""


def _judge_interface(name: str, env: Mapping[str, str], interfaces: Collection[str]) -> Finding | None:
    """A variable that names interfaces of which this machine has none; `^` excludes, `=` asks for the whole name."""
    value = env.get(name, "")
    if not value or value.startswith("^"):
        return None
    wanted = [part.partition(":")[0] for part in value.removeprefix("=").split(",")]
    exact = value.startswith("=") or name.startswith("GLOO")
    if any(has == part or (not exact and has.startswith(part)) for part in wanted for has in interfaces):
        return None
    return problem(
        name, f"{name}={value}, and this machine has {', '.join(interfaces)}", "name one of these, or unset it"
    )


def _judge_threads(value: str | None, *, ranks_here: int, cores: int) -> Finding | None:
    """Threads of all ranks of a machine beside its cores."""
    if ranks_here == 1:
        return None
    share = max(1, cores // ranks_here)
    if value is None:
        found = f"unset with {ranks_here} ranks on {cores} cores: each would start a thread per core"
        return warning("OMP_NUM_THREADS", found, f"export OMP_NUM_THREADS={share}")
    if value.isdigit() and int(value) > share:
        found = f"{value} x {ranks_here} ranks on {cores} cores"
        return warning("OMP_NUM_THREADS", found, f"export OMP_NUM_THREADS={share}")
    return None


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
