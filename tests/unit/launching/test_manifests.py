"""launch/kubernetes and launch/skypilot.yaml, by the parsers of those who read them: no key is misspelt or lost."""

import copy
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from misspelt import key_paths, misspell

from clipx.config.load import load_config

ROOT = Path(__file__).parents[3]
LAUNCH = ROOT / "launch"
CONFIG = ROOT / "configs" / "vit_b16_datacomp_large_16xh100.yaml"
Check = Callable[[Any], None]


@pytest.fixture(autouse=True)
def _whole_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """SkyPilot cuts off those of the whole process when it finds a mistake, and leaves it at that."""
    monkeypatch.setattr(sys, "tracebacklimit", 1000, raising=False)


def read(name: str) -> Any:
    return yaml.safe_load((LAUNCH / name).read_text())


def as_jobset(tree: Any) -> None:
    """The JobSet's own model, which drops what it does not know."""
    from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

    assert JobsetV1alpha2JobSet.from_dict(tree).to_dict() == tree


def as_trainjob(tree: Any) -> None:
    """The TrainJob's own model, which drops what it does not know."""
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

    assert TrainerV1alpha1TrainJob.from_dict(tree).to_dict() == tree


def as_job(tree: Any) -> None:
    """The schema of the oldest Kubernetes that the file names."""
    import kubernetes_validate

    kubernetes_validate.validate(tree, "1.31", strict=True)


def as_sky_task(tree: Any) -> None:
    """SkyPilot's own reading, which changes what it is given."""
    import sky

    sky.Task.from_yaml_config(copy.deepcopy(tree))


def job_of_jobset() -> Any:
    """The Job that JobSet makes of its template."""
    (replicated,) = read("kubernetes/jobset.yaml")["spec"]["replicatedJobs"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **replicated["template"]}


# Right under these any name is allowed: of a resource, of a variable, of a folder.
QUANTITIES = ("limits", "requests")
FILES = [
    pytest.param(lambda: read("kubernetes/jobset.yaml"), as_jobset, QUANTITIES, id="jobset"),
    pytest.param(job_of_jobset, as_job, QUANTITIES, id="job of the jobset"),
    pytest.param(lambda: read("kubernetes/trainjob.yaml"), as_trainjob, QUANTITIES, id="trainjob"),
    pytest.param(lambda: read("skypilot.yaml"), as_sky_task, ("envs", "file_mounts"), id="skypilot"),
]


@pytest.mark.parametrize(("load", "check", "free"), FILES)
def test_it_is_valid(load: Callable[[], Any], check: Check, free: tuple[str, ...]) -> None:
    check(load())


@pytest.mark.parametrize(("load", "check", "free"), FILES)
def test_every_misspelt_key_is_found(load: Callable[[], Any], check: Check, free: tuple[str, ...]) -> None:
    tree = load()
    missed = []
    for place in key_paths(tree):
        try:
            check(misspell(tree, place))
        except Exception:  # each parser has its own
            continue
        missed.append(place)
    names_of_its_own = [place for place in key_paths(tree) if len(place) > 1 and place[-2] in free]
    assert missed == names_of_its_own


