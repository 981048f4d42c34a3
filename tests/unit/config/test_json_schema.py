"""The JSON schema says of a config file what clipx says: what loads is valid, also a part; what is refused is not."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from clipx.config.describe import json_schema
from clipx.config.load import dump_config, load_config
from clipx.config.schema import RunConfig
from clipx.config.sections import ANY_NAME, Section, sections
from clipx.config.validate import validate
from clipx.config.yaml_text import read_yaml
from clipx.errors import InputError

ROOT = Path(__file__).parents[3]
RUNS = [path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "suites"]
FILES = sorted([*RUNS, *(ROOT / "tests" / "golden" / "configs").glob("*.yaml")])
SCHEMA = jsonschema.Draft202012Validator(json_schema())
BASE = """
run_dir: runs/x
steps: 10
global_batch_size: 8
data: {train: [a.tar]}
model: {image: {name: vit_base_patch32_clip_224}}
evaluate: {pets: {type: zeroshot, data: pets}}
stages: {small: {until_step: 5}}
"""


def accepts(text: str) -> bool:
    return accepts_tree(read_yaml(text))


def accepts_tree(tree: Any) -> bool:
    return bool(SCHEMA.is_valid(tree))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_files_are_valid(path: Path) -> None:
    assert [error.message for error in SCHEMA.iter_errors(read_yaml(path.read_text()))] == []


PARTS = [
    "optim: {lr: 3e-4}",
    "optim: {type: stable_adamw}",
    "optim: {type: muon, iterations: 3}",
    "optim: {type: timm, name: lion, options: {betas: [0.9, 0.98]}}",
    "optim: {image: {locked_steps: all}, text: {lr_scale: 0.1}}",
    "loss: {tile_size: 512}",
    "loss: {type: sigmoid}\nmodel: {init_logit_bias: -10, init_logit_scale: 10}",
    "parallel: {timeout_s: 60}",
    "parallel: {type: fsdp2, cpu_offload: true}",
    "model: {text: {width: 256}}",
    "model: {text: {type: huggingface, name: roberta}}",
    "model: {image: {patch_drop: 0.5}}",
    "evaluate: {pets: {every_steps: 100}}",
    "evaluate: {coco: {type: retrieval, data: coco, caption_key: 'json:captions'}}",
    "stages: {small: {image_size: 112}}",
    "steps: null\nsamples: 1000",
    "data: {train: null, sources: {a: {shards: [a.tar], weight: 3, caption_key: {txt: 1, 'json:b': 3}}}}",
    "data: {caption_key: {'json:long': {sentence: 0.5, words: [8, 40]}, txt: 1}}",
    "data: {augment: {color_jitter: {}, crop_scale: [0.5, 1]}, cache: {folder: /scratch}, workers: auto}",
    "ema: {}\nspikes: {}\ncompile: true\nmicro_batch_size: auto",
    "ema: null\nspikes: null",
]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_loads_over_a_base_is_valid(part: str, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "part.yaml").write_text(part)
    config = load_config([tmp_path / "base.yaml", tmp_path / "part.yaml"])
    assert accepts(part)
    assert accepts(dump_config(config))


@pytest.mark.parametrize(
    "part",
    [
        "optim: {type: adam}",
        "optim: {type: adamw, name: lion}",
        "optim: {lr: fast}",
        "optim: {betas: [0.9]}",
        "loss: {tile: 512}",
        "loss: {type: sigmoid, tile_size: 0}",
        "parallel: {type: ddp, cpu_offload: true}",
        "model: {text: {type: huggingface, name: a, width: 3}}",
        "evaluate: {pets: {type: zeroshot, caption_key: txt}}",
        "data: {train: a.tar}",
        "data: {train: [{shards: a.tar}]}",
        "data: {train: []}",
        "data: {caption_key: {txt: {sentence: 2}}}",
        "data: {caption_key: {txt: {weights: 2}}}",
        "lr: 1",
        "steps: many",
        "steps: 0",
        "seed: true",
        "run_dir: ' '",
        "- steps",
    ],
)
def test_a_part_that_is_refused_is_not_valid(part: str, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "part.yaml").write_text(part)
    with pytest.raises(InputError):
        load_config([tmp_path / "base.yaml", tmp_path / "part.yaml"])
    assert not accepts(part)


def mappings() -> Iterator[Section]:
    return (section for section in sections(RunConfig) if section.path)


def name_of(section: Section) -> str:
    return ".".join((*section.path, section.tag or ""))


def within(section: Section, **values: Any) -> dict[str, Any]:
    """A file with these values in a section."""
    tree: Any = values if section.tag is None else {"type": section.tag, **values}
    for key in reversed(section.path):
        tree = {"anything" if key == ANY_NAME else key: tree}
    return copy.deepcopy(tree)


@pytest.mark.parametrize("section", mappings(), ids=name_of)
def test_every_section_knows_its_keys_and_no_other(section: Section) -> None:
    assert SCHEMA.is_valid(within(section))
    assert not SCHEMA.is_valid(within(section, no_such_key=1))
    for knob in section.knobs:
        if knob.rule not in ("mapping", "any value"):
            assert not SCHEMA.is_valid(within(section, **{knob.name: {"a": {"mapping": "of mappings"}}})), knob.name
        if knob.default is not None and knob.name != "type":
            assert SCHEMA.is_valid(within(section, **{knob.name: read_yaml(knob.default)})), knob.name


@pytest.mark.parametrize("section", sections(RunConfig), ids=name_of)
def test_every_value_is_refused_by_both_or_by_none(section: Section) -> None:
    for knob in (knob for knob in section.knobs if knob.name != "type"):
        key = ".".join((*section.path, knob.name)).replace(ANY_NAME, "anything")
        for value in (None, True, -1, 0.5, 1.5, 1000, "x", [], {}):
            part = within(section, **{knob.name: value})
            with pytest.raises(InputError) as error:  # at least, keys are missing
                validate(RunConfig, part)
            lines = str(error.value).splitlines()
            refused = any(line.startswith(f"{key}=") and ": expected " in line for line in lines)
            assert accepts_tree(part) is not refused, (knob.name, value)
