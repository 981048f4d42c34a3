"""The shipped configs: each loads, says what it costs, and describes a model that can be built."""

import re
from pathlib import Path

import pytest

from clipx.config.fit import FitConfig
from clipx.config.geometry import resolve_geometry
from clipx.config.load import load_config
from clipx.config.model import TransformerTextConfig
from clipx.config.phases import check_stages, phase_at
from clipx.config.schema import RunConfig
from clipx.demo.product_table import COLUMNS

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
FINETUNE = sorted((Path(__file__).parents[2] / "configs" / "finetune").glob("*.yaml"))
FIT = sorted((Path(__file__).parents[2] / "configs" / "fit").glob("*.yaml"))
OVERLAYS = sorted((Path(__file__).parents[2] / "configs" / "overlays").glob("*.yaml"))
SHIPPED = {
    "tiny",
    "vit_b32_cc12m_8xh100",
    "vit_b16_datacomp_large_16xh100",
    "vit_l14_datacomp1b_64xh100",
    "vit_tiny_photos_cpu",
}


TO_TUNE = {"whole_model", "locked_image_tower", "frozen_encoders", "labelled_data"}


def test_all_presets_are_shipped() -> None:
    assert {path.stem for path in CONFIGS} >= SHIPPED
    assert {path.stem for path in FINETUNE} == TO_TUNE
    assert {path.stem for path in FIT} == {"products"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_loads(path: Path) -> None:
    config = load_config([path])
    assert config.num_steps > config.optim.warmup_steps
    assert config.run_dir.startswith("runs/")


@pytest.mark.parametrize("path", FINETUNE, ids=lambda path: path.stem)
def test_a_config_to_tune_with_says_what_it_begins_with_and_what_stays(path: Path) -> None:
    config = load_config([path], ["model.image.name=vit_base_patch32_clip_224"])  # instead of the one it begins with
    assert config.num_steps > config.optim.warmup_steps
    assert config.run_dir == f"runs/finetune_{path.stem}"
    frozen = {"locked_image_tower": {"image"}, "frozen_encoders": {"image", "text"}}.get(path.stem, set())
    assert {phase_at(config, step).locked for step in (0, config.num_steps - 1)} == {frozenset(frozen)}
    assert (config.start_from is None) == (path.stem == "frozen_encoders")
    if path.stem == "labelled_data":
        assert config.data.class_names
        assert config.data.templates
        assert config.data.equal_captions == "ignored"


@pytest.mark.parametrize("path", FIT, ids=lambda path: path.stem)
def test_a_config_to_fit_with_fits_the_generated_table(path: Path) -> None:
    config = load_config([path], ["encoder.image.name=vit_base_patch32_clip_224"])  # instead of the one it begins with
    assert isinstance(config, FitConfig)
    assert config.run_dir == f"runs/{path.stem}"
    columns = {*(column for _, column in config.input_columns()), *config.targets}
    assert columns == {*COLUMNS} - {"id"}
    assert config.keeps_features


def patch_size(config: RunConfig) -> int:
    image = config.model.image
    return image.options.get("patch_size") or int(re.search(r"patch(\d+)", image.name).group(1))  # type: ignore[union-attr]


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_overlay_fits_the_config_that_its_header_names(path: Path) -> None:
    match = re.search(r"configs/(\w+)\.yaml configs/overlays/(\w+)\.yaml", path.read_text())
    assert match is not None
    assert match.group(2) == path.stem
    base = load_config([path.parents[1] / f"{match.group(1)}.yaml"])
    config = load_config([path.parents[1] / f"{match.group(1)}.yaml", path])
    assert config != base
    check_stages(config)
    sizes = [phase_at(config, step).image_size for step in (0, config.num_steps - 1)]
    assert {size % patch_size(config) for size in sizes} == {0}


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_overlay_says_how_it_is_used_and_what_it_gave(path: Path) -> None:
    header = re.match(r"(#.*\n)+", path.read_text())
    assert header is not None
    commands = re.findall(r"#   launch/torchrun\.sh ((?:.*\\\n#)*.*)", header.group())
    for command in commands:
        words = re.sub(r"\\\n#", " ", command).split()
        files = [path.parents[2] / word for word in words if "=" not in word]
        assert load_config(files, [word for word in words if "=" in word]).num_steps
    assert commands
    assert "Gain:" in header.group()


@pytest.mark.parametrize("path", [*CONFIGS, *FINETUNE, *FIT], ids=lambda path: path.stem)
def test_header_says_command_hardware_time_and_score(path: Path) -> None:
    header = re.match(r"(#.*\n)+", path.read_text())
    assert header is not None
    for word in ("Command:", "Hardware:", "Time:", "Score:"):
        assert word in header.group()


@pytest.mark.parametrize("path", [path for path in CONFIGS if "xh100" in path.stem], ids=lambda path: path.stem)
def test_batch_divides_over_the_gpus_in_the_name(path: Path) -> None:
    config = load_config([path])
    match = re.search(r"_(\d+)xh100$", path.stem)
    assert match is not None
    geometry = resolve_geometry(config.global_batch_size, config.micro_batch_size, int(match.group(1)))
    assert geometry.num_micro_batches >= 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_image_tower_is_known_to_timm_and_fits_its_patches(path: Path) -> None:
    import timm

    config = load_config([path])
    assert timm.is_model(config.model.image.name)
    assert config.model.image.image_size % patch_size(config) == 0


def test_towers_have_the_sizes_of_their_names() -> None:
    sizes = {}
    for path in CONFIGS:
        config = load_config([path])
        assert isinstance(config.model.text, TransformerTextConfig)
        sizes[path.stem] = (config.model.embed_dim, config.model.text.width, config.model.text.heads)
    assert sizes["vit_b32_cc12m_8xh100"] == (512, 512, 8)
    assert sizes["vit_b16_datacomp_large_16xh100"] == (512, 512, 8)
    assert sizes["vit_l14_datacomp1b_64xh100"] == (768, 768, 12)
