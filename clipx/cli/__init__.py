"""The command line: each command is a few lines over the library, which is imported only when the command runs.

An error is one line on stderr and an exit code: 2 for bad input, 1 for a run that cannot continue. `clipx train` has a
third code, 85: it stopped on request, start it again.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from clipx import __version__
from clipx.cli.average import average
from clipx.cli.classify import classify
from clipx.cli.config_files import ConfigArguments, load_arguments, with_home
from clipx.cli.data import data_app
from clipx.cli.doctor import doctor
from clipx.cli.early import require_inputs
from clipx.cli.embed import embed
from clipx.cli.export import export
from clipx.cli.fit import fit
from clipx.cli.launch import launch_app
from clipx.cli.output import say
from clipx.cli.plan import plan
from clipx.cli.predict import predict
from clipx.cli.push import push
from clipx.cli.report import compare, report
from clipx.cli.search import search
from clipx.cli.zeroshot import zeroshot
from clipx.errors import ClipxError
from clipx.printable import shown
from clipx.storage.standard_error import shown_warnings, surviving_stderr

app = typer.Typer(
    name="clipx",
    help="Pretrain CLIP-style models on image-text pairs, evaluate them zero-shot, export them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
_RUN, _MODEL, _PREPARE = "Train", "Use a trained model", "Data and config"

app.add_typer(data_app, name="data", rich_help_panel=_PREPARE)
app.add_typer(launch_app, name="launch", rich_help_panel=_RUN)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"clipx {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="CLIPX_DEBUG", help="Show the traceback of an error (after any command).")
    ] = False,
) -> None:
    """Declares the options before a command; `main` removes --debug from the arguments, at any position."""


@app.command(rich_help_panel=_RUN)
def demo(out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("runs/demo")) -> None:
    """Run the whole job in minutes on a CPU: data, training, resume, zero-shot, export, report."""
    from clipx.demo.run import run_demo

    raise typer.Exit(run_demo(out))


@app.command(rich_help_panel=_RUN)
def train(arguments: ConfigArguments) -> None:
    """Train, or go on with the run that the same command began.

    Works under plain python, torchrun, accelerate launch and srun. Exit code 0: complete; 85: saved and stopped on
    request, start it again; 1: failed; 2: bad input. `clipx config --describe` lists every key.
    """
    config = load_arguments(arguments)
    require_inputs(config)
    from clipx.distributed.environment import overrule_environment

    overrule_environment(config)  # before torch is imported, which reads some of it then
    from clipx.train.trainer import train as run

    raise typer.Exit(run(config))


app.command(rich_help_panel=_RUN)(fit)
app.command(rich_help_panel=_RUN)(plan)
app.command(rich_help_panel=_RUN)(doctor)
app.command(rich_help_panel=_RUN)(report)
app.command(rich_help_panel=_RUN)(compare)


app.command(rich_help_panel=_MODEL)(predict)
app.command(rich_help_panel=_MODEL)(classify)
app.command(rich_help_panel=_MODEL)(embed)
app.command(rich_help_panel=_MODEL)(search)
app.command(rich_help_panel=_MODEL)(zeroshot)
app.command(rich_help_panel=_MODEL)(average)
app.command(rich_help_panel=_MODEL)(export)


app.command(rich_help_panel=_MODEL)(push)


@app.command(rich_help_panel=_PREPARE)
def config(
    arguments: ConfigArguments = [],  # noqa: B006 (typer reads it and never changes it)
    describe: Annotated[bool, typer.Option("--describe", help="List every key: default, type, meaning.")] = False,
    json_schema: Annotated[bool, typer.Option("--json-schema", help="JSON schema, for completion in editors.")] = False,
) -> None:
    """Print the config that a run would have, with every default, or say what is wrong with it."""
    from clipx.config import describe as schema

    if describe:
        typer.echo(schema.describe())
    elif json_schema:
        typer.echo(json.dumps(schema.json_schema(), indent=2))
    else:
        from clipx.config.load import dump_config, warn_of_secrets

        loaded = load_arguments(arguments)
        warn_of_secrets(loaded)  # on stderr
        say(dump_config(loaded).rstrip("\n"))


def main() -> None:
    """The entry point of `clipx`: runs a command and ends the process with its exit code."""
    arguments = [with_home(argument) for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1 or os.environ.get("CLIPX_DEBUG", "0") not in ("", "0")
    with surviving_stderr(), shown_warnings():
        code = _run(arguments, debug=debug)
    sys.exit(code)


def _run(arguments: list[str], *, debug: bool) -> int:
    """Runs a command; returns its exit code, after an error has been shown."""
    try:
        code = app(arguments, prog_name="clipx", standalone_mode=False)
    except ClipxError as error:
        code = _fail(str(error), error.exit_code, show_traceback=debug)
    except typer.TyperException as error:
        code = _fail(_usage_problem(error), error.exit_code, show_traceback=debug)
    except Exception as error:
        # At a terminal a person can repeat the command with --debug; a long job has only its log file.
        show_traceback = debug or not sys.stderr.isatty()
        hint = "" if show_traceback else "; --debug shows where"
        code = _fail(f"unexpected {type(error).__name__}: {error}{hint}", 1, show_traceback=show_traceback)
    return code or 0


def _usage_problem(error: typer.TyperException) -> str:
    """Typer's message in one line; empty if it has printed the help."""
    context = getattr(error, "ctx", None)
    problem = error.format_message().rstrip(".")
    return f"{problem}; see `{context.command_path if context else 'clipx'} --help`" if problem else ""


def _fail(message: str, exit_code: int, *, show_traceback: bool) -> int:
    if show_traceback:
        print(shown(traceback.format_exc()), file=sys.stderr, end="")
    rank = f"[rank {os.environ.get('RANK', '?')}] " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    for line in shown(message).splitlines():
        print(f"clipx: error: {rank}{line}", file=sys.stderr)
    return exit_code
