"""Versions against what clipx needs, the launcher, environment variables that hurt, and the tracker's server."""

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from clipx.distributed.launchers import idle_slurm_tasks, is_slurm_task
from clipx.doctor.finding import Finding, ok, problem, warning

_DISTRIBUTION = "clipx-train"
_NAMESAKE = "clipx"  # on PyPI: another program, which removes backgrounds, with an import of the same name
_NAMED = ("torch", "torchvision", "transformers", "timm", "accelerate")  # in the line that says that all is well
_WANDB, _CONNECT_S = "https://api.wandb.ai", 5.0

# A variable, the values that hurt, and what they do.
_SLOW = (
    ("CUDA_LAUNCH_BLOCKING", ("1",), "every kernel waits for the one before; unset it, it is for debugging"),
    ("TORCH_DISTRIBUTED_DEBUG", ("INFO", "DETAIL"), "collectives are checked each time; unset it once a hang is found"),
    ("NCCL_DEBUG", ("INFO", "TRACE"), "every rank writes pages of log; WARN is enough for a long run"),
    ("NCCL_P2P_DISABLE", ("1",), "GPUs of a machine talk through host memory; unset it unless NCCL hangs without"),
    ("NCCL_SHM_DISABLE", ("1",), "processes of a machine talk through sockets; unset it, and enlarge /dev/shm"),
    ("NCCL_IB_DISABLE", ("1",), "InfiniBand and RoCE are not used; unset it unless NCCL hangs without"),
    ("TORCH_NCCL_BLOCKING_WAIT", ("1",), "every collective holds up the host; unset it"),
    ("TORCH_NCCL_ASYNC_ERROR_HANDLING", ("0",), "when a rank dies the others wait for ever; unset it"),
)


@dataclass(frozen=True)
class Package:
    """A library that clipx needs."""

    name: str
    needed: str
    """Versions, as in `>=2.11`; empty for any."""
    installed: str | None
    """Its version; None if it is not installed."""


def needed_packages() -> list[Package]:
    """Python and the libraries that clipx needs, with what is installed; empty if clipx itself is not installed."""
    try:
        wanted, python = requires(_DISTRIBUTION) or [], metadata(_DISTRIBUTION)["Requires-Python"]
    except PackageNotFoundError:
        return []
    needed = [one for one in map(Requirement, wanted) if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [
        Package("Python", python, ".".join(map(str, sys.version_info[:3]))),
        *(Package(one.name, str(one.specifier), _installed(one.name)) for one in needed),
    ]


def check_packages(packages: Sequence[Package]) -> list[Finding]:
    """A line for each library that is missing or too old; one line if all fit."""
    if not packages:
        return [warning("versions", "clipx runs from a folder: what it needs is not known", "pip install -e FOLDER")]
    findings = []
    for package in packages:
        hint = "use a newer Python" if package.name == "Python" else f"pip install '{package.name}{package.needed}'"
        if package.installed is None:
            findings.append(problem(package.name, f"not installed, {package.needed or 'any version'} needed", hint))
        elif not SpecifierSet(package.needed).contains(package.installed, prereleases=True):
            findings.append(problem(package.name, f"{package.installed}, {package.needed} needed", hint))
    if findings:
        return findings
    installed = {package.name: package.installed for package in packages}
    named = ", ".join(f"{name} {installed[name]}" for name in _NAMED if name in installed)
    return [ok("versions", f"Python {installed.get('Python', '?')}, {named}, {len(packages)} requirements met")]


def check_namesake() -> list[Finding]:
    """A line if a package is installed whose import has the name of ours."""
    if (found := _installed(_NAMESAKE)) is None:
        return []
    value = f"the package {_NAMESAKE} {found} is installed beside {_DISTRIBUTION}: `import clipx` may be either"
    return [warning("namesake", value, f"pip uninstall {_NAMESAKE}, then install {_DISTRIBUTION} anew")]


def check_variables(env: Mapping[str, str], *, ranks_here: int, cores: int) -> list[Finding]:
    """A line for each environment variable that hurts; one line if none does. The ranks here share the cores."""
    findings = [
        warning(name, f"set to {env[name]}", hint)
        for name, values, hint in _SLOW
        if env.get(name, "").upper() in values
    ]
    share, threads = max(1, cores // ranks_here), env.get("OMP_NUM_THREADS")
    hint = f"export OMP_NUM_THREADS={share}"
    if ranks_here > 1 and threads is None:
        value = f"unset with {ranks_here} ranks on {cores} cores: each would start a thread per core"
        findings.append(warning("OMP_NUM_THREADS", value, hint))
    elif ranks_here > 1 and threads is not None and threads.isdecimal() and int(threads) > share:
        findings.append(warning("OMP_NUM_THREADS", f"{threads} x {ranks_here} ranks on {cores} cores", hint))
    return findings or [ok("environment", "no variable that slows down or breaks a run")]


def check_launcher(env: Mapping[str, str]) -> Finding:
    """The launcher of this process, and whether a Slurm job forgot to start its ranks."""
    if env.get("RANK"):
        launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in env else "RANK and WORLD_SIZE"
        ranks_here = env.get("LOCAL_WORLD_SIZE", "?")
        return ok("launcher", f"{launcher}: {env.get('WORLD_SIZE', '1')} ranks, {ranks_here} on this machine")
    if "SLURM_JOB_ID" not in env:
        return ok("launcher", "none, one process")
    job = f"Slurm job {env['SLURM_JOB_ID']}"
    if tasks := idle_slurm_tasks(env):
        value = f"{job} has {tasks} tasks, and this is none of them but the batch script or a shell"
        return problem("launcher", value, "put srun before the command, or it runs alone")
    if not is_slurm_task(env):
        return ok("launcher", f"{job}: one process")
    nodes = env.get("SLURM_STEP_NUM_NODES") or env.get("SLURM_NNODES", "1")
    return ok("launcher", f"{job}: {nodes} nodes, {env['SLURM_STEP_NUM_TASKS']} tasks; ranks from SLURM_PROCID")


def check_wandb(mode: Literal["offline", "online", "disabled"]) -> Finding:
    """Whether the server of Weights & Biases can be reached, if the config sends metrics there."""
    if mode != "online":
        later = "nothing is needed now; `wandb sync` uploads later" if mode == "offline" else "not used"
        return ok("wandb", f"{mode}: {later}")
    server = os.environ.get("WANDB_BASE_URL", _WANDB)
    try:
        urllib.request.build_opener().open(server, timeout=_CONNECT_S).close()  # uses the environment's proxy
    except urllib.error.HTTPError:
        pass  # an answer all the same
    except OSError as error:
        hint = "open the network or set HTTPS_PROXY, or set track.wandb=offline and `wandb sync` later"
        return problem("wandb", f"online: {server} is not reached ({getattr(error, 'reason', error)})", hint)
    return ok("wandb", f"online: {server} answers")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
