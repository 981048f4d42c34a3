"""Plans of whole runs: memory and pace by hand, phases, numbers of GPUs, and what a person sees."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from plan_assumptions import ASSUMPTIONS, CLUSTER, H100
from tiny import tiny_config
from typer.testing import CliRunner

from clipx.cli.plan import plan as plan_command
from clipx.config.geometry import micro_batch_sizes
from clipx.config.load import dump_config
from clipx.config.phases import phase_at
from clipx.config.schema import RunConfig
from clipx.distributed.parallelize import MEMORY_FRACTION, state_bytes
from clipx.errors import InputError
from clipx.losses.cost import LossShape
from clipx.losses.info_nce import InfoNCELoss
from clipx.plan.cluster import Cluster
from clipx.plan.communication import transfers
from clipx.plan.memory import CONTEXT_BYTES, plan_memory
from clipx.plan.model import PhaseModel
from clipx.plan.pace import Pace, plan_pace
from clipx.plan.run import make_plan

BATCH = 768


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("runs")
    return tiny_config(folder / "run", "none.tar", f"global_batch_size={BATCH}", "data.workers=auto", "precision=bf16")


@pytest.fixture(scope="module")
def model(config: RunConfig) -> PhaseModel:
    return PhaseModel(config, phase_at(config, 0), caption_tokens=8)


def pace_of(config: RunConfig, model: PhaseModel, cluster: Cluster = CLUSTER, *, world_size: int = 4) -> Pace:
    memory = plan_memory(config, model, gpu=cluster.gpu, world_size=world_size)
    moved = transfers(config, model, memory.geometry)
    return plan_pace(config, model, cluster=cluster, geometry=memory.geometry, memory=memory.parts, moved=moved)


def test_parts_are_what_the_search_for_a_micro_batch_reckons_with(config: RunConfig, model: PhaseModel) -> None:
    for settings in ("ddp", "fsdp2", "fsdp2 offload"):
        overrides = {"type": settings.split()[0]} | ({"cpu_offload": True} if "offload" in settings else {})
        other = tiny_config(
            Path(config.run_dir), "none.tar", f"global_batch_size={BATCH}", f"parallel={json.dumps(overrides)}"
        )
        parts = plan_memory(other, model, gpu=H100, world_size=4).parts
        state = state_bytes(
            model.objective.model,
            config=other.parallel,
            blocks=model.blocks(),
            world_size=4,
            extra_bytes=8 * model.num_parameters,
        )
        shape = LossShape(rank_batch_size=BATCH // 4, world_size=4, embed_dim=16, element_bytes=4)
        cost = InfoNCELoss().cost(shape)
        loss = cost.gathered_bytes + cost.working_bytes
        whole = 4 * model.num_parameters
        assert parts.total - parts.activations - whole == pytest.approx(state + loss, abs=4), settings
        assert parts.activations == model.pass_bytes(BATCH // 4)


def test_the_largest_micro_batch_that_fits_is_taken(config: RunConfig, model: PhaseModel) -> None:
    sizes = micro_batch_sizes(BATCH // 4)
    roomy = plan_memory(config, model, gpu=H100, world_size=4)
    beside = roomy.parts.total - roomy.parts.activations
    weights = 4 * model.num_parameters
    for size, larger in zip(sizes, [*sizes[1:], 2 * sizes[-1]], strict=True):
        for room in (model.pass_bytes(size) + 10, (model.pass_bytes(size) + model.pass_bytes(larger)) // 2):
            total = (beside + room - weights) / MEMORY_FRACTION + weights + CONTEXT_BYTES
            found = plan_memory(config, model, gpu=replace(H100, memory_bytes=round(total)), world_size=4)
            assert found.fits
            assert found.geometry.micro_batch_size == size
    tight = plan_memory(config, model, gpu=replace(H100, memory_bytes=CONTEXT_BYTES), world_size=4)
    assert (tight.fits, tight.geometry.micro_batch_size) == (False, 1)


def test_a_step_is_arithmetic_optimizer_and_what_nothing_hides(config: RunConfig, model: PhaseModel) -> None:
    pace = pace_of(config, model)
    speed = 0.5 * H100.bf16_flops
    assert pace.useful_s == pytest.approx(BATCH / 4 * model.work.useful / speed)
    assert pace.recomputed_s == 0
    assert pace.loss_s == pytest.approx(8 * BATCH / 4 * BATCH * 16 / speed)
    # 4 passes over gradients, and weights and two moments read and written
    assert pace.optimizer_s == pytest.approx((4 * 4 + 2 * 12) * model.num_parameters / H100.memory_bytes_per_s)
    gradients_s = 2 * 3 / 4 * 4 * model.num_parameters / 100e9
    of_loss_s = pace.communication_s - gradients_s
    assert pace.exposed_s == pytest.approx(of_loss_s + max(0, gradients_s - 2 / 3 * pace.useful_s))
    assert pace.step_s == pytest.approx(pace.useful_s + pace.loss_s + pace.optimizer_s + pace.exposed_s)
    assert pace.least_step_s <= pace.step_s <= pace.most_step_s
    assert pace.pairs_per_s == pytest.approx(BATCH / pace.step_s)
    alone = pace_of(config, model, world_size=1)
    assert alone.communication_s == alone.exposed_s == 0


@pytest.mark.parametrize(("parallel", "collective", "times"), [("ddp", "all-gather", 1), ("fsdp2", "all-to-all", 2)])
def test_muon_costs_its_products_on_the_busiest_gpu_and_what_is_sent(
    config: RunConfig, model: PhaseModel, parallel: str, collective: str, times: int
) -> None:
    settings = [f"global_batch_size={BATCH}", "precision=bf16", f"parallel.type={parallel}"]
    muon = tiny_config(Path(config.run_dir), "none.tar", *settings, "optim.type=muon")
    with_muon = PhaseModel(muon, phase_at(muon, 0), caption_tokens=8)
    # of both towers' only block: four matrices of 32 x 32 and two of 32 x 128
    matrices = 2 * (4 * 32 * 32 + 2 * 32 * 128)
    assert with_muon.optimizer_bytes == 4 * (2 * model.num_parameters - matrices)
    square, wide = (4 * 2 * 32 * 32 * (2 * width + 32) for width in (32, 128))
    pace = pace_of(muon, with_muon)
    assert pace.muon_flops == wide + 2 * square  # on 4 GPUs: each has one wide matrix, and two square ones
    assert pace.muon_s == pytest.approx(pace.muon_flops / (0.5 * H100.bf16_flops))
    (moved,) = [part for part in pace.communication if part.part == "matrices of Muon"]
    assert (moved.collective, moved.times) == (collective, times)
    assert moved.seconds == pytest.approx(times * CLUSTER.seconds(moved.collective, 2 * matrices, world_size=4))
    traffic = plan_memory(muon, with_muon, gpu=H100, world_size=4).parts
    moved_bytes = 4 * traffic.gradients + 2 * (traffic.weights + traffic.optimizer)
    assert pace.optimizer_s == pytest.approx(moved_bytes / H100.memory_bytes_per_s + pace.muon_s)
    assert pace_of(config, model).muon_flops == 0


def test_the_gradient_cache_costs_its_second_forward_passes(config: RunConfig, model: PhaseModel) -> None:
    forward = model.work.image_forward + model.work.text_forward
    pace = pace_of(replace(config, micro_batch_size=BATCH // 16), model)
    assert pace.recomputed_s == pytest.approx(BATCH / 4 * forward * 3 / 4 / (0.5 * H100.bf16_flops))


def test_float32_is_not_computed_on_tensor_cores(config: RunConfig, model: PhaseModel) -> None:
    bf16, fp32 = (pace_of(replace(config, precision=precision), model) for precision in ("bf16", "fp32"))
    assert fp32.useful_s == pytest.approx(bf16.useful_s * H100.bf16_flops / H100.fp32_flops)


def test_a_run_adds_up_its_phases(config: RunConfig) -> None:
    staged = tiny_config(
        Path(config.run_dir),
        "none.tar",
        f"global_batch_size={BATCH}",
        "stages={small: {until_step: 15, image_size: 16}}",
        "data.workers=2",
        "ema={}",
    )
    found = make_plan(staged, ASSUMPTIONS, world_size=4)
    small, full = found.asked.phases
    assert (small.first_step, small.phase.until, full.first_step, full.phase.until) == (0, 15, 15, 20)
    assert small.work.image_forward < full.work.image_forward
    # two processes a GPU load a thousand pictures a second each, far less than GPUs train on
    assert {part.limit for part in found.asked.phases} == {"loader"}
    assert small.pairs_per_s == full.pairs_per_s == 4 * 2 * 1000
    assert found.asked.days * 86400 == pytest.approx(20 * BATCH / 8000)
    assert found.asked.gpu_hours == pytest.approx(4 * 20 * BATCH / 8000 / 3600)
    assert found.asked.cost == pytest.approx(2 * found.asked.gpu_hours)
    assert full.loader.storage_bytes_per_s == pytest.approx(1000 * full.pace.pairs_per_s)
    weights = 4 * sum(full.parameters.values())
    assert found.asked.checkpoint.num_bytes == 4 * weights  # weights, moments, average
    # 768 = 3 x 256
    assert [run.world_size for run in found.others] == [8, 16, 32, 64, 128, 256]
    assert sorted(found.left_out) == [512, 1024]
    assert found.left_out[512].endswith("nearest that do: 384, 768")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--gpus", "7", "--gpu", "H100"], "--gpus 7 does not divide global_batch_size=768; nearest that do: 6, 8"),
        (["--gpus", "8", "--gpu", "H1000"], "--gpu H1000 is not known; nearest: H100"),
        (["--gpus", "8", "--gpu", "H100", "micro_batch_size=7"], "micro_batch_size=7 does not divide the 96 pairs"),
        (
            ["--gpus", "8", "--gpu", "H100", "stages={small: {until_step: 1, image_size: 20}}"],
            "stages.small.image_size=20 is no multiple of the image tower's patches",
        ),
    ],
)
def test_what_cannot_be_planned_is_said(arguments: list[str], problem: str, config: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(config))
    with pytest.raises(InputError, match=problem):
        CliRunner().invoke(command(), [str(file), *arguments], catch_exceptions=False, standalone_mode=False)


def test_figures_are_printed_and_written(config: RunConfig, tmp_path: Path) -> None:
    file, out = tmp_path / "run.yaml", tmp_path / "plan.json"
    file.write_text(dump_config(config))
    arguments = [str(file), "--gpus", "8", "--gpu", "a100-40gb", "--json", str(out), "--price-per-gpu-hour", "3"]
    result = CliRunner().invoke(command(), arguments, catch_exceptions=False)
    assert result.exit_code == 0
    written = json.loads(out.read_text())
    assert written["stated"]["cluster"]["gpu"]["name"] == "A100 40GB"
    asked = written["asked"]
    phase = asked["phases"][0]
    assert asked["gpu_hours"] == pytest.approx(8 * 24 * asked["days"])
    memory = phase["memory"]["parts"]
    assert sum(memory.values()) <= phase["memory"]["available"]
    for part in (
        "8 x A100 40GB of 40 GiB, 1 machine;",
        "all-reduce",
        "micro-batch",
        "GPU hours",
        "activations",
    ):
        assert part in result.output
    table = result.output.partition("On other numbers of GPUs")[2]
    assert "…" not in result.output
    assert " ".join(table.splitlines()[2].split()) == "GPUs pairs each at once GB waits pairs/s hours cost useful limit"
    assert [row["world_size"] for row in written["others"]] == [8, 16, 32, 64, 128, 256]


def command() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(plan_command)
    return app
