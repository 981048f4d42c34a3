"""All checks, each in bounded time, on this rank; then between ranks; then as one list on rank 0.

A check that raises, or does not end, becomes a line of the report.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from clipx.config.geometry import resolve_geometry
from clipx.config.schema import RunConfig, TrackConfig
from clipx.data.workers import own_cores, share_of_cores
from clipx.doctor import data, gpus, machine, ranks, run_folder, software, trackers
from clipx.doctor.agreement import Identity, Place, judge_agreement, merge, own_identity
from clipx.doctor.bounded import HungError, Worker
from clipx.doctor.findings import Finding, Verdict, ok, problem, warning
from clipx.doctor.meeting import Meeting, expected_rank, meet
from clipx.errors import ClipxError
from clipx.storage.failures import hint
from clipx.storage.files import is_local

AREAS = ("software", "machine", "GPUs", "ranks", "data", "storage", "trackers")
"""In the order of the report."""
_RANKS_S, _GATHER_S = 120.0, 180.0
_BYTES_PER_GRADIENT = 4  # float32

T = TypeVar("T")
Look = Callable[[], Finding | Sequence[Finding]]


class Check(NamedTuple):
    """Something to look at."""

    area: str
    name: str
    look: Look
    timeout_s: float = 15.0


class _Seen(NamedTuple):
    """What a rank tells the others."""

    findings: list[Finding]
    identity: Identity | None


@dataclass
class Report:
    """What was found."""

    findings: list[Finding]
    hosts: list[str]
    """Of each rank."""
    is_main: bool
    """Whether this rank prints it."""
    hung: bool
    """Whether a thread is stuck that the process would wait for at its end."""


@dataclass
class Examiner:
    """Runs checks one after the other on a thread that may get stuck; the next check gets a new one."""

    announce: Callable[[str], None]
    """Told what is looked at."""
    hung: bool = False
    _worker: Worker = field(default_factory=Worker)

    def look(self, check: Check) -> list[Finding]:
        """The check's findings, or a line that says why there are none."""
        self.announce(check.name)
        try:
            found = self._worker.call(check.look, check.timeout_s)
        except HungError as error:
            self.hung, self._worker = True, Worker()
            advice = "what it looked at hangs: another rank, a network file system, a driver, a server"
            found = problem(check.name, str(error), advice)
        except ClipxError as error:
            found = problem(check.name, _one_line(error), "a run would end with the same words")
        except OSError as error:
            found = problem(check.name, _one_line(error), hint(error))
        except Exception as error:
            said = f"{type(error).__name__}: {_one_line(error)}"
            if check.area == "ranks":
                found = problem(check.name, said, "a rank died or hangs: look for its own words")
            else:
                found = warning(check.name, f"could not be told: {said}", "a fault of clipx doctor; please report it")
        return [replace(finding, area=check.area) for finding in ([found] if isinstance(found, Finding) else found)]


def examine(config: RunConfig | None, *, folder: Path, announce: Callable[[str], None]) -> Report:
    """Looks at everything.

    Args:
        config: of a run whose data, folder and trackers are looked at too.
        folder: whose speed is measured where no config is given.
        announce: told what is looked at.
    """
    environment, meeting, examiner = dict(os.environ), Meeting(), Examiner(announce)
    announce("other ranks")
    lost = _join(meeting, environment)
    parameters, findings = _count_parameters(config, examiner)
    for check in _checks(config, folder, environment, meeting=meeting, parameters=parameters):
        findings += examiner.look(check)
    if meeting.group is not None:  # after the memory of GPUs was looked at, of which NCCL takes some
        findings += _between_ranks(config, meeting, examiner, parameters=parameters)
    if lost is not None:
        return Report(_in_order([*findings, lost]), [], expected_rank() == 0, hung=True)
    findings = _of_all(findings, config, meeting, examiner)
    meeting.leave()
    hosts = [place.host for place in meeting.places]
    return Report(_in_order(findings), hosts, meeting.rank == 0, hung=examiner.hung or meeting.worker.hung)


