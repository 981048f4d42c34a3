"""The machines as a person describes them, and how long collectives take on them: bandwidth alone, no latency."""

from dataclasses import dataclass

from clipx.distributed.hardware import Gpu
from clipx.losses.cost import Collective


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Equal machines of equal GPUs. Speeds are per GPU and one way, in bytes/s."""

    gpu: Gpu
    gpus_per_node: int
    mfu: float
    """Share of the GPU's peak that the towers' arithmetic reaches while nothing else runs."""
    intra_node_bytes_per_s: float
    """Speed to the GPUs of the same machine."""
    inter_node_bytes_per_s: float
    """Speed to GPUs of other machines: its share of the network's adapters."""

    def num_nodes(self, world_size: int) -> int:
        """The number of machines for `world_size` GPUs."""
        return -(-world_size // self.gpus_per_node)

    def seconds(self, collective: Collective, payload: float, *, world_size: int) -> float:
        """Seconds of one collective, by the slower of the two levels; the other runs at the same time, as in NCCL.

        Gathering P bytes over N machines of g GPUs brings each GPU (g-1)/g P from its own machine and, the adapters
        sharing what comes from others, (N-1)/N P/g over the network. Scattering sums is the same backwards, and an
        all-reduce both (the ring's 2(W-1)/W P). A shift moves P/W to the next rank. In an all-to-all each GPU sends
        1/W of its P/W to each other.
        """
        per_node, num_nodes = min(self.gpus_per_node, world_size), self.num_nodes(world_size)
        if collective == "all-to-all":
            inside, own = (per_node - 1) / world_size, payload / world_size
            outside = (world_size - per_node) / world_size
            return own * max(inside / self.intra_node_bytes_per_s, outside / self.inter_node_bytes_per_s)
        if collective == "shift":
            slowest = self.intra_node_bytes_per_s if num_nodes == 1 else self.inter_node_bytes_per_s
            return 0.0 if world_size == 1 else payload / world_size / slowest
        inside = payload * (per_node - 1) / per_node / self.intra_node_bytes_per_s
        between = payload * (num_nodes - 1) / num_nodes / per_node / self.inter_node_bytes_per_s
        return max(inside, between) * (2 if collective == "all-reduce" else 1)


def sent_bytes(collective: Collective, payload: float, *, world_size: int) -> float:
    """Bytes that each rank sends, and receives, in one collective."""
    others = world_size - 1
    share = {"all-reduce": 2 * others, "shift": min(1, others), "all-to-all": others / world_size}.get(
        collective, others
    )
    return payload * share / world_size
