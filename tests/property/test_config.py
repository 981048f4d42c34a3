"""Config, for any values: what is dumped loads back equal, by files and by overrides."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from clipx.config.data import DataConfig
from clipx.config.evaluate import HeldOutLossConfig, RetrievalConfig, ZeroShotConfig
from clipx.config.load import dump_config, load_config
from clipx.config.loss import SigmoidConfig
from clipx.config.model import ModelConfig, TimmImageConfig, TransformerTextConfig
from clipx.config.optim import AdamWConfig
from clipx.config.parallel import Fsdp2Config
from clipx.config.schema import RunConfig
from clipx.config.yaml_text import read_yaml, write_yaml

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20) | st.sampled_from(
    [
        "",
        "no",
        "on",
        "null",
        "~",
        "1e-3",
        "010",
        "1_000",
        "12:30",
        "2026-01-31",
        "0x1f",
        "<<",
        "a: b",
        "# c",
        "*x",
        "- a",
    ]
)
TEXTS = WORDS.filter(str.strip)
PATHS = TEXTS.filter(lambda text: not text.startswith("~") and "::~" not in text)  # that is the home folder
NAMES = st.from_regex(r"[\w-][\w.-]*", fullmatch=True)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
FRACTIONS = st.floats(0, 1)
DECAYS = st.floats(0, 1, exclude_max=True)
COUNTS = st.integers(1, 10**12)
SCALARS = st.none() | st.booleans() | st.integers() | FLOATS | WORDS
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=8
)
OPTIMS = st.builds(
    AdamWConfig,
    lr=st.floats(0, 10),
    betas=st.tuples(DECAYS, DECAYS),
    eps=st.floats(1e-30, 1),
    warmup_steps=st.integers(0, 10**9),
    clip_grad_norm=st.none() | st.floats(1e-9, 1e9),
)
MODELS = st.builds(
    ModelConfig,
    embed_dim=COUNTS,
    image=st.builds(TimmImageConfig, name=WORDS, options=st.dictionaries(WORDS, TREES, max_size=3)),
    text=st.builds(TransformerTextConfig, heads=st.sampled_from([1, 2, 4]), mlp_ratio=st.floats(0.1, 8)),
    init_logit_bias=FLOATS,
)
EVALUATIONS = st.one_of(
    st.builds(ZeroShotConfig, data=PATHS, split=TEXTS),
    st.builds(RetrievalConfig, data=PATHS, image_key=TEXTS),
    st.builds(HeldOutLossConfig, data=PATHS, pairs=st.none() | st.integers(2, 10**9)),
)
CONFIGS = st.builds(
    RunConfig,
    run_dir=PATHS,
    seed=st.integers(-(2**63), 2**63 - 1),
    steps=COUNTS,
    global_batch_size=st.integers(2, 10**9),
    micro_batch_size=st.just("auto") | COUNTS,
    data=st.builds(DataConfig, train=st.lists(PATHS, min_size=1, max_size=4), max_bad_fraction=FRACTIONS),
    model=MODELS,
    loss=st.builds(SigmoidConfig, tile_size=COUNTS),
    optim=OPTIMS,
    parallel=st.builds(Fsdp2Config, reshard_after_forward=st.booleans()),
    evaluate=st.dictionaries(NAMES, EVALUATIONS, max_size=3),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "config.yaml"


@settings(max_examples=150)
@given(config=CONFIGS)
def test_dumped_config_loads_back_equal(path: Path, config: RunConfig) -> None:
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config([path]) == config


@settings(max_examples=50)
@given(config=CONFIGS, optim=OPTIMS)
def test_override_of_a_section_equals_the_section(path: Path, config: RunConfig, optim: AdamWConfig) -> None:
    path.write_text(dump_config(config), encoding="utf-8")
    overrides = [f"optim.{name}={write_yaml(value)}" for name, value in asdict(optim).items()]
    assert load_config([path], overrides) == replace(config, optim=optim)


@settings(max_examples=300)
@given(value=TREES)
def test_yaml_reads_back_equal_here_and_elsewhere(value: Any) -> None:
    text = write_yaml(value)
    assert read_yaml(text) == value
    assert yaml.safe_load(text) == value
