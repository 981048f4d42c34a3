"""Which rank a process is, by the variables of launchers, whole and in pieces."""

import logging

import pytest

from clipx.distributed.launchers import adopt_ranks, is_first_rank, warn_if_alone
from clipx.errors import InputError

TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "1234",
}
# of the sixth of eight tasks that srun started, and of the batch script around it
BATCH = {"SLURM_JOB_ID": "40007", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
SRUN = BATCH | {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_LAUNCH_NODE_IPADDR": "192.0.2.7",
}
MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def adopted(environment: dict[str, str]) -> dict[str, str]:
    """What torch and accelerate will see of launchers."""
    environment = dict(environment)
    adopt_ranks(environment)
    warn_if_alone(environment)
    return {name: value for name, value in environment.items() if not name.startswith("SLURM_")}


def test_torchrun_s_own_variables_stand() -> None:
    assert adopted(TORCHRUN) == TORCHRUN
    assert adopted(SRUN | TORCHRUN) == TORCHRUN  # torchrun as the task of a step


def test_tasks_of_srun_are_ranks() -> None:
    assert adopted(SRUN) == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "MASTER_ADDR": "192.0.2.7",
        "MASTER_PORT": "20007",
    }
    assert adopted(SRUN | {"SLURM_STEP_ID": "1"})["MASTER_PORT"] == "20104"  # two steps at once


@pytest.mark.parametrize("nodes", [{"SLURM_STEP_NUM_NODES": "1"}, {"SLURM_STEP_NUM_NODES": "", "SLURM_NNODES": "1"}])
def test_one_node_meets_on_loopback(nodes: dict[str, str]) -> None:
    assert adopted(SRUN | nodes)["MASTER_ADDR"] == "127.0.0.1"


def test_what_the_person_set_stands() -> None:
    assert adopted(SRUN | {"MASTER_ADDR": "node7"})["MASTER_ADDR"] == "node7"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        dict.fromkeys(TORCHRUN, ""),
        {"RANK": " ", "LOCAL_RANK": ""},
        {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"},
        SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"},
        SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"},  # the shell that salloc opens on a node
        {"PMI_SIZE": "4"},
        MPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
    ],
)
def test_a_lone_process_stays_alone(environment: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    assert adopted(environment) == {}
    assert caplog.text == ""


@pytest.mark.parametrize("nodes", ["1", "2"])
def test_a_batch_script_runs_alone_and_says_so(nodes: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert adopted(BATCH | {"SLURM_NNODES": nodes}) == {}
    assert "this Slurm job has 8 tasks, and this process is none of them: it runs alone" in caplog.text


def test_processes_of_mpirun_are_ranks() -> None:
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert adopted(MPI) == {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"} | meeting
    mpich = {"PMI_RANK": "1", "MPI_LOCALRANKID": "1", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"}
    assert adopted(mpich) == adopted(MPI)
    with pytest.raises(InputError, match="WORLD_SIZE=4 without MASTER_ADDR"):
        adopted(MPI | {"OMPI_COMM_WORLD_SIZE": "4"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "", "LOCAL_RANK": ""}, "WORLD_SIZE=4 without RANK and LOCAL_RANK"),
        ({"LOCAL_RANK": ""}, "RANK=3, WORLD_SIZE=4 without LOCAL_RANK"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE=four: expected 1 or more"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: expected 1 or more"),
        ({"RANK": "4"}, "RANK=4: expected a number from 0 to 3"),
        ({"RANK": "-1"}, "RANK=-1: expected a number from 0 to 3"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x: expected a number from 0 to 3"),
        ({"LOCAL_WORLD_SIZE": "x"}, "LOCAL_WORLD_SIZE=x: expected a number from 1 to 4"),
        ({"MASTER_ADDR": ""}, "WORLD_SIZE=4 without MASTER_ADDR: name a node that all others reach"),
        ({"MASTER_PORT": "ssh"}, "MASTER_PORT=ssh: expected a number from 1 to 65535"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT=65536: expected a number from 1 to 65535"),
    ],
)
def test_pieces_of_a_launcher_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        adopted(TORCHRUN | changes)


def test_a_task_without_its_local_number_is_refused() -> None:
    with pytest.raises(InputError, match="without LOCAL_RANK"):
        adopted(SRUN | {"SLURM_LOCALID": ""})


def test_the_port_has_a_default() -> None:
    assert adopted(TORCHRUN | {"MASTER_PORT": ""})["MASTER_PORT"] == "29500"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, True), (TORCHRUN, False), (SRUN, False), (BATCH, True), (MPI, False), ({"RANK": ""}, True)],
)
def test_one_of_all_speaks(environment: dict[str, str], expected: bool) -> None:
    assert is_first_rank(environment) is expected