class TestJobset:
    """What stands in several places of the file, and what only a cluster would notice."""

    @pytest.fixture
    def tree(self) -> Any:
        return read("kubernetes/jobset.yaml")

    @pytest.fixture
    def job(self, tree: Any) -> Any:
        return tree["spec"]["replicatedJobs"][0]["template"]["spec"]

    @pytest.fixture
    def container(self, job: Any) -> Any:
        return job["template"]["spec"]["containers"][0]

    def test_numbers_of_nodes_and_gpus_agree(self, job: Any, container: Any) -> None:
        env = {variable["name"]: variable["value"] for variable in container["env"]}
        assert int(env["NNODES"]) == job["completions"] == job["parallelism"]
        assert int(env["NPROC_PER_NODE"]) == container["resources"]["limits"]["nvidia.com/gpu"]

    def test_the_rendezvous_is_the_first_pod(self, tree: Any, container: Any) -> None:
        env = {variable["name"]: variable["value"] for variable in container["env"]}
        name, job = tree["metadata"]["name"], tree["spec"]["replicatedJobs"][0]["name"]
        assert env["MASTER_ADDR"] == f"{name}-{job}-0-0.{name}"
        assert tree["spec"]["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}

    def test_there_is_time_to_save(self, job: Any, container: Any) -> None:
        env = {variable["name"]: variable["value"] for variable in container["env"]}
        assert job["template"]["spec"]["terminationGracePeriodSeconds"] > int(env["SAVE_SECONDS"])

    @pytest.mark.parametrize(
        ("message", "action"),  # as the job controller of Kubernetes words them
        [
            ("Container clipx for pod a/b failed with exit code 2 matching FailJob rule at index 0", "FailJobSet"),
            (
                "Container clipx for pod a/b failed with exit code 85 matching FailJob rule at index 0",
                "RestartJobSetAndIgnoreMaxRestarts",
            ),
            (
                "Pod a/b has condition DisruptionTarget matching FailJob rule at index 1",
                "RestartJobSetAndIgnoreMaxRestarts",
            ),
            ("Container clipx for pod a/b failed with exit code 23 matching FailJob rule at index 0", None),
        ],
    )
    def test_exit_codes_lead_to_what_they_mean(self, tree: Any, message: str, action: str | None) -> None:
        rules = tree["spec"]["failurePolicy"]["rules"]
        assert all(rule["onJobFailureReasons"] == ["PodFailurePolicy"] for rule in rules)
        fitting = [
            rule["action"]
            for rule in rules
            if any(re.search(pattern, message) for pattern in rule["onJobFailureMessagePatterns"])
        ]
        assert fitting == ([action] if action else [])

    def test_the_job_fails_with_these_codes_and_no_pod_starts_alone(self, job: Any, container: Any) -> None:
        by_code, by_condition = job["podFailurePolicy"]["rules"]
        assert by_code["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2, 85]}
        assert by_condition["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
        assert (job["backoffLimit"], job["template"]["spec"]["restartPolicy"]) == (0, "Never")


def test_volumes_of_both_files_are_mounted_and_there() -> None:
    trainjob = read("kubernetes/trainjob.yaml")["spec"]
    patched = trainjob["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    pods = [job_of_jobset()["spec"]["template"]["spec"], patched["template"]["spec"]["template"]["spec"]]
    for pod in pods:
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert mounts == {"shm": "/dev/shm", "config": "/config", "data": "/data", "runs": "/runs"}
        assert set(volumes) == set(mounts)
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    limits = trainjob["trainer"]["resourcesPerNode"]["limits"]
    assert trainjob["trainer"]["numProcPerNode"] == limits["nvidia.com/gpu"]


@pytest.mark.parametrize("name", ["jobset", "trainjob"])
def test_the_overrides_are_a_config(name: str) -> None:
    spec = read(f"kubernetes/{name}.yaml")["spec"]
    container = spec["trainer"] if name == "trainjob" else job_of_jobset()["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["clipx", "launch", "torchrun", "/config/run.yaml"]
    config = load_config([CONFIG], container["args"])
    assert Path(config.run_dir).is_relative_to("/runs")


def test_skypilot_starts_a_valid_run() -> None:
    """The line of `run`, as a shell would read it."""
    task = read("skypilot.yaml")
    line = task["run"][task["run"].index("launch/torchrun.sh") :].replace("\\\n", " ")
    for name, value in task["envs"].items():
        line = line.replace(f"${name}", value)
    script, config, *overrides = shlex.split(line)
    assert (ROOT / script).is_file()
    assert load_config([ROOT / config], overrides).checkpoint.folder == "s3://my-clipx-bucket/vit_b16/checkpoints"
    assert {mount["source"] for mount in task["file_mounts"].values()} == {f"s3://{task['envs']['BUCKET']}"}
