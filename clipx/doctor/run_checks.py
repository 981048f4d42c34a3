"""All checks, each with a time limit: on this rank, then between ranks, then as one list on rank 0.

A check that raises, or does not end, becomes a line of the report.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from clipx.config.job import TrackConfig
from clipx.config.schema import JobConfig
from clipx.doctor import gpus, machine, ranks, software, storage
from clipx.doctor.compare import compare_ranks, merge, own_environment
from clipx.doctor.finding import Finding, Verdict, failed, problem, warning
from clipx.doctor.process_groups import ProcessGroups
from clipx.doctor.timeouts import HungError, Worker
from clipx.errors import ClipxError, InputError
from clipx.host import own_cores, own_memory, share_of_cores
from clipx.storage.files import is_local

AREAS = ("software", "machine", "GPUs", "ranks", "data", "storage", "trackers")
"""In the order of the report."""
_RANKS_S, _GATHER_S = 120.0, 180.0


class Check(NamedTuple):
    """One thing to check."""

    area: str
    name: str
    run: Callable[[], Finding | Sequence[Finding]]
    timeout_s: float = 15.0


@dataclass
class Report:
    """The result of all checks."""

    findings: list[Finding]
    hosts: list[str]
    """Host name of each rank."""
    is_main: bool
    """Whether this rank prints the report."""
    hung: bool
    """Whether a thread hangs, for which the process would wait at its end."""


@dataclass
class Runner:
    """Runs checks one after the other on a thread that may hang; the next check then gets a new thread."""

    announce: Callable[[str], None]
    """Called with the name of each check."""
    hung: bool = False
    _worker: Worker = field(default_factory=Worker)

    def run(self, check: Check) -> list[Finding]:
        """The findings of the check, or a line that says why there are none."""
        self.announce(check.name)
        try:
            result = self._worker.call(check.run, check.timeout_s)
        except HungError as error:
            self.hung, self._worker = True, Worker()
            hint = "what it checks hangs: another rank, a network file system, a driver, a server"
            result = problem(check.name, str(error), hint)
        except Exception as error:
            result = _failure(check, error)
        return [replace(finding, area=check.area) for finding in ([result] if isinstance(result, Finding) else result)]


def run_checks(config: JobConfig | None, *, folder: Path, announce: Callable[[str], None]) -> Report:
    """Checks everything; without a config also the speed of `folder`. `announce` gets each check's name before it."""
    environment, groups, runner = dict(os.environ), ProcessGroups(), Runner(announce)
    announce("other ranks")
    lost = _join(groups, environment)
    findings = []
    for check in _local_checks(config, folder, environment, groups=groups):
        findings += runner.run(check)
    if groups.group is not None:  # after the check of free GPU memory, for NCCL takes some of it
        findings += _check_between_ranks(config, groups, runner)
    if lost is not None:
        is_main = environment.get("RANK", environment.get("SLURM_PROCID", "0")) == "0"
        return Report(_in_order([*findings, lost]), [], is_main, hung=True)
    findings = _merge_ranks(findings, config, groups, runner)
    groups.leave()
    return Report(_in_order(findings), list(groups.hosts), groups.rank == 0, hung=runner.hung or groups.worker.hung)


def _join(groups: ProcessGroups, environment: Mapping[str, str]) -> Finding | None:
    """Connects to the other ranks; returns the problem if that fails."""
    if software.check_launcher(environment).verdict is Verdict.PROBLEM:
        return None  # its line says that the others were not started
    try:
        groups.join()
    except InputError as error:  # its variables do not fit together
        return replace(problem("ranks", str(error), "`env | grep -E 'RANK|WORLD|MASTER'` shows them"), area="ranks")
    except Exception as error:
        names = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")
        variables = ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in names)
        hint = (
            "start all of them; each must reach that address and port (firewall, wrong network interface: "
            "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the right one)"
        )
        return replace(problem("ranks", f"not all are here: {_one_line(error)} ({variables})", hint), area="ranks")
    return None


