"""What ranks must have in common, and the findings of all of them as one list.

One node with another library, another driver or a stale copy of the code is what goes wrong most, and is seen least.
"""

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median_high
from typing import NamedTuple

import clipx
from clipx.config.load import dump_config
from clipx.config.schema import RunConfig
from clipx.doctor.findings import GIB, Finding, Verdict, ok, problem, rounded, warning
from clipx.doctor.software import Package

# Of what is alike (GPUs of a kind, cores of a kind), 0.8 of the median is no noise, and every step waits for it.
_STRAGGLER = 0.8
_NAMED = 4  # places in a line
_PREFIXES = ("NCCL_", "TORCH_", "GLOO_", "OMP_", "MKL_", "CUDA_", "PYTORCH_", "FI_", "UCX_", "CLIPX_")
_OWN = ("CUDA_VISIBLE_DEVICES", "CLIPX_CACHE")  # which may well differ
_SAME_SOFTWARE = "give all machines one image or environment: ranks that differ compute different things, or hang"
_SAME_HARDWARE = "every step waits for the slowest: leave these out, or ask the scheduler for one kind"
_SAME_VARIABLES = "export them in the launch file, so that every rank has them"


class Place(NamedTuple):
    """Where findings come from."""

    name: str
    """`rank 3`, `GPU 2`."""
    host: str
    """The machine; empty where there is one only."""


@dataclass(frozen=True)
class Identity:
    """What should be equal on all ranks, by name."""

    software: Mapping[str, str]
    hardware: Mapping[str, str]
    variables: Mapping[str, str]
    gpu_uuid: str | None
    """Which no other rank should have; None on a CPU."""


def own_identity(
    packages: Sequence[Package],
    *,
    config: RunConfig | None,
    memory: int,
    cores: int,
    gpu: Mapping[str, str],
    uuid: str | None,
) -> Identity:
    """Of this rank.

    Args:
        packages: with their versions.
        config: as this rank read it.
        memory: bytes of the machine.
        cores: of this rank.
        gpu: what there is to say about its GPU.
        uuid: of that.
    """
    software = {package.name: package.found or "none" for package in packages} | {"clipx's code": _code_digest()}
    if config is not None:
        software["config"] = hashlib.sha256(dump_config(config).encode()).hexdigest()[:8]
    hardware = {
        "memory": f"{rounded(memory / GIB, 2)} GiB",
        "cores": str(cores),
        "processor": platform.machine(),
        **gpu,
    }
    variables = {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES) and name not in _OWN}
    return Identity(software, hardware, variables, uuid)


def judge_agreement(identities: Sequence[Identity], places: Sequence[Place]) -> list[Finding]:
    """A line for each thing in which ranks differ; else one for all."""
    findings: list[Finding] = []
    for kind, verdict, advice in (
        ("software", problem, _SAME_SOFTWARE),
        ("hardware", warning, _SAME_HARDWARE),
        ("variables", warning, _SAME_VARIABLES),
    ):
        of_rank: list[Mapping[str, str]] = [getattr(identity, kind) for identity in identities]
        for name in sorted({name for values in of_rank for name in values}):
            if difference := _difference([values.get(name, "not set") for values in of_rank], places):
                findings.append(verdict(f"{name} differs", difference, advice))
    findings += _shared_gpus(identities, places)
    num_things = sum(len(values) for values in (identities[0].software, identities[0].hardware))
    hosts = {place.host for place in places}
    alike = f"{len(places)} ranks on {len(hosts)} {'machine' if len(hosts) == 1 else 'machines'} are alike"
    what = "versions, clipx's code, config, cores, memory, GPU, environment variables"
    return findings or [ok("agreement", f"{alike} in {num_things} things: {what}")]


def merge(of_place: Sequence[Sequence[Finding]], places: Sequence[Place]) -> list[Finding]:
    """One line for each thing that was looked at anywhere, in the order of the first place that has it.

    Of a measured figure the least counts, and one far below what is usual is a warning of its own.
    """
    grouped: dict[tuple[str, str], list[tuple[int, Finding]]] = {}
    for number, findings in enumerate(of_place):
        for finding in findings:
            grouped.setdefault((finding.area, finding.name), []).append((number, finding))
    return [_merged(found, places) for found in grouped.values()]


