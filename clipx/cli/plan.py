"""`clipx plan`: estimates the memory, time and cost of a run before it starts."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from clipx.cli.config_files import ConfigArguments, load_arguments
from clipx.cli.early import require_outputs
from clipx.cli.output import FiguresFile, write_json

if TYPE_CHECKING:
    from clipx.plan.cluster import Cluster

_GB = 1e9


def plan(
    arguments: ConfigArguments,
    *,
    gpus: Annotated[int, typer.Option(min=1, help="How many GPUs.", show_default=False)],
    gpu: Annotated[str, typer.Option(metavar="NAME", help="Which, e.g. H100, A100-40GB, L40S.", show_default=False)],
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs of a machine.")] = 8,
    mfu: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the peak that arithmetic reaches.")] = 0.35,
    price_per_gpu_hour: Annotated[float | None, typer.Option(min=0, help="For the cost.")] = None,
    intra_node_gb_s: Annotated[
        float | None, typer.Option(min=0.001, help="One way, per GPU, in a machine; default: the data sheet's.")
    ] = None,
    inter_node_gb_s: Annotated[
        float | None,
        typer.Option(min=0.001, help="One way, per GPU, between machines; default: the maker's machines'."),
    ] = None,
    caption_tokens: Annotated[int, typer.Option(min=2, help="Mean tokens of a caption, start and end included.")] = 16,
    cpu_ms_per_picture: Annotated[
        float | None, typer.Option(min=0.001, help="Of a core, to load one; default: measured at 512 pixels.")
    ] = None,
    kb_per_sample: Annotated[
        float | None, typer.Option(min=0.001, help="In the shards; default: from their index, where it is here, or 60.")
    ] = None,
    write_gb_s: Annotated[float, typer.Option(min=0.001, help="Speed of the checkpoints' storage.")] = 1.0,
    json_file: FiguresFile = None,
) -> None:
    """Reckon memory, time and cost of a run, on GPUs that are not here.

    Nothing is computed; read are the config and, for how wide they are, the teachers in `data.teachers`.
    """
    from clipx.config.schema import require_pretraining
    from clipx.plan.gpus import check_gpus

    config = require_pretraining(load_arguments(arguments), "clipx plan")
    check_gpus(config, gpus)
    require_outputs({"--json": json_file})
    cluster = _cluster(
        gpu, gpus_per_node=gpus_per_node, mfu=mfu, intra_node_gb_s=intra_node_gb_s, inter_node_gb_s=inter_node_gb_s
    )
    from clipx.plan.loader import BYTES_PER_SAMPLE, CPU_MS, indexed_bytes
    from clipx.plan.report import print_plan
    from clipx.plan.run import Assumptions, make_plan

    assumptions = Assumptions(
        cluster=cluster,
        caption_tokens=caption_tokens,
        cpu_s=(cpu_ms_per_picture or CPU_MS[config.data.decode]) / 1e3,
        bytes_per_sample=1e3 * kb_per_sample if kb_per_sample else indexed_bytes(config) or BYTES_PER_SAMPLE,
        write_bytes_per_s=write_gb_s * _GB,
        price_per_gpu_hour=price_per_gpu_hour,
    )
    result = make_plan(config, assumptions, world_size=gpus)
    print_plan(result, assumptions)
    if json_file is not None:
        write_json(json_file, {"stated": asdict(assumptions), **asdict(result)})


def _cluster(
    gpu: str, *, gpus_per_node: int, mfu: float, intra_node_gb_s: float | None, inter_node_gb_s: float | None
) -> "Cluster":
    """The cluster of the options; the speed of links defaults to that of the GPU's data sheet."""
    from clipx.distributed.hardware import find_gpu

    kind = find_gpu(gpu)
    from clipx.plan.cluster import Cluster

    return Cluster(
        gpu=kind,
        gpus_per_node=gpus_per_node,
        mfu=mfu,
        intra_node_bytes_per_s=kind.link_bytes_per_s if intra_node_gb_s is None else intra_node_gb_s * _GB,
        inter_node_bytes_per_s=kind.network_bytes_per_s if inter_node_gb_s is None else inter_node_gb_s * _GB,
    )
