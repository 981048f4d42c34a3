"""launch/: the files as a person runs them, with the training itself replaced."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from misspelt import key_paths, misspell

from clipx.config.checkpoint import StopSignal

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "torchrun.sh"
ACCELERATE = sorted((ROOT / "launch" / "accelerate").glob("*.yaml"))

FAKE_PYTHON = """#!/usr/bin/env bash
# Python, but for torchrun: that one notes its arguments and its environment, and ends as the test wants.
if [[ "$1 $2 $3" == "-m clipx config" ]]; then
  eval "$CHECKING"
fi
if [[ "$1 $2" == "-m torch.distributed.run" ]]; then
  printf '%s\\n' "${@:3}" > "$NOTES/arguments"
  env > "$NOTES/environment"
  touch "$NOTES/started"
  eval "$TORCHRUN"
  exit
fi
exec REAL "$@"
"""


UNSET = "(a variable that is not there)"


class Launch:
    """A folder with a config and a stand-in for Python."""

    def __init__(self, folder: Path, name: str = "the: run") -> None:
        self.folder = folder
        self.run_dir = folder / name
        python = folder / "python"
        python.write_text(FAKE_PYTHON.replace("REAL", shlex.quote(sys.executable)))
        python.chmod(0o755)
        self.config = folder / "config.yaml"
        self.config.write_text(
            f"run_dir: {json.dumps(str(self.run_dir), ensure_ascii=False)}\nsteps: 1\nglobal_batch_size: 2\n"
            "data: {train: [a.tar]}\nmodel: {image: {name: vit_base_patch32_clip_224}}\n",
            encoding="utf-8",
        )

    def say(self, status: str) -> str:
        """A shell command that writes status.json as the trainer does."""
        text = json.dumps({"status": status, "step": 1, "reason": "a test"})
        run_dir = shlex.quote(str(self.run_dir))
        return f"mkdir -p {run_dir}; echo {shlex.quote(text)} > {run_dir}/status.json; "

    def start(self, *arguments: str, torchrun: str = "exit 0", **env: str) -> subprocess.Popen[str]:
        names = ("PATH", "HOME", "LANG", "TMPDIR")
        environment = {name: os.environ[name] for name in names if name in os.environ}
        environment |= {"PYTHON": str(self.folder / "python"), "NOTES": str(self.folder), "TORCHRUN": torchrun}
        environment |= {"CHECKING": "", "NPROC_PER_NODE": "2", "PYTHONPATH": str(ROOT), **env}
        environment = {name: value for name, value in environment.items() if value != UNSET}
        command = [str(SCRIPT), str(self.config), *arguments]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str, **options: str) -> tuple[int, str]:
        process = self.start(*arguments, **options)
        _, err = process.communicate(timeout=60)
        return process.returncode, err

    def stop(self, number: signal.Signals, *, on_signal: str) -> tuple[int, str]:
        """Starts a run of one process, which hears USR1, and signals the script once that process listens."""
        process = self.folder / "process"
        process.write_text(
            f"""
            trap stop USR1
            stop() {{
                echo USR1 > {self.folder}/signal
                {on_signal}
            }}
            touch {self.folder}/listens
            for i in {{1..1200}}; do sleep 0.05; done
            """
        )
        script = self.start(torchrun=f"bash {process} & wait $!")
        deadline = time.monotonic() + 60
        while not (self.folder / "listens").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        script.send_signal(number)
        _, err = script.communicate(timeout=60)
        return script.returncode, err

    def torchrun_arguments(self) -> Any:
        """What torchrun's own parser makes of the call, in the environment it was given."""
        from torch.distributed.run import get_args_parser

        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.torchrun_environment().items():
                if name.startswith("PET_"):
                    patch.setenv(name, value)
            return get_args_parser().parse_args((self.folder / "arguments").read_text().splitlines())

    def torchrun_environment(self) -> dict[str, str]:
        pairs = (line.partition("=") for line in (self.folder / "environment").read_text().splitlines())
        return {name: value for name, _, value in pairs}


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    return Launch(tmp_path)


