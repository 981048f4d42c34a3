import os
from unittest.mock import patch

import pytest

from clipx.distributed.runtime import _adopt_slurm_ranks

TORCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SRUN = {
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NNODES": "2",
    "SLURM_JOB_ID": "40007",
    "SLURM_LAUNCH_NODE_IPADDR": "192.0.2.7",
}


def adopted(environment: dict[str, str]) -> dict[str, str]:
    with patch.dict(os.environ, environment, clear=True):
        _adopt_slurm_ranks()
        return {name: os.environ[name] for name in TORCH if name in os.environ}


def test_tasks_of_srun_are_ranks() -> None:
    assert adopted(SRUN) == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "MASTER_ADDR": "192.0.2.7",
        "MASTER_PORT": "20007",
    }


def test_one_node_meets_on_loopback() -> None:
    assert adopted(SRUN | {"SLURM_NNODES": "1"})["MASTER_ADDR"] == "127.0.0.1"


def test_what_the_person_set_stands() -> None:
    assert adopted(SRUN | {"MASTER_ADDR": "node7"})["MASTER_ADDR"] == "node7"


@pytest.mark.parametrize("environment", [{}, SRUN | {"SLURM_NTASKS": "1"}, {"SLURM_NTASKS": "8"}])
def test_a_lone_process_stays_alone(environment: dict[str, str]) -> None:
    assert adopted(environment) == {}


def test_torchrun_inside_of_slurm_has_the_word() -> None:
    own = {"RANK": "0", "WORLD_SIZE": "2"}
    assert adopted(SRUN | own) == own
