"""What ranks measure between them and have in common, judged on made-up values."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from tiny import CONFIG

from clipx.config.load import load_config
from clipx.doctor import agreement
from clipx.doctor.agreement import Identity, Place, judge_agreement, merge, own_identity, where
from clipx.doctor.findings import GIB, Figure, Finding, Verdict, ok, problem, warning
from clipx.doctor.ranks import judge_bandwidth, judge_clocks, judge_latency, judge_links, judge_sharing
from clipx.doctor.software import Package

OK, WARNING, PROBLEM = Verdict
HOSTS = ["a", "a", "b", "b"]
PLACES = [Place(f"rank {number}", host) for number, host in enumerate(HOSTS)]
SAME = Identity({"torch": "2.15.0"}, {"GPU": "H100"}, {"NCCL_DEBUG": "WARN"}, None)


@pytest.mark.parametrize(
    ("latency_s", "device", "verdict"),
    [(2e-3, "cuda", OK), (2.1e-3, "cuda", WARNING), (20e-3, "cpu", OK), (21e-3, "cpu", WARNING)],
)
def test_latency(latency_s: float, device: str, verdict: Verdict) -> None:
    assert judge_latency(latency_s, device).verdict is verdict


@pytest.mark.parametrize(
    ("gigabytes", "device", "one_machine", "verdict", "advice"),
    [
        (6.0, "cuda", True, OK, ""),
        (5.9, "cuda", True, WARNING, "nvidia-smi topo -m"),
        (5.0, "cuda", False, OK, ""),
        (4.9, "cuda", False, WARNING, "NCCL_DEBUG=INFO"),
        (0.1, "cpu", False, OK, ""),
        (0.09, "cpu", True, WARNING, "GLOO_SOCKET_IFNAME"),
    ],
)
def test_bandwidth(gigabytes: float, device: str, one_machine: bool, verdict: Verdict, advice: str) -> None:
    finding = judge_bandwidth(gigabytes * 1e9, device, size=4, one_machine=one_machine, gradient=None)
    assert finding.verdict is verdict
    assert advice in finding.advice
    assert ("NCCL" if device == "cuda" else "gloo") in finding.found


def test_bandwidth_says_what_the_gradient_costs() -> None:
    finding = judge_bandwidth(1.5e9, "cpu", size=4, one_machine=True, gradient=1_000_000_000)
    assert "the gradient takes 1,000 ms a step" in finding.found  # 2 x 3/4 x 1 GB


@pytest.mark.parametrize(
    ("links", "found"),
    [
        ([200e9, 20e9, 200e9, 20e9], ""),  # within machines and between them
        ([200e9, 20e9, 100e9, 10e9], ""),
        ([200e9, 20e9, 60e9, 20e9], "rank 2 on b to rank 3 on b: 60 GB/s, 30% of what is usual"),
        ([200e9, 20e9, 200e9, 5e9], "rank 3 on b to rank 0 on a: 5 GB/s, 25% of what is usual"),
    ],
)
def test_a_link_is_held_against_those_of_its_kind(links: list[float], found: str) -> None:
    finding = judge_links(links, HOSTS)
    assert finding.verdict is (WARNING if found else OK)
    assert not found or finding.found == found


@pytest.mark.parametrize(("apart", "verdict"), [(0.9, OK), (1.0, OK), (1.1, WARNING), (300, WARNING), (-301, PROBLEM)])
def test_clocks(apart: float, verdict: Verdict) -> None:
    finding = judge_clocks([0, 0.001, apart, 0.5], HOSTS)
    assert finding.verdict is verdict
    assert ("b is" in finding.found) is (verdict is not OK)


def test_a_folder_must_be_the_same_everywhere() -> None:
    assert judge_sharing([True] * 4, HOSTS, "runs/x").verdict is OK
    finding = judge_sharing([True, True, False, False], HOSTS, "runs/x")
    assert (finding.verdict, finding.found) == (PROBLEM, "runs/x on b has not what rank 0 on a writes there")
    assert "rank 0 cannot write" in judge_sharing([False] * 4, HOSTS, "runs/x").found


def test_equal_ranks_are_one_line() -> None:
    [finding] = judge_agreement([SAME] * 4, PLACES)
    assert finding.verdict is OK
    assert finding.found.startswith("4 ranks on 2 machines are alike in 2 things")


@pytest.mark.parametrize(
    ("part", "verdict", "found"),
    [
        ({"software": {"torch": "2.14.1"}}, PROBLEM, "torch differs: 2.14.1 on rank 3 on b; 2.15.0 on a, rank 2 on b"),
        ({"software": {}}, PROBLEM, "torch differs: not set on rank 3 on b; 2.15.0 on a, rank 2 on b"),
        ({"hardware": {"GPU": "A100"}}, WARNING, "GPU differs: A100 on rank 3 on b; H100 on a, rank 2 on b"),
        (
            {"variables": SAME.variables | {"OMP_NUM_THREADS": "4"}},
            WARNING,
            "OMP_NUM_THREADS differs: 4 on rank 3 on b; not set on a, rank 2 on b",
        ),
    ],
)
def test_what_differs_is_named_with_its_place(part: dict[str, dict[str, str]], verdict: Verdict, found: str) -> None:
    [finding] = judge_agreement([SAME, SAME, SAME, replace(SAME, **part)], PLACES)
    assert (finding.verdict, f"{finding.name}: {finding.found}") == (verdict, found)


def test_two_ranks_on_one_gpu_are_a_problem() -> None:
    identities = [replace(SAME, gpu_uuid=uuid) for uuid in ("x", "y", "z", "z")]
    [finding] = judge_agreement(identities, PLACES)
    assert (finding.verdict, finding.found) == (PROBLEM, "rank 2 on b, rank 3 on b")
    assert judge_agreement(identities[:3], PLACES[:3])[0].verdict is OK


def test_own_identity_knows_code_config_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_IB_HCA", "mlx5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")

    def of(*overrides: str) -> Identity:
        config = load_config([CONFIG], overrides)
        packages = [Package("torch", "", "2.15.0")]
        return own_identity(packages, config=config, memory=100 * GIB, cores=8, gpu={"GPU": "H100"}, uuid="x")

    identity = of()
    assert identity.software["torch"] == "2.15.0"
    assert identity.hardware["memory"] == "100 GiB"
    assert identity.variables["NCCL_IB_HCA"] == "mlx5"
    assert "CUDA_VISIBLE_DEVICES" not in identity.variables
    assert of() == identity
    assert of("seed=5").software["config"] != identity.software["config"]


def test_code_that_was_changed_is_other_code(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "__init__.py").touch()
    monkeypatch.setattr(agreement.clipx, "__file__", str(tmp_path / "__init__.py"))
    before = agreement._code_digest()
    (tmp_path / "step.py").write_text("x = 1")
    changed = agreement._code_digest()
    (tmp_path / "step.py").rename(tmp_path / "stop.py")
    assert len({before, changed, agreement._code_digest()}) == 3


@pytest.mark.parametrize(
    ("numbers", "words"),
    [([0, 1], "a"), ([0], "rank 0 on a"), ([0, 1, 2], "a, rank 2 on b"), ([0, 1, 2, 3], "a, b")],
)
def test_places_in_words(numbers: Sequence[int], words: str) -> None:
    assert where(numbers, PLACES) == words


def test_many_places_are_counted() -> None:
    many = [Place(f"rank {number}", f"n{number}") for number in range(9)]
    assert where(range(9), many) == "rank 0 on n0, rank 1 on n1, rank 2 on n2, rank 3 on n3 and 5 more"
    assert "more" not in where(range(4), many)


def test_many_values_are_counted() -> None:
    many = [Place(f"rank {number}", f"n{number}") for number in range(6)]
    for count, said in ((4, ""), (6, "2 ")):
        places = many[:count]
        [finding] = merge([[ok("x", str(number))] for number in range(count)], places)
        assert finding.found.endswith(f"and {said}more") is bool(said)
        [finding] = judge_agreement([replace(SAME, hardware={"GPU": str(n)}) for n in range(count)], places)
        assert finding.found.endswith(f"and {said}other values") is bool(said)


def _figures(*values: float, alike: bool = True) -> list[list[Finding]]:
    return [[ok("speed", f"{value:g}/s", Figure(value, "", alike=alike))] for value in values]


class TestMerge:
    def test_equal_findings_are_one(self) -> None:
        assert merge([[ok("x", "1")]] * 4, PLACES) == [ok("x", "1")]

    def test_different_ones_are_told_apart_the_worst_first(self) -> None:
        bad = problem("x", "2", "do")
        [finding] = merge([[ok("x", "1")], [ok("x", "1")], [bad], [ok("x", "1")]], PLACES)
        assert (finding.verdict, finding.advice) == (PROBLEM, "do")
        assert finding.found == "rank 2 on b: 2; a, rank 3 on b: 1"

    def test_what_only_some_looked_at_is_kept(self) -> None:
        findings = merge(
            [[ok("x", "1"), ok("y", "1")], [ok("x", "1")], [ok("x", "1"), warning("z", "1", "do")], []], PLACES
        )
        assert [finding.name for finding in findings] == ["x", "y", "z"]

    def test_of_figures_the_least_counts(self) -> None:
        [finding] = merge(_figures(10, 9, 8.5, 10), PLACES)
        assert (finding.verdict, finding.found) == (OK, "8.5/s (rank 2 on b; the least of 4)")

    @pytest.mark.parametrize(("value", "alike", "verdict"), [(8, True, OK), (7.9, True, WARNING), (1, False, OK)])
    def test_one_far_below_the_others_holds_them_up(self, value: float, alike: bool, verdict: Verdict) -> None:
        [finding] = merge(_figures(10, 10, 10, value, alike=alike), PLACES)
        assert finding.verdict is verdict
        assert "rank 3 on b" in finding.found

    def test_of_bad_figures_the_worst_verdict_counts(self) -> None:
        found = _figures(10, 9, 1)
        found.append([warning("speed", "7/s", "do", Figure(7, "", alike=True))])
        [finding] = merge(found, PLACES)
        assert (finding.verdict, finding.found) == (WARNING, "7/s (rank 3 on b; the least of 4)")
