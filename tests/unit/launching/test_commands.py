"""clipx.launching.commands: the command lines, read back by the parsers of those who get them."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from tiny import tiny_config

from clipx.config.checkpoint import StopSignal
from clipx.errors import InputError
from clipx.launching.commands import (
    SAVE_SECONDS,
    STOP_SIGNALS,
    LaunchCommand,
    accelerate_command,
    sbatch_command,
    torchrun_command,
)
from clipx.launching.files import LAUNCH_FILES
from clipx.launching.nodes import Nodes

RUN = ("a config.yaml", "data.train=[a.tar, b.tar]")


def accelerate_arguments(command: LaunchCommand) -> Any:
    """What accelerate's parser makes of the call, with the values of its file."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    assert command.arguments[:3] == (sys.executable, "-m", "accelerate.commands.launch")
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(command.arguments[3:]))
    return arguments


def test_a_command_can_be_pasted() -> None:
    command = LaunchCommand(("bash", "a script.sh", "x=[1, 2]"), {"NAME": "a b", "OTHER": "c"})
    assert str(command) == "NAME='a b' OTHER=c bash 'a script.sh' 'x=[1, 2]'"
    assert shlex.split(str(command)) == ["NAME=a b", "OTHER=c", "bash", "a script.sh", "x=[1, 2]"]


def test_the_launcher_takes_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(os, "execvpe", lambda *call: called.append(call))
    monkeypatch.setenv("KEPT", "1")
    monkeypatch.setenv("CHANGED", "1")
    LaunchCommand(("bash", "a"), {"CHANGED": "2"}).replace_process()
    program, arguments, environment = called[0]
    assert (program, arguments) == ("bash", ("bash", "a"))
    assert (environment["KEPT"], environment["CHANGED"]) == ("1", "2")


def test_a_launcher_that_is_not_here() -> None:
    with pytest.raises(InputError, match="sbatch-of-elsewhere is not installed here; start on a machine that has it"):
        LaunchCommand(("sbatch-of-elsewhere", "a"), {}).replace_process()


class TestSlurm:
    FILE = Path("launch/slurm/train.sbatch")

    def test_the_file_gets_the_config_and_sbatch_the_rest(self) -> None:
        options = ["--partition=a100", "--time=2:00:00"]
        command = sbatch_command(RUN, file=self.FILE, nodes=4, gpus_per_node=8, options=options)
        expected = ("sbatch", "--nodes=4", "--gpus-per-node=8", *options, str(self.FILE), *RUN)
        assert command == LaunchCommand(expected, {"PYTHON": sys.executable})

    @pytest.mark.parametrize("option", ["--nodes=2", "-N2", "-N", "--gpus-per-node=4", "--nodes"])
    def test_sizes_are_ours_to_check(self, option: str) -> None:
        with pytest.raises(InputError, match="give --nodes and --gpus-per-node to `clipx launch slurm`"):
            sbatch_command(RUN, file=self.FILE, nodes=1, gpus_per_node=1, options=[option])

    @pytest.mark.parametrize("option", ["--nodelist=n1", "--nodes-of-mine=1", "--no-requeue", "--gpus-per-task=1"])
    def test_other_options_pass(self, option: str) -> None:
        command = sbatch_command(RUN, file=self.FILE, nodes=1, gpus_per_node=1, options=[option])
        assert option in command.arguments


def test_torchrun_has_its_sizes_in_the_environment() -> None:
    command = torchrun_command(RUN, nodes=Nodes(2, 4), processes_per_node=8)
    assert command.arguments == ("bash", str(LAUNCH_FILES / "torchrun.sh"), *RUN)
    assert command.environment == {"NNODES": "2:4", "NPROC_PER_NODE": "8", "PYTHON": sys.executable}


class TestAccelerate:
    def make(self, *overrides: str, nodes: int = 1, options: tuple[str, ...] = (), **environment: str) -> LaunchCommand:
        config = tiny_config("run", "a.tar", *overrides)
        return accelerate_command(
            RUN, config, nodes=nodes, processes_per_node=2, environment=environment, options=options
        )

    @pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
    def test_one_node_has_the_file_of_its_parallelism(self, kind: str) -> None:
        arguments = accelerate_arguments(self.make(f"parallel.type={kind}"))
        assert Path(arguments.config_file).stem == kind
        assert (arguments.use_fsdp, arguments.multi_gpu) == (kind == "fsdp2", kind == "ddp")
        assert (arguments.num_machines, arguments.num_processes) == (1, 2)
        assert (arguments.module, arguments.training_script) == (True, "clipx")
        assert arguments.training_script_args == ["train", *RUN]

    def test_several_nodes_meet_at_the_master(self) -> None:
        arguments = accelerate_arguments(
            self.make("parallel.type=fsdp2", nodes=3, MASTER_ADDR="node0", MASTER_PORT="7")
        )
        assert Path(arguments.config_file).stem == "multinode"
        assert (arguments.num_machines, arguments.num_processes) == (3, 6)
        assert (arguments.main_process_ip, arguments.main_process_port) == ("node0", 7)
        assert (arguments.rdzv_backend, arguments.same_network) == ("c10d", False)

    def test_several_nodes_need_an_address(self) -> None:
        with pytest.raises(InputError, match="MASTER_ADDR is not set: with nodes=2, name a node"):
            self.make(nodes=2)

    def test_options_reach_accelerate(self) -> None:
        arguments = accelerate_arguments(self.make(options=("--gpu_ids=0,1", "--main_process_port=0")))
        assert (arguments.gpu_ids, arguments.main_process_port) == ("0,1", 0)

    def test_a_stopped_run_has_time_and_is_no_failure(self) -> None:
        environment = self.make().environment
        assert environment["CLIPX_EXIT_CODE_AGAIN"] == "0"
        assert environment["PET_SIGNALS_TO_HANDLE"].split(",") == list(STOP_SIGNALS)
        assert environment["PET_SHUTDOWN_TIMEOUT"] == "300"
        assert environment["OMP_NUM_THREADS"] == "4"

    def test_what_a_person_has_set_wins(self) -> None:
        environment = self.make(SAVE_SECONDS="60", OMP_NUM_THREADS="7").environment
        assert (environment["PET_SHUTDOWN_TIMEOUT"], environment["OMP_NUM_THREADS"]) == ("60", "7")


def test_what_stands_twice_is_the_same() -> None:
    assert set(STOP_SIGNALS) == {*get_args(StopSignal), "SIGINT"}
    script = (LAUNCH_FILES / "torchrun.sh").read_text()
    assert f"PET_SIGNALS_TO_HANDLE={','.join(STOP_SIGNALS)}\n" in script
    assert f"PET_SHUTDOWN_TIMEOUT=${{SAVE_SECONDS:-{SAVE_SECONDS:.0f}}}\n" in script
