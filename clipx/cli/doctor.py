"""`clipx doctor`: what this machine and its ranks can do, and what is wrong with them."""

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from clipx.cli.config_files import ConfigArguments, is_override, load_arguments
from clipx.cli.early import require_outputs
from clipx.cli.output import write_json
from clipx.errors import InputError
from clipx.printable import shown

MeasuredFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Without a config: the folder whose speed is measured.", show_default="working folder"
    ),
]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the findings here.")]


def doctor(
    arguments: ConfigArguments = [],  # noqa: B006 (typer reads it and never changes it)
    path: MeasuredFolder = None,
    json_file: JsonFile = None,
) -> None:
    """Say what this machine can do, what is wrong with it, and what to do about it.

    With a config also its data, run folder and trackers. Under torchrun, accelerate launch or srun also what ranks
    reach of each other, and in what they differ. Exit code 0: nothing is a problem; 1: something is; 2: bad input.
    """
    began = time.monotonic()
    if arguments and all(map(is_override, arguments)):
        raise InputError(f"{arguments[0]!r}: overrides need a config file; name one (.yaml, .yml) before them")
    config = load_arguments(arguments) if arguments else None
    if config is not None and path is not None:
        raise InputError(f"--path {path} goes without a config; a config's data and run_dir are measured anyway")
    if path is not None and not path.is_dir():
        raise InputError(f"--path {path} is no folder; give one that is there")
    require_outputs({"--json": json_file})
    from clipx.distributed.environment import overrule_environment

    overrule_environment(config)
    from rich.console import Console
    from rich.text import Text

    from clipx.doctor.finding import Verdict, worst
    from clipx.doctor.report import as_json, print_report
    from clipx.doctor.run_checks import run_checks

    with ExitStack() as stack:
        console = Console(stderr=True)
        announce = lambda what: None  # noqa: E731
        if console.is_terminal and os.environ.get("RANK", "0") == "0":
            status = stack.enter_context(console.status("..."))
            announce = lambda what: status.update(Text(shown(what)))  # noqa: E731
        report = run_checks(config, folder=path or Path.cwd(), announce=announce)
    if report.is_main:
        print_report(report.findings, sys.stdout, seconds=time.monotonic() - began)
        if json_file is not None:
            write_json(json_file, as_json(report.findings, hosts=report.hosts))
    else:
        for finding in report.findings:
            if finding.name == "ranks":
                print(shown(f"clipx: {finding.name}: {finding.value}; {finding.hint}"), file=sys.stderr)
    code = int(worst(report.findings) is Verdict.PROBLEM)
    if report.hung:  # a thread in a collective or on dead storage would hold up the interpreter's end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise typer.Exit(code)
