"""clipx.launching.nodes: how many processes, and whether the batch falls evenly on them."""

import pytest
from tiny import tiny_config

from clipx.config.schema import RunConfig
from clipx.errors import InputError
from clipx.launching.nodes import Nodes, check_batch, nodes_from, processes_from


@pytest.fixture(scope="module")
def config() -> RunConfig:
    """24 pairs per step."""
    return tiny_config("run", "a.tar")


class TestNodes:
    @pytest.mark.parametrize(
        ("text", "minimum", "maximum"), [("1", 1, 1), ("12", 12, 12), ("2:4", 2, 4), ("3:3", 3, 3)]
    )
    def test_a_number_or_a_range(self, text: str, minimum: int, maximum: int) -> None:
        nodes = Nodes.parse(text)
        assert nodes == Nodes(minimum, maximum)
        assert nodes.elastic == (minimum < maximum)
        assert Nodes.parse(str(nodes)) == nodes

    @pytest.mark.parametrize("text", ["0", "-1", "two", "", "4:2", "1:", ":2", "1:2:3", "0:2", "2.5"])
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(InputError, match=f"nodes={text}: expected a number, 1 or more, or a range"):
            Nodes.parse(text)

    def test_only_torchrun_takes_a_range(self) -> None:
        assert Nodes(2, 2).one_number("Slurm") == 2
        with pytest.raises(InputError, match="nodes=2:4: Slurm starts a fixed number"):
            Nodes(2, 4).one_number("Slurm")


class TestEnvironment:
    """The option wins over the variable, ours over torchrun's own."""

    @pytest.mark.parametrize(
        ("environment", "option", "expected"),
        [
            ({}, None, Nodes(1, 1)),
            ({"PET_NNODES": "3"}, None, Nodes(3, 3)),
            ({"PET_NNODES": "3", "NNODES": "2:4"}, None, Nodes(2, 4)),
            ({"PET_NNODES": "3", "NNODES": "2"}, "5", Nodes(5, 5)),
        ],
    )
    def test_nodes(self, environment: dict[str, str], option: str | None, expected: Nodes) -> None:
        assert nodes_from(environment, option) == expected

    @pytest.mark.parametrize(
        ("environment", "option", "expected"),
        [
            ({"PET_NPROC_PER_NODE": "3"}, None, 3),
            ({"PET_NPROC_PER_NODE": "3", "NPROC_PER_NODE": "2"}, None, 2),
            ({"NPROC_PER_NODE": "2"}, 8, 8),
        ],
    )
    def test_processes(self, environment: dict[str, str], option: int | None, expected: int) -> None:
        assert processes_from(environment, option) == expected

    @pytest.mark.parametrize("environment", [{}, {"PET_NPROC_PER_NODE": "auto"}])
    @pytest.mark.parametrize(("gpus", "expected"), [(0, 1), (4, 4)])
    def test_else_the_gpus_are_counted(
        self, environment: dict[str, str], gpus: int, expected: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
        assert processes_from(environment, None) == expected


class TestBatch:
    @pytest.mark.parametrize(("nodes", "processes"), [("1", 1), ("2", 4), ("3", 8), ("1:4", 2), ("2:4", 1)])
    def test_what_divides_passes(self, config: RunConfig, nodes: str, processes: int) -> None:
        check_batch(config, Nodes.parse(nodes), processes_per_node=processes)

    def test_the_nearest_batches_are_named(self, config: RunConfig) -> None:
        expected = "global_batch_size=24 is not divisible by the 16 processes; nearest that are: 16, 32"
        with pytest.raises(InputError, match=expected):
            check_batch(config, Nodes(2, 2), processes_per_node=8)

    def test_every_number_in_a_range_must_divide(self, config: RunConfig) -> None:
        expected = (
            "nodes=3:5: global_batch_size=24 is not divisible by the 5 processes of 5 nodes; "
            "nearest that all numbers in the range divide: 60$"
        )
        with pytest.raises(InputError, match=expected):
            check_batch(config, Nodes(3, 5), processes_per_node=1)

    def test_captions_of_a_picture_stay_together(self) -> None:
        config = tiny_config("run", "a.tar", "data.captions_per_image=2")
        check_batch(config, Nodes(1, 3), processes_per_node=2)
        with pytest.raises(InputError, match=r"8 processes of 4 nodes.*divide: 48$"):
            check_batch(config, Nodes(1, 4), processes_per_node=2)

    def test_so_they_do_in_a_micro_batch(self) -> None:
        config = tiny_config("run", "a.tar", "data.captions_per_image=2", "micro_batch_size=3")
        with pytest.raises(InputError, match=r"micro_batch_size=3 .* a multiple of data.captions_per_image=2"):
            check_batch(config, Nodes(1, 1), processes_per_node=1)

    def test_the_micro_batch_must_fit_every_number(self) -> None:
        config = tiny_config("run", "a.tar", "micro_batch_size=4")
        check_batch(config, Nodes(1, 3), processes_per_node=1)
        with pytest.raises(InputError, match="micro_batch_size=4 does not divide the 6 pairs of a rank"):
            check_batch(config, Nodes(1, 4), processes_per_node=1)
