"""Text and JSON schema of all knobs: `clipx config --describe` and `--json-schema`."""

from textwrap import TextWrapper
from typing import Any

from clipx.config.fit import FitConfig
from clipx.config.schema import RunConfig
from clipx.config.sections import Section, class_schema, sections


def describe() -> str:
    """Text with every knob, its default, type and meaning; a knob's line begins like an override of it.

    First those of a pretraining run; then the sections of a fit run that are not the same there.
    """
    pretraining = sections(RunConfig)
    others = [section for section in sections(FitConfig) if section not in pretraining]
    texts = [_section_text(section) for section in pretraining]
    heading = _paragraph(f"# job=fit: {others[0].doc} What is not here is as above.", indent="", hanging="# ")
    return "\n\n".join([*texts, heading, *map(_section_text, others)])


def json_schema() -> dict[str, Any]:
    """The JSON schema of a YAML file that `load_config` takes, for completion and checks in editors.

    A file may be a part of a run's config, completed by other files and by overrides. So no key is required, and a
    mapping without `type` may be any of its variants. The key `job` decides which keys there are.
    """
    pretrain, fit = (dict(_partial(class_schema(root))) for root in (RunConfig, FitConfig))
    definitions = pretrain.pop("$defs") | fit.pop("$defs")  # what both have is the same class
    is_fit = {"properties": {"job": {"const": "fit"}}, "required": ["job"]}
    return {"$defs": definitions, "type": "object", "if": is_fit, "then": fit, "else": pretrain}


def _partial(node: Any) -> Any:
    """A JSON schema that also takes mappings with some of the keys."""
    if isinstance(node, list):
        return [_partial(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: _partial(value) for key, value in node.items() if key not in ("required", "discriminator")}
    if "discriminator" in node:  # of which one fits if `type` is there, and maybe several if not
        kept["anyOf"] = kept.pop("oneOf")
    return kept


def _section_text(section: Section) -> str:
    place = ".".join(section.path) or "the run"
    variant = f", type: {section.tag}{' (default)' if section.is_default else ''}" if section.tag else ""
    lines = [_paragraph(f"# {place}{variant}: {section.doc}", indent="", hanging="# ")]
    for knob in section.knobs:
        if knob.name != "type":
            key = ".".join((*section.path, knob.name))
            default, required = ("", "required; ") if knob.default is None else (knob.default, "")
            lines.append(f"{key}={default}    ({required}{knob.rule})")
            lines.append(_paragraph(knob.doc, indent=" " * 4, hanging=" " * 4))
    return "\n".join(lines)


def _paragraph(text: str, *, indent: str, hanging: str) -> str:
    lines = TextWrapper(width=110, break_long_words=False, break_on_hyphens=False)
    lines.initial_indent, lines.subsequent_indent = indent, hanging
    return lines.fill(text)
