"""The description of the knobs: complete, and usable as it stands."""

from dataclasses import fields, is_dataclass

import pytest

from clipx.config import (
    captions,
    checkpoint,
    data,
    evaluate,
    fit,
    fit_data,
    fit_inputs,
    job,
    loss,
    model,
    optim,
    parallel,
    schema,
)
from clipx.config.describe import describe, json_schema
from clipx.config.fit import FitConfig
from clipx.config.schema import RunConfig
from clipx.config.sections import key_of, sections

CONFIG_CLASSES = {
    item
    for module in (
        captions,
        checkpoint,
        data,
        evaluate,
        fit,
        fit_data,
        fit_inputs,
        job,
        loss,
        model,
        optim,
        parallel,
        schema,
    )
    for name, item in vars(module).items()
    if name.endswith(("Config", "Input", "Target")) and is_dataclass(item) and item is not data.StreamConfig
}


def test_every_dataclass_of_the_schema_is_a_section() -> None:
    assert {section.keys for root in (RunConfig, FitConfig) for section in sections(root)} == {
        tuple(key_of(item.name) for item in fields(config_class)) for config_class in CONFIG_CLASSES
    }


def test_every_knob_is_documented() -> None:
    undocumented = [
        ".".join((*section.path, knob.name))
        for section in sections(RunConfig)
        for knob in section.knobs
        if not knob.doc and knob.name != "type"
    ]
    assert undocumented == []


@pytest.mark.parametrize(
    "line",
    [
        "run_dir=    (required; string, not blank)",
        "data.lanes=auto    (auto or integer >= 1)",
        "data.train=null    (list of string, not blank, at least 1 or null)",
        "model.image.options={}    (mapping)",
        "optim.betas=[0.9, 0.98]    ([number >= 0 and < 1, number >= 0 and < 1])",
        "optim.clip_grad_norm=1.0    (number > 0 or null)",
        "precision=bf16    (fp32 or bf16 or fp16 or fp8)",
        "evaluate.NAME.data=    (required; string, not blank)",
        "# loss, type: sigmoid: Pairwise sigmoid loss (SigLIP, arXiv 2303.15343); wants model.init_logit_bias: -10 and",
    ],
)
def test_line_of_the_description(line: str) -> None:
    assert line in describe().splitlines()


def test_default_variants_are_marked() -> None:
    marked = {section.path: section.tag for section in sections(RunConfig) if section.is_default and section.tag}
    assert marked[("loss",)] == "info_nce"
    assert marked[("parallel",)] == "ddp"
    assert marked[("model", "text")] == "transformer"
    assert ("evaluate", "NAME") not in marked


def test_json_schema_forbids_unknown_keys_and_carries_docstrings() -> None:
    tree = json_schema()
    for kind in ("then", "else"):
        assert tree[kind]["additionalProperties"] is False
        assert tree[kind]["properties"]["run_dir"]["description"] == "Folder of everything that the run writes."
    assert all(node["additionalProperties"] is False for node in tree["$defs"].values())
