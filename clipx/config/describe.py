"""Lists all knobs, by walking the schema's dataclasses, for `clipx config --describe` and for error messages.

Types, limits and docstrings come from pydantic's JSON schema, so they are written once, in the dataclasses.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from textwrap import TextWrapper
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from clipx.config.field_types import NOT_BLANK
from clipx.config.optim import Optim
from clipx.config.schema import RunConfig

ANY_NAME = "NAME"
"""Placeholder for a key that the person chooses, for example in `evaluate.NAME.data`."""

_WORDS = {"boolean": "true or false", "object": "mapping"}
_LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One value of the config."""

    name: str
    rule: str
    """Type and limits in words, e.g. `auto or integer >= 1`."""
    default: str | None
    """The default in YAML; None means that the knob is required."""
    doc: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """One mapping of the config with fixed keys; each variant of a union is a section."""

    path: tuple[str, ...]
    """The keys from the top of the config to this mapping."""
    keys: tuple[str, ...]
    """All allowed names: knobs and inner sections."""
    knobs: tuple[Knob, ...]
    tag: str | None
    """The value of `type` that chooses this variant; None outside of unions."""
    is_default: bool
    """Whether this section is used if the config does not mention it."""
    doc: str

    def holds(self, path: Sequence[str]) -> bool:
        """Whether this section, or another variant of it, describes the node at `path` of a config."""
        pairs = zip(self.path, path, strict=False)
        return len(path) == len(self.path) and all(key in (ANY_NAME, part) for key, part in pairs)


@cache
def run_config_adapter() -> TypeAdapter[RunConfig]:
    """Pydantic's validator for the config of a run."""
    return TypeAdapter(RunConfig)


@cache
def json_schema() -> dict[str, Any]:
    """The JSON schema of a run's YAML file, for completion and checks in editors."""
    schema = run_config_adapter().json_schema()
    inherited = TypeAdapter(Optim).json_schema()["properties"]  # pydantic reads the docstrings of a class's own fields
    for optimizer in Optim.__subclasses__():
        for name, node in schema["$defs"][optimizer.__name__]["properties"].items():
            node.update(inherited.get(name, {}))
    return schema


@cache
def sections() -> tuple[Section, ...]:
    """All sections, outer ones before inner ones; a section inside of several variants of a union comes once."""
    unique: dict[tuple[tuple[str, ...], str | None], Section] = {}
    for section in _walk(RunConfig, path=(), is_default=True):
        unique.setdefault((section.path, section.tag), section)
    return tuple(unique.values())


def describe() -> str:
    """Text with every knob, its default, type and meaning; a knob's line begins like an override of it."""
    return "\n\n".join(_section_text(section) for section in sections())


def _walk(node: type, *, path: tuple[str, ...], is_default: bool) -> Iterator[Section]:
    hints = get_type_hints(node)
    inner = {item.name: _inner_nodes(hints[item.name]) for item in fields(node)}
    schema = json_schema()["$defs"][node.__name__] if path else json_schema()
    properties = schema["properties"]
    yield Section(
        path=path,
        keys=tuple(inner),
        knobs=tuple(_knob(item, properties[item.name]) for item in fields(node) if not inner[item.name]),
        tag=getattr(node, "type", None),
        is_default=is_default,
        doc=" ".join(schema.get("description", "").split()),  # python -OO drops docstrings
    )
    for item in fields(node):
        default = item.default_factory() if item.default_factory is not MISSING else None
        place = (*path, item.name, ANY_NAME) if get_origin(hints[item.name]) is dict else (*path, item.name)
        for child in inner[item.name]:
            is_only = len(inner[item.name]) == 1 and ANY_NAME not in place
            yield from _walk(child, path=place, is_default=is_only or isinstance(default, child))


def _inner_nodes(hint: Any) -> list[type]:
    """The dataclasses in a type hint: one, the members of a union, or the values of a mapping."""
    if is_dataclass(hint):
        return [hint] if isinstance(hint, type) else []
    return [node for part in get_args(hint) for node in _inner_nodes(part)]


def _knob(item: Field[Any], schema: dict[str, Any]) -> Knob:
    default = item.default_factory() if item.default_factory is not MISSING else item.default
    return Knob(
        name=item.name,
        rule=_rule(schema),
        default=None if default is MISSING else default if isinstance(default, str) else json.dumps(default),
        doc=" ".join(schema.get("description", "").split()),
    )


def _rule(schema: dict[str, Any]) -> str:
    """Describes the JSON schema of one value in words."""
    if "anyOf" in schema:
        return " or ".join(_rule(part) for part in schema["anyOf"])
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return " or ".join(schema["enum"])
    if "prefixItems" in schema:
        return f"[{', '.join(_rule(part) for part in schema['prefixItems'])}]"
    kind = schema.get("type", "any value")
    if kind == "array":
        minimum = f", at least {schema['minItems']}" if "minItems" in schema else ""
        return f"list of {_rule(schema['items'])}{minimum}"
    if "patternProperties" in schema:  # pydantic's schema of a mapping with keys that must not be blank
        return " or ".join(f"mapping to {_rule(value)}" for value in schema["patternProperties"].values())
    if schema.get("pattern") == NOT_BLANK:
        return f"{kind}, not blank"
    limits = [f"{sign} {schema[name]:g}" for name, sign in _LIMITS.items() if name in schema]
    return f"{_WORDS.get(kind, kind)} {' and '.join(limits)}".strip()


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