def _join(meeting: Meeting, environment: Mapping[str, str]) -> Finding | None:
    """Meets the other ranks; what a person is told where that fails."""
    if software.look_at_launch(environment).verdict is Verdict.PROBLEM:
        return None  # that line says why nobody would come
    try:
        meeting.join()
    except Exception as error:
        found = f"not all are here: {_one_line(error)} ({ranks.launcher_variables(os.environ)})"
        advice = "start all of them; each must reach that address and port (firewall, wrong network interface)"
        return replace(problem("ranks", found, advice), area="ranks")
    return None


def _checks(
    config: RunConfig | None, folder: Path, environment: Mapping[str, str], *, meeting: Meeting, parameters: int | None
) -> list[Check]:
    """What this rank looks at alone; what a machine has once only its first rank does."""
    here = meeting.ranks_here
    checks = [
        Check("software", "versions", lambda: software.judge_packages(software.needed_packages())),
        Check("software", "environment", partial(_look_at_environment, environment, here)),
        Check("software", "launcher", partial(software.look_at_launch, environment)),
        Check("machine", "cores", partial(_look_at_cores, meeting)),
        Check("GPUs", "GPUs", partial(_look_at_build, here)),
        Check("data", "decoding", partial(data.look_at_decoding, config)),
    ]
    if torch.cuda.is_available():
        checks.append(Check("GPUs", "GPU", partial(_look_at_gpus, config, meeting), timeout_s=60))
    if meeting.is_first_here:
        checks += [
            Check("machine", "memory", lambda: machine.judge_memory(machine.own_memory(), ranks_here=here)),
            Check("machine", "/dev/shm", machine.look_at_shared_memory),
            Check("machine", "limits", partial(_look_at_limits, here)),
            Check("machine", "InfiniBand", machine.look_at_infiniband),
            Check("machine", "host name", machine.look_at_host_name),
        ]
        if config is None:
            checks += [
                Check("storage", "read", partial(data.look_at_folder, folder), timeout_s=30),
                Check("storage", "write", partial(run_folder.look_at_folder, folder), timeout_s=30),
            ]
        else:
            look_at_run = partial(run_folder.look_at_run_folder, config, parameters=parameters)
            checks += [
                Check("storage", "read", partial(data.look_at_shards, config), timeout_s=120),
                Check("storage", "write run_dir", look_at_run, timeout_s=60),
            ]
    if meeting.rank == 0:
        mode = (TrackConfig() if config is None else config.track).wandb
        checks.append(Check("trackers", "wandb", partial(trackers.look_at_wandb, mode)))
    return checks


def _between_ranks(
    config: RunConfig | None, meeting: Meeting, examiner: Examiner, *, parameters: int | None
) -> list[Finding]:
    """What all ranks measure together; all of them have the result, rank 0 tells it."""
    assert meeting.group is not None
    assert meeting.side is not None
    group, side, device = meeting.group, meeting.side, meeting.device
    hosts = [place.host for place in meeting.places]

    def look() -> list[Finding]:
        meet(side, _GATHER_S)
        speeds = ranks.measure_ranks(group, device, side=side)
        gradient = None if parameters is None else _BYTES_PER_GRADIENT * parameters
        one_machine = len(set(hosts)) == 1
        findings = [
            ranks.judge_latency(speeds.latency_s, device.type),
            ranks.judge_bandwidth(
                speeds.bandwidth, device.type, size=len(hosts), one_machine=one_machine, gradient=gradient
            ),
            ranks.judge_links(speeds.links, hosts),
            ranks.judge_clocks(speeds.clock_offsets_s, hosts),
        ]
        if config is not None:
            shared = config.checkpoint.folder or config.run_dir
            if is_local(shared):
                findings.append(ranks.judge_sharing(ranks.measure_sharing(Path(shared), side), hosts, shared))
        return findings if meeting.rank == 0 else []

    most_s = _GATHER_S + _RANKS_S
    measured = examiner.look(
        Check("ranks", "between ranks", lambda: meeting.worker.call(look, most_s), timeout_s=2 * most_s)
    )
    if config is not None and meeting.rank == 0:
        measured += examiner.look(Check("ranks", "global batch", partial(_judge_batch, config, len(hosts))))
    return measured


