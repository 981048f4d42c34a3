"""What ranks measure between them and have in common, on made-up values."""

from pathlib import Path

import pytest
from tiny import CONFIG

from clipx.config.load import load_config
from clipx.doctor import compare
from clipx.doctor.compare import Environment, compare_ranks, listed, merge, own_environment
from clipx.doctor.finding import Finding, Measurement, Verdict, ok, problem, warning
from clipx.doctor.ranks import check_bandwidth, check_sharing
from clipx.doctor.software import Package

OK, WARNING, PROBLEM = Verdict
HOSTS = ["a", "a", "b", "b"]
NAMES = [f"rank {number} on {host}" for number, host in enumerate(HOSTS)]
SAME = {"torch": "2.15.0", "clipx's code": "ab12", "config": "cd34"}


@pytest.mark.parametrize(
    ("gigabytes", "device", "one_machine", "verdict", "hint"),
    [
        (6.0, "cuda", True, OK, ""),
        (5.9, "cuda", True, WARNING, "nvidia-smi topo -m"),
        (5.0, "cuda", False, OK, ""),
        (4.9, "cuda", False, WARNING, "NCCL_DEBUG=INFO"),
        (0.1, "cpu", False, OK, ""),
        (0.09, "cpu", True, WARNING, "GLOO_SOCKET_IFNAME"),
    ],
)
def test_bandwidth(gigabytes: float, device: str, one_machine: bool, verdict: Verdict, hint: str) -> None:
    finding = check_bandwidth(gigabytes * 1e9, device, num_ranks=4, one_machine=one_machine)
    assert finding.verdict is verdict
    assert hint in finding.hint
    assert ("NCCL" if device == "cuda" else "gloo") in finding.value


def test_a_folder_must_be_the_same_everywhere() -> None:
    assert check_sharing([True] * 4, HOSTS, "runs/x").verdict is OK
    finding = check_sharing([True, True, False, False], HOSTS, "runs/x")
    assert (finding.verdict, finding.value) == (PROBLEM, "runs/x: a file that rank 0 on a writes is not there on b")
    assert check_sharing([False] * 4, HOSTS, "runs/x").value.endswith("is not there on a, b")


def test_equal_ranks_are_one_line() -> None:
    finding = compare_ranks([SAME] * 4, NAMES)
    assert finding.verdict is OK
    assert finding.value.startswith("4 ranks have the same 3 things")


@pytest.mark.parametrize(
    ("environments", "value"),
    [
        ([SAME, SAME, SAME, SAME | {"torch": "2.14.1"}], "torch: 2.14.1 on rank 3 on b, 2.15.0 elsewhere"),
        ([SAME, SAME | {"config": "ef"}, SAME, SAME], "config: ef on rank 1 on a, cd34 elsewhere"),
        ([SAME, SAME, SAME, {"torch": "2.15.0"}], "clipx's code: not there on rank 3 on b, ab12 elsewhere; config: "),
        ([SAME | {"torch": version} for version in "1123"], "torch: 2 on rank 2 on b, 3 on rank 3 on b, 1 elsewhere"),
    ],
)
def test_what_differs_is_named_with_its_ranks(environments: list[Environment], value: str) -> None:
    finding = compare_ranks(environments, NAMES)
    assert (finding.name, finding.verdict) == ("agreement", PROBLEM)
    assert finding.value.startswith(value)
    assert finding.hint


def test_own_environment_has_versions_code_and_config() -> None:
    def of(*overrides: str) -> Environment:
        packages = [Package("torch", "", "2.15.0"), Package("timm", "", None)]
        return own_environment(packages, load_config([CONFIG], overrides))

    assert (of()["torch"], of()["timm"], set(of())) == ("2.15.0", "not installed", {"timm", *SAME})
    assert of() == of()
    assert of("seed=5")["config"] != of()["config"]
    assert "config" not in own_environment([], None)


def test_code_that_was_changed_is_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "__init__.py").touch()
    monkeypatch.setattr(compare.clipx, "__file__", str(tmp_path / "__init__.py"))
    before = own_environment([], None)["clipx's code"]
    (tmp_path / "step.py").write_text("x = 1")
    changed = own_environment([], None)["clipx's code"]
    (tmp_path / "step.py").rename(tmp_path / "stop.py")
    assert len({before, changed, own_environment([], None)["clipx's code"]}) == 3


def test_many_names_are_counted() -> None:
    assert listed(["a", "b", "c", "d"]) == "a, b, c, d"
    assert listed(["a", "b", "c", "d", "e", "f"], "; ") == "a; b; c; d and 2 more"


def _measured(*values: float, comparable: bool = True) -> list[list[Finding]]:
    return [[ok("speed", f"{value:g}/s", Measurement(value, comparable=comparable))] for value in values]


class TestMerge:
    def test_equal_findings_are_one(self) -> None:
        assert merge([[ok("x", "1")]] * 4, NAMES) == [ok("x", "1")]

    def test_the_worst_counts_and_says_on_which_ranks(self) -> None:
        bad = problem("x", "2", "do")
        [finding] = merge([[ok("x", "1")], [ok("x", "1")], [bad], [bad]], NAMES)
        assert (finding.verdict, finding.hint) == (PROBLEM, "do")
        assert finding.value == "rank 2 on b, rank 3 on b: 2"

    def test_different_values_are_all_there(self) -> None:
        [finding] = merge([[ok("GPU", "H100")], [ok("GPU", "H100")], [ok("GPU", "H100")], [ok("GPU", "A100")]], NAMES)
        assert finding.value == "rank 0 on a, rank 1 on a, rank 2 on b: H100; rank 3 on b: A100"

    def test_what_only_some_checked_is_kept(self) -> None:
        findings = merge(
            [[ok("x", "1"), ok("y", "1")], [ok("x", "1")], [ok("x", "1"), warning("z", "1", "do")], []], NAMES
        )
        assert [finding.name for finding in findings] == ["x", "y", "z"]

    def test_of_measurements_the_lowest_counts(self) -> None:
        [finding] = merge(_measured(10, 9, 8.5, 10), NAMES)
        assert (finding.verdict, finding.value) == (OK, "8.5/s (rank 2 on b; the lowest of 4)")

    @pytest.mark.parametrize(
        ("value", "comparable", "verdict"), [(8, True, OK), (7.9, True, WARNING), (1, False, OK), (0, False, OK)]
    )
    def test_one_far_below_the_others_holds_them_up(self, value: float, comparable: bool, verdict: Verdict) -> None:
        [finding] = merge(_measured(10, 10, 10, value, comparable=comparable), NAMES)
        assert finding.verdict is verdict
        assert "rank 3 on b" in finding.value

    def test_of_bad_measurements_the_worst_verdict_counts(self) -> None:
        per_rank = _measured(10, 9, 1)
        per_rank.append([warning("speed", "7/s", "do", Measurement(7, comparable=True))])
        [finding] = merge(per_rank, NAMES)
        assert (finding.verdict, finding.value) == (WARNING, "7/s (rank 3 on b; the lowest of 4)")
