"""The report: a table with colours in a terminal, one plain line per finding elsewhere, JSON on request."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipx import __version__
from clipx.doctor.finding import Finding, Verdict, worst
from clipx.printable import redacted, shown

_STYLES = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "bold red"}


def print_report(findings: Sequence[Finding], file: TextIO, *, seconds: float) -> None:
    """Prints all findings, their count and how long the checks took."""
    console = Console(file=file, highlight=False)
    counts = Counter(finding.verdict for finding in findings)
    summary = ", ".join(_counted(verdict, counts[verdict]) for verdict in reversed(Verdict) if counts[verdict])
    if not console.is_terminal:
        for finding in findings:
            hint = f" -> {finding.hint}" if finding.hint else ""
            print(shown(f"{finding.verdict:<7}  {finding.area:<10}  {finding.name}: {finding.value}{hint}"), file=file)
        print(f"{summary}; {seconds:.0f} s", file=file)
        return
    console.print(_table(findings))
    console.print(f"{summary}; {seconds:.0f} s", style=_STYLES[worst(findings)], markup=False)


def as_json(findings: Sequence[Finding], *, hosts: Sequence[str]) -> dict[str, object]:
    """All findings, and the host name of each rank, under the names that people's scripts read."""
    lines = [
        {
            "name": finding.name,
            "found": finding.value,
            "verdict": finding.verdict,
            "advice": finding.hint,
            "area": finding.area,
            "figure": None if finding.measurement is None else finding.measurement.value,
        }
        for finding in findings
    ]
    return {"clipx": __version__, "verdict": worst(findings), "hosts": list(hosts), "findings": redacted(lines)}


def _counted(verdict: Verdict, count: int) -> str:
    return f"{count} {verdict}" + ("s" if count > 1 and verdict is not Verdict.OK else "")


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, max_width=24, overflow="ellipsis")
    table.add_column(ratio=1, overflow="fold")
    for area, members in groupby(findings, key=lambda finding: finding.area):
        table.add_row("", Text(area, style="bold"), "")
        for finding in members:
            text = Text(shown(finding.value))
            if finding.hint:
                text.append(f"\n{shown(finding.hint)}", style=_STYLES[finding.verdict])
            table.add_row(Text(finding.verdict, style=_STYLES[finding.verdict]), Text(shown(finding.name)), text)
    return table
