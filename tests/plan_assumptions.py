"""What the tests of plans assume beside the config."""

from clipx.distributed.hardware import find_gpu
from clipx.plan.cluster import Cluster
from clipx.plan.run import Assumptions

H100 = find_gpu("H100")
CLUSTER = Cluster(gpu=H100, gpus_per_node=8, mfu=0.5, intra_node_bytes_per_s=100e9, inter_node_bytes_per_s=10e9)
ASSUMPTIONS = Assumptions(
    cluster=CLUSTER,
    caption_tokens=8,
    cpu_s=1e-3,
    bytes_per_sample=1000,
    write_bytes_per_s=1e9,
    price_per_gpu_hour=2.0,
)
