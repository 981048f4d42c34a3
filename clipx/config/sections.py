"""The keys of a config class, by walking its dataclasses: `Section` for each mapping, `Knob` for each value.

Types, limits and docstrings come from pydantic's JSON schema, so they are written once, in the dataclasses.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from clipx.config.field_types import NOT_BLANK

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

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
    inherited: tuple[str, ...]
    """Those of them that come from a class which variants have in common, as `clipx.config.optim.Optim`."""
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


def key_of(field_name: str) -> str:
    """The key of a field in YAML; fields whose key is a word of Python end in _ (`from_`)."""
    return field_name.removesuffix("_")


def as_tree(config: "DataclassInstance") -> dict[str, Any]:
    """A config as plain values by key, as a YAML file has them."""
    return asdict(config, dict_factory=lambda items: {key_of(name): value for name, value in items})


@cache
def adapter(root: type) -> TypeAdapter[Any]:
    """Pydantic's validator of a config class."""
    return TypeAdapter(root)


@cache
def class_schema(root: type) -> dict[str, Any]:
    """Pydantic's JSON schema of a config class, with the docstrings of inherited fields."""
    schema = adapter(root).json_schema()
    for node in {child for child in _classes(root) if child is not root}:
        _add_inherited(node, schema["$defs"][node.__name__])
    _add_inherited(root, schema)
    return schema


@cache
def sections(root: type) -> tuple[Section, ...]:
    """All sections, outer ones before inner ones; a section inside of several variants of a union comes once."""
    unique: dict[tuple[tuple[str, ...], str | None], Section] = {}
    for section in _walk(root, root, path=(), is_default=True):
        unique.setdefault((section.path, section.tag), section)
    return tuple(unique.values())


def _add_inherited(node: type, schema: dict[str, Any]) -> None:
    """Pydantic reads the docstrings of a class's own fields only."""
    for base in node.__mro__[1:]:
        if is_dataclass(base):
            for name, inherited in adapter(base).json_schema()["properties"].items():
                schema["properties"][name] = {**inherited, **schema["properties"][name]}


def _classes(node: type) -> Iterator[type]:
    """The dataclass and all in it."""
    yield node
    hints = get_type_hints(node)
    for item in fields(node):
        for child in _inner_nodes(hints[item.name]):
            yield from _classes(child)


def _walk(node: type, root: type, *, path: tuple[str, ...], is_default: bool) -> Iterator[Section]:
    hints = get_type_hints(node)
    items = fields(node)
    inner = {item.name: _inner_nodes(hints[item.name]) for item in items}
    schema = class_schema(root)["$defs"][node.__name__] if path else class_schema(root)
    properties = schema["properties"]
    yield Section(
        path=path,
        keys=tuple(map(key_of, inner)),
        inherited=tuple(key_of(item.name) for base in node.__mro__[1:] if is_dataclass(base) for item in fields(base)),
        knobs=tuple(
            _knob(item, properties[key_of(item.name)])
            for item in items
            if not inner[item.name] or _is_value(hints[item.name])
        ),
        tag=getattr(node, "type", None),
        is_default=is_default,
        doc=" ".join(schema.get("description", "").split()),  # python -OO drops docstrings
    )
    for item in items:
        default = item.default_factory() if item.default_factory is not MISSING else None
        hint = hints[item.name]
        place = (*path, item.name, ANY_NAME) if get_origin(hint) is dict or _is_value(hint) else (*path, item.name)
        for child in inner[item.name]:
            is_only = len(inner[item.name]) == 1 and ANY_NAME not in place
            yield from _walk(child, root, path=place, is_default=is_only or isinstance(default, child))


def _inner_nodes(hint: Any) -> list[type]:
    """The dataclasses in a type hint: one, the members of a union, or the values of a mapping."""
    if is_dataclass(hint):
        return [hint] if isinstance(hint, type) else []
    return [node for part in get_args(hint) for node in _inner_nodes(part)]


def _is_value(hint: Any) -> bool:
    """Whether a field with sections in it is a value as well: a string instead, as data.caption_key may be."""
    return get_origin(hint) in (Union, UnionType) and str in get_args(hint)


def _knob(item: Field[Any], schema: dict[str, Any]) -> Knob:
    default = item.default_factory() if item.default_factory is not MISSING else item.default
    return Knob(
        name=key_of(item.name),
        rule=_rule(schema),
        default=None if default is MISSING else default if isinstance(default, str) else json.dumps(default),
        doc=" ".join(schema.get("description", "").split()),
    )


def _rule(schema: dict[str, Any]) -> str:
    """Describes the JSON schema of one value in words."""
    if variants := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_rule(part) for part in variants)
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return " or ".join(schema["enum"])
    if "prefixItems" in schema:
        return f"[{', '.join(_rule(part) for part in schema['prefixItems'])}]"
    kind = schema.get("type", "mapping" if "$ref" in schema else "any value")
    if kind == "array":
        minimum = f", at least {schema['minItems']}" if "minItems" in schema else ""
        return f"list of {_rule(schema['items'])}{minimum}"
    if "patternProperties" in schema:  # pydantic's schema of a mapping with keys that must not be blank
        return " or ".join(f"mapping to {_rule(value)}" for value in schema["patternProperties"].values())
    if schema.get("pattern") == NOT_BLANK:
        return f"{kind}, not blank"
    limits = [f"{sign} {schema[name]:g}" for name, sign in _LIMITS.items() if name in schema]
    return f"{_WORDS.get(kind, kind)} {' and '.join(limits)}".strip()
