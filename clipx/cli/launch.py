"""`clipx launch`: starts a run with Slurm, torchrun or accelerate, with the files in launch/."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipx.cli.config_files import ConfigArguments, load_arguments
from clipx.errors import InputError

if TYPE_CHECKING:
    from clipx.launching.commands import LaunchCommand

launch_app = typer.Typer(
    help="Start a run with Slurm, torchrun or accelerate, after checking that its batch falls evenly on the GPUs.",
    no_args_is_help=True,
)

GpusPerNode = Annotated[int | None, typer.Option(min=1, metavar="M", help="Processes per node, one per GPU.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the command, ready to paste, and start nothing.")]


@launch_app.command()
def slurm(
    arguments: ConfigArguments,
    *,
    nodes: Annotated[str | None, typer.Option(metavar="N", help="Nodes; default: as in the file.")] = None,
    gpus_per_node: GpusPerNode = None,
    sbatch: Annotated[
        str, typer.Option(metavar="OPTIONS", help='More options, e.g. --sbatch "--partition=a100 --time=2:00:00".')
    ] = "",
    torchrun: Annotated[
        bool, typer.Option("--torchrun", help="One torchrun per node instead of one task per GPU.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Submit launch/slurm/train.sbatch; prints the job's number. The job requeues itself until the run is complete."""
    from clipx.launching.commands import sbatch_command
    from clipx.launching.files import LAUNCH_FILES, slurm_sizes
    from clipx.launching.nodes import Nodes, check_batch

    config, options = load_arguments(arguments), _words(sbatch, "--sbatch")
    file = LAUNCH_FILES / "slurm" / ("torchrun.sbatch" if torchrun else "train.sbatch")
    default_nodes, default_gpus = slurm_sizes(file)
    num_nodes, gpus = Nodes.parse(nodes or str(default_nodes)), gpus_per_node or default_gpus
    check_batch(config, num_nodes, processes_per_node=gpus)
    command = sbatch_command(
        arguments,
        file=file,
        nodes=num_nodes.one_number("Slurm"),
        gpus_per_node=gpus,
        options=options,
    )
    if not _printed(command, dry_run=dry_run):
        command.replace_process()


@launch_app.command()
def torchrun(
    arguments: ConfigArguments,
    *,
    nodes: Annotated[
        str | None, typer.Option(metavar="N|MIN:MAX", help="Nodes, or a range of them; default: NNODES, or 1.")
    ] = None,
    gpus_per_node: GpusPerNode = None,
    dry_run: DryRun = False,
) -> None:
    """Run launch/torchrun.sh on this node; on several nodes, the same line on each, with MASTER_ADDR set."""
    from clipx.launching.commands import torchrun_command
    from clipx.launching.nodes import check_batch, nodes_from, processes_from

    config = load_arguments(arguments)
    num_nodes, processes = nodes_from(os.environ, nodes), processes_from(os.environ, gpus_per_node)
    check_batch(config, num_nodes, processes_per_node=processes)
    command = torchrun_command(arguments, nodes=num_nodes, processes_per_node=processes)
    if not _printed(command, dry_run=dry_run):
        command.replace_process()


@launch_app.command()
def accelerate(
    arguments: ConfigArguments,
    *,
    nodes: Annotated[str | None, typer.Option(metavar="N", help="Nodes; default: NNODES, or 1.")] = None,
    gpus_per_node: GpusPerNode = None,
    accelerate: Annotated[
        str, typer.Option(metavar="OPTIONS", help="More options of accelerate launch, in one string.")
    ] = "",
    dry_run: DryRun = False,
) -> None:
    """Run accelerate launch with the file of launch/accelerate/ that fits; on several nodes, with MASTER_ADDR set."""
    from clipx.launching.commands import accelerate_command
    from clipx.launching.nodes import check_batch, nodes_from, processes_from
    from clipx.launching.supervise import supervise

    config, options = load_arguments(arguments), _words(accelerate, "--accelerate")
    num_nodes, processes = nodes_from(os.environ, nodes), processes_from(os.environ, gpus_per_node)
    check_batch(config, num_nodes, processes_per_node=processes)
    command = accelerate_command(
        arguments,
        config,
        nodes=num_nodes.one_number("accelerate"),
        processes_per_node=processes,
        environment=os.environ,
        options=options,
    )
    if not _printed(command, dry_run=dry_run):
        environment = {**os.environ, **command.environment}
        raise typer.Exit(supervise(command.arguments, Path(config.run_dir), environment=environment))


@launch_app.command()
def files(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; must not exist.", show_default=False)],
) -> None:
    """Copy launch/ (Slurm, Kubernetes, SkyPilot, accelerate, torchrun), to adapt it to a cluster."""
    from clipx.launching.files import copy_files

    copy_files(folder)


def _words(options: str, name: str) -> list[str]:
    try:
        return shlex.split(options)
    except ValueError as error:
        raise InputError(f"{name} {options}: {error}; quote as in a shell") from error


def _printed(command: "LaunchCommand", *, dry_run: bool) -> bool:
    """Prints the command for a dry run; returns whether it is one."""
    if dry_run:
        typer.echo(command)
    return dry_run