def _of_all(findings: list[Finding], config: RunConfig | None, meeting: Meeting, examiner: Examiner) -> list[Finding]:
    """The findings of all ranks as one list; the same on all of them."""
    if meeting.group is None:
        return findings
    own: list[Identity] = []
    seen: list[_Seen] = []

    def identify() -> list[Finding]:
        own.append(_own_identity(config, meeting))
        return []

    def gather() -> list[Finding]:
        mine = _Seen(findings, own[0] if own else None)
        seen.extend(meeting.gather(mine, timeout_s=_GATHER_S))
        known = [(of, place) for (_, of), place in zip(seen, meeting.places, strict=True) if of is not None]
        return judge_agreement([of for of, _ in known], [place for _, place in known])

    findings = findings + examiner.look(Check("ranks", "what this rank is", identify, timeout_s=30))
    together = examiner.look(Check("ranks", "findings of all ranks", gather, timeout_s=3 * _GATHER_S))
    return [*together, *merge([rank.findings for rank in seen] or [findings], meeting.places)]


def _own_identity(config: RunConfig | None, meeting: Meeting) -> Identity:
    gpu: dict[str, str] = {}
    uuid = None
    if meeting.device.type == "cuda":
        own, driver = gpus.own_gpu(meeting.device), gpus.ask_driver()
        gpu, uuid = {"GPU": own.name, "GPU memory": str(own.memory)}, own.uuid
        if uuid in driver:
            gpu["driver"] = driver[uuid].driver
    return own_identity(
        software.needed_packages(),
        config=config,
        memory=machine.own_memory().total,
        cores=len(own_cores().numbers),
        gpu=gpu,
        uuid=uuid,
    )


def _count_parameters(config: RunConfig | None, examiner: Examiner) -> tuple[int | None, list[Finding]]:
    """Of the config's model; a line where it cannot be built."""
    counted: list[int] = []

    def look() -> list[Finding]:
        if config is not None:
            counted.append(run_folder.num_parameters(config))
        return []

    findings = examiner.look(Check("data", "model", look, timeout_s=60))
    return (counted[0] if counted else None), findings


def _look_at_environment(environment: Mapping[str, str], ranks_here: int) -> list[Finding]:
    interfaces, cores = software.network_interfaces(), len(own_cores().numbers)
    return software.judge_environment(environment, interfaces=interfaces, ranks_here=ranks_here, cores=cores)


def _look_at_cores(meeting: Meeting) -> Finding:
    own, here = own_cores(), meeting.ranks_here
    share = share_of_cores(own, [own] * here)
    return machine.judge_cores(own, ranks_here=here, share=share, on_gpu=torch.cuda.is_available())


def _look_at_limits(ranks_here: int) -> list[Finding]:
    limits = machine.own_limits()
    return [machine.judge_open_files(limits.open_files), machine.judge_tasks(limits.tasks, ranks_here=ranks_here)]


def _look_at_build(ranks_here: int) -> Finding:
    build = gpus.own_build()
    return gpus.judge_build(build, num_gpus=torch.cuda.device_count() if build.available else 0, ranks_here=ranks_here)


def _look_at_gpus(config: RunConfig | None, meeting: Meeting) -> list[Finding]:
    """Of a rank its own; alone all that are visible, as one list."""
    precision = None if config is None else config.precision
    alone = meeting.group is None
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if alone else [meeting.device]
    driver = gpus.ask_driver()
    found = [
        gpus.look_at_gpu(device, driver.get(str(torch.cuda.get_device_properties(device).uuid)), precision=precision)
        for device in devices
    ]
    return merge(found, [Place(f"GPU {number}", "") for number in range(len(devices))])


def _judge_batch(config: RunConfig, size: int) -> Finding:
    captions = config.data.captions_per_image
    geometry = resolve_geometry(config.global_batch_size, config.micro_batch_size, size, captions_per_image=captions)
    return ok("global batch", f"{geometry.global_batch_size:,} pairs, {geometry.rank_batch_size:,} a rank")


def _in_order(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: AREAS.index(finding.area))


def is_bad(findings: Sequence[Finding]) -> bool:
    """Whether anything is a problem."""
    return any(finding.verdict is Verdict.PROBLEM for finding in findings)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
