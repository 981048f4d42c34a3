"""What knobs exist: walks the dataclasses of `schema.py` for `clipx config --describe` and for error messages.

Types, limits and docstrings come from pydantic's JSON schema, so that they are written once, in `schema.py`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from textwrap import fill
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from clipx.config.field_types import NOT_BLANK
from clipx.config.optim import Optim
from clipx.config.schema import RunConfig

ANY_NAME = "NAME"
"""Stands for a key that the person chooses, as in `evaluate.NAME.data`."""

_WORDS = {"boolean": "true or false", "object": "mapping"}
_LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One value of the config."""

    name: str
    rule: str
    """Type and limits in words, e.g. `auto or integer >= 1`."""
    default: str | None
    """As YAML would say it; none: required."""
    doc: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """One mapping of the config whose keys are fixed; the variants of a union are a section each."""

    path: tuple[str, ...]
    """Keys that lead here from the top."""
    keys: tuple[str, ...]
    """All names that may stand here: knobs and inner sections."""
    knobs: tuple[Knob, ...]
    tag: str | None
    """Value of `type` that chooses this variant."""
    is_default: bool
    """Whether it stands when the config says nothing."""
    doc: str

    def holds(self, path: Sequence[str]) -> bool:
        """Whether a node at `path` of a config is described here (or by another variant of this section)."""
        pairs = zip(self.path, path, strict=False)
        return len(path) == len(self.path) and all(own in (ANY_NAME, part) for own, part in pairs)


@cache
def run_config_adapter() -> TypeAdapter[RunConfig]:
    """Pydantic's validator of a whole run."""
    return TypeAdapter(RunConfig)


@cache
def json_schema() -> dict[str, Any]:
    """JSON schema of a run's YAML file, for completion and checks in editors."""
    schema = run_config_adapter().json_schema()
    inherited = TypeAdapter(Optim).json_schema()["properties"]  # pydantic reads the docstrings of a class's own fields
    for optimizer in Optim.__subclasses__():
        for name, node in schema["$defs"][optimizer.__name__]["properties"].items():
            node.update(inherited.get(name, {}))
    return schema


@cache
def sections() -> tuple[Section, ...]:
    """Every section of a run, outer ones before those inside them; what all variants of a union hold comes once."""
    found: dict[tuple[tuple[str, ...], str | None], Section] = {}
    for section in _walk(RunConfig, path=(), is_default=True):
        found.setdefault((section.path, section.tag), section)
    return tuple(found.values())


def describe() -> str:
    """Every knob with its default, type and meaning, as text; each knob's line begins as an override would."""
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
        doc=" ".join(schema["description"].split()),
    )
    for item in fields(node):
        standing = item.default_factory() if item.default_factory is not MISSING else None
        place = (*path, item.name, ANY_NAME) if get_origin(hints[item.name]) is dict else (*path, item.name)
        for child in inner[item.name]:
            is_only = len(inner[item.name]) == 1 and ANY_NAME not in place
            yield from _walk(child, path=place, is_default=is_only or isinstance(standing, child))


def _inner_nodes(hint: Any) -> list[type]:
    """Dataclasses that may stand where `hint` is written: one, those of a union, or the values of a mapping."""
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
    """A JSON schema of one value in words."""
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
        fewest = f", at least {schema['minItems']}" if "minItems" in schema else ""
        return f"list of {_rule(schema['items'])}{fewest}"
    if "patternProperties" in schema:  # what pydantic makes of keys that must not be blank
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
            lines.append(f"{key}={'' if knob.default is None else knob.default}    ({_required(knob)}{knob.rule})")
            lines.append(_paragraph(knob.doc, indent=" " * 4, hanging=" " * 4))
    return "\n".join(lines)


def _required(knob: Knob) -> str:
    return "required; " if knob.default is None else ""


def _paragraph(text: str, *, indent: str, hanging: str) -> str:
    return fill(
        text,
        width=110,
        initial_indent=indent,
        subsequent_indent=hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
