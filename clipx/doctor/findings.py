"""What a check found: one line for a person, with a verdict and a mend. Every check returns these and nothing else.

Measuring and judging are two functions everywhere in this package: `judge_*` takes plain values and is tested with
made-up ones, whatever the machine of the test is like.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

GIB = 1 << 30
MIB = 1 << 20


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """A run works, slower or less safely than it could."""
    PROBLEM = "problem"
    """A run will fail, or go wrong."""

    @property
    def severity(self) -> int:
        """0 to 2."""
        return list(Verdict).index(self)


class Figure(NamedTuple):
    """A measured value by which ranks are compared; more is better."""

    value: float
    text: str
    """The value with its unit."""
    alike: bool = False
    """Whether equal machines give equal values, so that a rank far below the others is at fault."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    found: str
    verdict: Verdict
    advice: str = ""
    """What to do; empty where nothing is to be done."""
    figure: Figure | None = None
    area: str = ""
    """Heading under which it stands; given by who runs the check."""


def ok(name: str, found: str, figure: Figure | None = None) -> Finding:
    """As it should be."""
    return Finding(name, found, Verdict.OK, figure=figure)


def warning(name: str, found: str, advice: str, figure: Figure | None = None) -> Finding:
    """A run works, slower or less safely than it could."""
    return Finding(name, found, Verdict.WARNING, advice, figure)


def problem(name: str, found: str, advice: str, figure: Figure | None = None) -> Finding:
    """A run will fail, or go wrong."""
    return Finding(name, found, Verdict.PROBLEM, advice, figure)


def rounded(value: float, digits: int = 3) -> str:
    """So many significant digits, written out: 1,230 and not 1.23e+03."""
    return f"{float(f'{value:.{digits}g}'):,.10g}"


def num_bytes(count: float) -> str:
    """Bytes for a person: 1.5 GiB, 64 MiB."""
    return f"{rounded(count / GIB)} GiB" if count >= GIB else f"{rounded(count / MIB)} MiB"


def speed(bytes_per_s: float) -> str:
    """Bytes per second for a person, in powers of ten as networks and disks are sold: 9.5 GB/s, 120 MB/s."""
    return f"{rounded(bytes_per_s / 1e9)} GB/s" if bytes_per_s >= 1e9 else f"{rounded(bytes_per_s / 1e6)} MB/s"