def where(numbers: Sequence[int], places: Sequence[Place]) -> str:
    """The places in a few words: whole machines by their name."""
    of_host: dict[str, list[int]] = {}
    for number, place in enumerate(places):
        of_host.setdefault(place.host, []).append(number)
    names, rest = [], set(numbers)
    for host, members in of_host.items():
        if host and len(members) > 1 and rest.issuperset(members):
            names.append(host)
            rest -= set(members)
    names += [f"{places[i].name} on {places[i].host}" if places[i].host else places[i].name for i in sorted(rest)]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _shared_gpus(identities: Sequence[Identity], places: Sequence[Place]) -> list[Finding]:
    """A line for each GPU on which several ranks compute."""
    users: dict[str, list[int]] = {}
    for number, identity in enumerate(identities):
        if identity.gpu_uuid is not None:
            users.setdefault(identity.gpu_uuid, []).append(number)
    advice = "start one rank per GPU; srun: as many --ntasks-per-node as --gpus-per-node"
    return [
        problem("GPU shared", f"{', '.join(f'{places[i].name} on {places[i].host}' for i in ranks)}", advice)
        for ranks in users.values()
        if len(ranks) > 1
    ]


def _merged(found: Sequence[tuple[int, Finding]], places: Sequence[Place]) -> Finding:
    worst = max((finding.verdict for _, finding in found), key=lambda verdict: verdict.severity)
    if len(found) == 1:
        return found[0][1]
    if all(finding.figure is not None for _, finding in found):
        return _least(found, places)
    texts: dict[tuple[str, Verdict], list[int]] = {}
    for number, finding in found:
        texts.setdefault((finding.found, finding.verdict), []).append(number)
    if len(texts) == 1:
        return found[0][1]
    ordered = sorted(texts.items(), key=lambda item: (-item[0][1].severity, len(item[1])))
    said = [f"{where(numbers, places)}: {text}" for (text, _), numbers in ordered]
    more = f"; and {len(said) - _NAMED} more" if len(said) > _NAMED else ""
    first = next(finding for _, finding in found if finding.verdict is worst)
    return replace(first, found="; ".join(said[:_NAMED]) + more)


def _least(found: Sequence[tuple[int, Finding]], places: Sequence[Place]) -> Finding:
    """The finding with the worst verdict and, of those, the least figure."""
    values = {number: finding.figure.value for number, finding in found if finding.figure is not None}
    number, least = min(found, key=lambda item: (-item[1].verdict.severity, values[item[0]]))
    usual = median_high(values.values())  # of two the better
    text = f"{least.found} ({where([number], places)}; the least of {len(found)})"
    assert least.figure is not None
    if least.verdict is Verdict.OK and least.figure.alike and values[number] < _STRAGGLER * usual:
        text = f"{least.found} ({where([number], places)}: {values[number] / usual:.0%} of what is usual here)"
        return replace(
            least,
            found=text,
            verdict=Verdict.WARNING,
            advice="every step waits for the slowest: look what else runs there, or leave it out",
        )
    return replace(least, found=text)


def _difference(values: Sequence[str], places: Sequence[Place]) -> str:
    """Which places have which value, the fewest first; empty where all have one."""
    of_value: dict[str, list[int]] = {}
    for number, value in enumerate(values):
        of_value.setdefault(value, []).append(number)
    if len(of_value) == 1:
        return ""
    ordered = sorted(of_value.items(), key=lambda item: len(item[1]))
    parts = [f"{value} on {where(numbers, places)}" for value, numbers in ordered[:_NAMED]]
    more = f"; and {len(ordered) - _NAMED} other values" if len(ordered) > _NAMED else ""
    return "; ".join(parts) + more


def _code_digest() -> str:
    """Of every file of clipx that is imported: a copy that was not updated has the same version."""
    folder = Path(clipx.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]
