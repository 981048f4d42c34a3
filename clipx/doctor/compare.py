"""One report of all ranks: in what they differ, and their findings as one list.

One node with another library or an old copy of the code is a common fault, and hard to see.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median_high

import clipx
from clipx.config.load import dump_config
from clipx.config.schema import JobConfig
from clipx.doctor.finding import Finding, Measurement, Verdict, ok, problem, worst
from clipx.doctor.software import Package

Environment = Mapping[str, str]
"""What all ranks should have in common: the name of each thing and its value on one rank."""

# Equal GPUs and cores differ by a few percent; below 0.8 of the median it is no noise, and every step waits for it.
_SLOW_RANK = 0.8
_MAX_NAMED = 4  # ranks or values in one line


def own_environment(packages: Sequence[Package], config: JobConfig | None) -> Environment:
    """What this rank should have in common with the others."""
    environment = {package.name: package.installed or "not installed" for package in packages}
    environment["clipx's code"] = _code_digest()
    if config is not None:
        environment["config"] = hashlib.sha256(dump_config(config).encode()).hexdigest()[:8]
    return environment


def compare_ranks(environments: Sequence[Environment], names: Sequence[str]) -> Finding:
    """One line that says whether the ranks agree, and if not: which thing differs on which ranks."""
    things = sorted({thing for environment in environments for thing in environment})
    differences = {}
    for thing in things:
        values = [environment.get(thing, "not there") for environment in environments]
        if len(set(values)) > 1:
            differences[thing] = _difference(values, names)
    if not differences:
        return ok("agreement", f"{len(names)} ranks have the same {len(things)} things: versions, clipx's code, config")
    value = "; ".join(f"{thing}: {difference}" for thing, difference in differences.items())
    hint = "give all machines one image or environment: ranks that differ compute different things, or hang"
    return problem("agreement", value, hint)


def merge(per_source: Sequence[Sequence[Finding]], names: Sequence[str]) -> list[Finding]:
    """One line for each thing that was checked on ranks or GPUs: the worst verdict, and of measurements the lowest."""
    grouped: dict[tuple[str, str], list[tuple[str, Finding]]] = {}
    for name, findings in zip(names, per_source, strict=True):
        for finding in findings:
            grouped.setdefault((finding.area, finding.name), []).append((name, finding))
    return [_merged(members) for members in grouped.values()]


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """The first few items in one text, and the number of the others."""
    more = f" and {len(items) - _MAX_NAMED} more" if len(items) > _MAX_NAMED else ""
    return separator.join(items[:_MAX_NAMED]) + more


def _difference(values: Sequence[str], names: Sequence[str]) -> str:
    """Which ranks have another value than most, and which."""
    usual = Counter(values).most_common(1)[0][0]
    others: dict[str, list[str]] = {}
    for value, name in zip(values, names, strict=True):
        if value != usual:
            others.setdefault(value, []).append(name)
    return f"{listed([f'{value} on {listed(ranks)}' for value, ranks in others.items()])}, {usual} elsewhere"


def _merged(members: Sequence[tuple[str, Finding]]) -> Finding:
    verdict = worst(finding for _, finding in members)
    counting = [(name, finding) for name, finding in members if finding.verdict is verdict]
    first = counting[0][1]
    if len({finding.value for _, finding in members}) == 1:
        return first
    if all(finding.measurement is not None for _, finding in members):
        return _lowest(counting, members)
    by_value: dict[str, list[str]] = {}
    for name, finding in counting:
        by_value.setdefault(finding.value, []).append(name)
    return replace(first, value=listed([f"{listed(who)}: {value}" for value, who in by_value.items()], "; "))


def _lowest(counting: Sequence[tuple[str, Finding]], members: Sequence[tuple[str, Finding]]) -> Finding:
    """The lowest of the measurements that count; a warning if it is far below the usual one of all."""
    name, lowest = min(counting, key=lambda member: _measured(member[1]).value)
    usual = median_high(_measured(finding).value for _, finding in members)  # the better one of two
    value, comparable = _measured(lowest)
    if lowest.verdict is Verdict.OK and comparable and value < _SLOW_RANK * usual:
        text = f"{lowest.value} ({name}: {value / usual:.0%} of what is usual here)"
        hint = "every step waits for the slowest: see what else runs there, or leave it out"
        return replace(lowest, value=text, verdict=Verdict.WARNING, hint=hint)
    return replace(lowest, value=f"{lowest.value} ({name}; the lowest of {len(members)})")


def _measured(finding: Finding) -> Measurement:
    assert finding.measurement is not None
    return finding.measurement


def _code_digest() -> str:
    """A digest of all of clipx's files: a copy that was not updated has the same version."""
    folder = Path(clipx.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]