def _local_checks(
    config: JobConfig | None, folder: Path, environment: Mapping[str, str], *, groups: ProcessGroups
) -> list[Check]:
    """The checks of this rank alone; what a machine has once is checked by its first rank."""
    ranks_here, num_cores = groups.ranks_here, len(own_cores().numbers)
    check_variables = partial(software.check_variables, environment, ranks_here=ranks_here, cores=num_cores)
    checks = [
        Check("software", "versions", lambda: software.check_packages(software.needed_packages())),
        Check("software", "namesake", software.check_namesake),
        Check("software", "environment", check_variables),
        Check("software", "launcher", partial(software.check_launcher, environment)),
        Check("machine", "cores", partial(_check_cores, ranks_here)),
        Check("GPUs", "GPUs", partial(gpus.check_available, ranks_here=ranks_here)),
        Check("data", "decoding", partial(machine.check_decoding, config)),
    ]
    if torch.cuda.is_available():
        checks.append(Check("GPUs", "GPU", partial(_check_gpus, groups), timeout_s=60))
    if groups.is_first_here:
        checks += [
            Check("machine", "memory", lambda: machine.check_memory(own_memory(), ranks_here=ranks_here)),
            Check("machine", "/dev/shm", machine.check_shared_memory),
        ]
        if config is None:
            checks.append(Check("storage", "write", partial(storage.check_folder, folder), timeout_s=60))
        else:
            checks.append(Check("storage", "read", partial(storage.check_shards, config), timeout_s=120))
            checks.append(Check("storage", "write run_dir", partial(storage.check_run_folders, config), timeout_s=120))
    if groups.rank == 0:
        mode = (TrackConfig() if config is None else config.track).wandb
        checks.append(Check("trackers", "wandb", partial(software.check_wandb, mode)))
    return checks


def _check_between_ranks(config: JobConfig | None, groups: ProcessGroups, runner: Runner) -> list[Finding]:
    """What all ranks measure together; the findings are those of rank 0, the other ranks have none."""
    group, gloo, device, hosts = groups.group, groups.gloo, groups.device, groups.hosts
    assert group is not None
    assert gloo is not None

    def measure() -> list[Finding]:
        groups.wait_for_all(_GATHER_S)
        bandwidth = ranks.measure_bandwidth(group, device, gloo=gloo)
        one_machine = len(set(hosts)) == 1
        findings = [ranks.check_bandwidth(bandwidth, device.type, num_ranks=len(hosts), one_machine=one_machine)]
        if config is not None and is_local(folder := config.checkpoint.folder or config.run_dir):
            findings.append(ranks.check_sharing(ranks.measure_sharing(Path(folder), gloo), hosts, folder))
        return findings if groups.rank == 0 else []

    timeout_s = _GATHER_S + _RANKS_S
    run = partial(groups.worker.call, measure, timeout_s)  # on the thread that joined the groups
    return runner.run(Check("ranks", "between ranks", run, timeout_s=2 * timeout_s))


def _merge_ranks(
    findings: list[Finding], config: JobConfig | None, groups: ProcessGroups, runner: Runner
) -> list[Finding]:
    """The findings of all ranks as one list, with a line about whether they agree; the same on all ranks."""
    if groups.group is None:
        return findings
    per_rank: list[list[Finding]] = []

    def gather() -> Finding:
        own = own_environment(software.needed_packages(), config)
        results = groups.gather((findings, own), timeout_s=_GATHER_S)
        per_rank.extend(of_rank for of_rank, _ in results)
        return compare_ranks([environment for _, environment in results], groups.names)

    agreement = runner.run(Check("ranks", "findings of all ranks", gather, timeout_s=3 * _GATHER_S))
    if not per_rank:  # the others did not come: these are this rank's alone
        return [*agreement, *findings]
    return [*agreement, *merge(per_rank, groups.names)]


def _check_cores(ranks_here: int) -> Finding:
    own = own_cores()
    share = share_of_cores(own, [own] * ranks_here)
    return machine.check_cores(own, ranks_here=ranks_here, share=share, on_gpu=torch.cuda.is_available())


def _check_gpus(groups: ProcessGroups) -> list[Finding]:
    """The GPU of this rank; for a process alone all visible GPUs, as one list."""
    devices = [groups.device]
    if groups.group is None:
        devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return merge([gpus.check_gpu(device) for device in devices], [f"GPU {index}" for index in range(len(devices))])


def _failure(check: Check, error: Exception) -> Finding:
    """A check that raised an error, as a line."""
    if isinstance(error, ClipxError):
        return problem(check.name, _one_line(error), "a run would end with the same message")
    if isinstance(error, OSError):
        return failed(check.name, error)
    value = f"{type(error).__name__}: {_one_line(error)}"
    if check.area == "ranks":
        return problem(check.name, value, "a rank died or hangs: look for its own message")
    return warning(check.name, f"could not be checked: {value}", "a fault of clipx doctor; please report it")


def _in_order(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: AREAS.index(finding.area))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
