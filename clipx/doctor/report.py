"""The report: a table with colours in a terminal, one plain line per finding elsewhere, JSON on request."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipx import __version__
from clipx.doctor.findings import Finding, Verdict
from clipx.errors import InputError

_STYLES = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "bold red"}


def worst(findings: Sequence[Finding]) -> Verdict:
    """The verdict over all."""
    return max((finding.verdict for finding in findings), key=lambda verdict: verdict.severity, default=Verdict.OK)


def print_report(findings: Sequence[Finding], file: TextIO, *, seconds: float) -> None:
    """Writes all findings and their count."""
    console = Console(file=file, highlight=False)
    counts = Counter(finding.verdict for finding in findings)
    summary = ", ".join(_counted(verdict, counts[verdict]) for verdict in reversed(Verdict) if counts[verdict])
    if not console.is_terminal:
        for finding in findings:
            advice = f" -> {finding.advice}" if finding.advice else ""
            print(f"{finding.verdict:<7}  {finding.area:<10}  {finding.name}: {finding.found}{advice}", file=file)
        print(f"{summary}; {seconds:.0f} s", file=file)
        return
    console.print(_table(findings))
    console.print(f"{summary}; {seconds:.0f} s", style=_STYLES[worst(findings)], markup=False)


def write_json(path: Path, findings: Sequence[Finding], *, hosts: Sequence[str]) -> None:
    """Writes all findings, with the machines of all ranks.

    Raises:
        InputError: the file cannot be written.
    """
    content = {
        "clipx": __version__,
        "verdict": worst(findings),
        "hosts": list(hosts),
        "findings": [_as_json(finding) for finding in findings],
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"--json {path}: cannot be written: {error.strerror}") from error


def _counted(verdict: Verdict, count: int) -> str:
    return f"{count} {verdict}" + ("s" if count > 1 and verdict is not Verdict.OK else "")


def _as_json(finding: Finding) -> dict[str, object]:
    fields = asdict(finding)
    figure = fields.pop("figure")
    return fields | {"figure": None if finding.figure is None else figure[0]}


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, max_width=24, overflow="ellipsis")
    table.add_column(ratio=1, overflow="fold")
    for area, members in groupby(findings, key=lambda finding: finding.area):
        table.add_row("", Text(area, style="bold"), "")
        for finding in members:
            said = Text(finding.found)
            if finding.advice:
                said.append(f"\n{finding.advice}", style=_STYLES[finding.verdict])
            table.add_row(Text(finding.verdict, style=_STYLES[finding.verdict]), finding.name, said)
    return table