class TestTorchrun:
    def test_one_node(self, launch: Launch) -> None:
        assert launch.run("seed=3", "data.train=[a b.tar]") == (0, "")
        arguments = launch.torchrun_arguments()
        assert arguments.standalone
        assert (arguments.nnodes, arguments.nproc_per_node, arguments.max_restarts) == ("1", "2", 0)
        assert (arguments.module, arguments.training_script) == (True, "clipx")
        assert arguments.training_script_args == ["train", str(launch.config), "seed=3", "data.train=[a b.tar]"]
        stop_signals = get_args(StopSignal)
        assert set(arguments.signals_to_handle.split(",")) >= {*stop_signals, "SIGINT"}
        assert getattr(arguments, "shutdown_timeout", 300) == 300  # torch 2.11 does not have it
        assert launch.torchrun_environment()["CLIPX_EXIT_CODE_AGAIN"] == "0"

    def test_several_nodes(self, launch: Launch) -> None:
        env = {"NNODES": "4", "MASTER_ADDR": "node0", "MASTER_PORT": "1234", "SLURM_JOB_ID": "77", "SAVE_SECONDS": "60"}
        assert launch.run(**env) == (0, "")
        arguments = launch.torchrun_arguments()
        assert not arguments.standalone
        assert (arguments.nnodes, arguments.rdzv_backend, arguments.rdzv_id) == ("4", "c10d", "77")
        assert arguments.rdzv_endpoint == "node0:1234"
        assert (getattr(arguments, "shutdown_timeout", 60), arguments.max_restarts) == (60, 0)

    def test_a_range_of_nodes_is_elastic(self, launch: Launch) -> None:
        assert launch.run(NNODES="2:4", MASTER_ADDR="node0") == (0, "")
        arguments = launch.torchrun_arguments()
        assert (arguments.nnodes, arguments.max_restarts, arguments.rdzv_endpoint) == ("2:4", 3, "node0:29500")
        # torch caches the shared store's address over rounds, and a node that comes later never hears it
        assert launch.torchrun_environment()["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"

    def test_restarts_are_the_person_s_choice(self, launch: Launch) -> None:
        assert launch.run(MAX_RESTARTS="7") == (0, "")
        assert launch.torchrun_arguments().max_restarts == 7
        # a shared store would still hold the addresses of ranks that have died
        assert launch.torchrun_environment()["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"

    def test_torchrun_s_own_names_serve_as_well(self, launch: Launch) -> None:
        """As the runtime of Kubeflow Trainer sets them."""
        theirs = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "8", "PET_MASTER_ADDR": "pod-0", "PET_MASTER_PORT": "29400"}
        assert launch.run(NPROC_PER_NODE=UNSET, **theirs) == (0, "")
        arguments = launch.torchrun_arguments()
        assert (arguments.nnodes, arguments.nproc_per_node, arguments.rdzv_endpoint) == ("2", "8", "pod-0:29400")

    def test_several_nodes_need_an_address(self, launch: Launch) -> None:
        code, err = launch.run(NNODES="2")
        assert (code, err.count("\n")) == (2, 1)
        assert "MASTER_ADDR is not set: with NNODES=2, name a node that all others reach" in err
        assert not (launch.folder / "started").exists()

    def test_a_bad_config_is_one_line_and_starts_nothing(self, launch: Launch) -> None:
        code, err = launch.run("data.worker=1")
        assert code == 2
        assert err == "clipx: error: data.worker=1: unknown key; the nearest known is data.workers\n"
        assert not (launch.folder / "started").exists()

    def test_without_arguments_it_says_how(self) -> None:
        done = subprocess.run([SCRIPT], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("usage: launch/torchrun.sh CONFIG.yaml")

    @pytest.mark.parametrize(
        ("status", "torchrun_code", "expected"),
        [("again", 0, 85), ("failed", 1, 1), ("complete", 0, 0)],
    )
    def test_exit_code_is_the_run_s_own_word(
        self, launch: Launch, status: str, torchrun_code: int, expected: int
    ) -> None:
        assert launch.run(torchrun=f"sleep 0.05; {launch.say(status)} exit {torchrun_code}")[0] == expected

    @pytest.mark.parametrize("name", ["it's", 'two  "words" \\ $HOME `x` #1', "ünï 夏: {a}", "~", "-x"])
    def test_the_run_folder_may_have_any_name(self, tmp_path: Path, name: str) -> None:
        launch = Launch(tmp_path, name)
        assert launch.run(torchrun=f"{launch.say('again')} exit 0", LC_ALL="C")[0] == 85
        arguments = launch.torchrun_arguments()
        assert arguments.training_script_args == ["train", str(launch.config)]

    @pytest.mark.parametrize("variables", [{"MASTER_PORT": "ssh"}, {"NNODES": "two"}, {"NPROC_PER_NODE": "-1"}])
    def test_numbers_are_numbers(self, launch: Launch, variables: dict[str, str]) -> None:
        code, err = launch.run(MASTER_ADDR="node0", **variables)
        assert (code, err.count("\n")) == (2, 1)
        assert "=".join(*variables.items()) in err

    def test_signals_reach_the_processes_and_the_end_is_waited_for(self, launch: Launch) -> None:
        assert launch.stop(signal.SIGUSR1, on_signal=f"sleep 0.3; {launch.say('again')} exit 0") == (85, "")
        assert (launch.folder / "signal").read_text().strip() == "USR1"

    def test_stopped_while_the_config_is_checked_it_starts_nothing(self, launch: Launch) -> None:
        """Also in a container, whose first process no signal ends unless it listens for it."""
        assert launch.run(CHECKING="kill -TERM $PPID; sleep 0.2") == (85, "")
        assert not (launch.folder / "started").exists()


def load_strictly(path: Path) -> Any:
    """Accelerate's own reading of the file, and every inner key held against the options of `accelerate launch`."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(path))
    options = vars(launch_command_parser().parse_args(["script.py"]))
    unknown = [
        key for inner in vars(config).values() if isinstance(inner, Mapping) for key in inner if key not in options
    ]
    if unknown:
        raise ValueError(f"{path.name} had unknown inner keys {unknown}")
    return config


class TestAccelerate:
    def test_all_kinds_are_there(self) -> None:
        assert [path.stem for path in ACCELERATE] == ["ddp", "fsdp2", "multinode"]

    @pytest.mark.parametrize(
        ("name", "kind", "machines"), [("ddp", "MULTI_GPU", 1), ("fsdp2", "FSDP", 1), ("multinode", "MULTI_GPU", 2)]
    )
    def test_accelerate_reads_it(self, name: str, kind: str, machines: int) -> None:
        config = load_strictly(ROOT / "launch" / "accelerate" / f"{name}.yaml")
        assert config.distributed_type.value == kind
        assert config.mixed_precision == "no"  # the run's config says it
        assert (config.num_machines, config.num_processes) == (machines, 8 * machines)

    def test_fsdp_is_the_second(self) -> None:
        config = load_strictly(ROOT / "launch" / "accelerate" / "fsdp2.yaml")
        assert int(config.fsdp_config["fsdp_version"]) == 2

    @pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
    def test_a_misspelt_key_is_found(self, path: Path, tmp_path: Path) -> None:
        tree = yaml.safe_load(path.read_text())
        for place in key_paths(tree):
            (tmp_path / "misspelt.yaml").write_text(yaml.safe_dump(misspell(tree, place)))
            with pytest.raises(ValueError, match=r"unknown|`distributed_type` must be specified"):
                load_strictly(tmp_path / "misspelt.yaml")
