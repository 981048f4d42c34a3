"""The result of a check: one line for a person, with a verdict and a hint. Every check returns these and nothing else.

Measuring and judging are separate functions in this package: a `check_*` that takes plain values is tested with made-up
ones, whatever machine the tests run on.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from clipx.storage.failures import hint as storage_hint

GIB = 1 << 30
MIB = 1 << 20


class Verdict(StrEnum):
    """How bad a finding is, from good to bad."""

    OK = "ok"
    WARNING = "warning"
    """A run works, but slower or less safely than it could."""
    PROBLEM = "problem"
    """A run will fail or go wrong."""


class Measurement(NamedTuple):
    """A measured number by which ranks are compared; more is better."""

    value: float
    comparable: bool = False
    """Whether equal machines measure equal values, so that a rank far below the others is at fault."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    value: str
    """What is there."""
    verdict: Verdict
    hint: str = ""
    """How to fix it; empty if all is well."""
    measurement: Measurement | None = None
    area: str = ""
    """The heading in the report; set by what runs the check."""


def ok(name: str, value: str, measurement: Measurement | None = None) -> Finding:
    """A finding that needs no action."""
    return Finding(name, value, Verdict.OK, measurement=measurement)


def warning(name: str, value: str, hint: str, measurement: Measurement | None = None) -> Finding:
    """A finding with which a run works, but slower or less safely than it could."""
    return Finding(name, value, Verdict.WARNING, hint, measurement)


def problem(name: str, value: str, hint: str, measurement: Measurement | None = None) -> Finding:
    """A finding with which a run will fail or go wrong."""
    return Finding(name, value, Verdict.PROBLEM, hint, measurement)


def failed(name: str, error: OSError, *, place: object = "") -> Finding:
    """A problem with a file, folder or address that raised this error, and the hint for it."""
    text = error.strerror or " ".join(str(error).split())
    return problem(name, f"{place}: {text}" if place else text, storage_hint(error))


def worst(findings: Iterable[Finding]) -> Verdict:
    """The worst verdict of the findings; ok if there are none."""
    return max((finding.verdict for finding in findings), key=list(Verdict).index, default=Verdict.OK)


def rounded(value: float, digits: int = 3) -> str:
    """A number with this many significant digits, written out: 1,230 and not 1.23e+03."""
    return f"{float(f'{value:.{digits}g}'):,.10g}"


def num_bytes(count: float) -> str:
    """A number of bytes for a person: 1.5 GiB, 64 MiB."""
    return f"{rounded(count / GIB)} GiB" if count >= GIB else f"{rounded(count / MIB)} MiB"


def speed(bytes_per_s: float) -> str:
    """Bytes per second for a person, in powers of ten as networks and disks are sold: 9.5 GB/s, 120 MB/s."""
    return f"{rounded(bytes_per_s / 1e9)} GB/s" if bytes_per_s >= 1e9 else f"{rounded(bytes_per_s / 1e6)} MB/s"
