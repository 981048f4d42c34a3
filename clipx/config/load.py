"""Reads YAML files and `key=value` overrides into one validated `RunConfig`, and writes it back as text.

Layers merge from left to right: mappings merge key by key, any other value replaces the earlier one. The result is
validated once.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from functools import cache, reduce
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from clipx.config.describe import ANY_NAME, Section, run_config_adapter, sections
from clipx.config.schema import RunConfig
from clipx.config.yaml_text import read_yaml, write_yaml
from clipx.errors import InputError

Tree = dict[str, Any]
Keys = tuple[str, ...]
MAX_SHOWN = 100
"""Most characters of a value in an error message."""


def load_config(files: Sequence[Path | str], overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a run: the files merged from left to right, then changed by the overrides.

    If a mapping's `type` changes, the mapping is replaced, so that no field of the other variant remains; mappings with
    free keys (model.image.options) are always replaced. Overrides form one layer: their order does not matter, except
    that the later of two for the same key wins.

    Args:
        files: YAML files, at least one.
        overrides: `key.sub=value`, the value in YAML (`optim.lr=3e-4`, `data.train=[a.tar, b.tar]`).

    Raises:
        InputError: a file is missing or is not a YAML mapping, an override has no `=`, or the config breaks a rule, in
            which case the message has one line per problem, with key, value and rule.
    """
    if not files:
        raise InputError("no config file given: name at least one .yaml file")
    layers = [_read_file(Path(file)) for file in files]
    layers.append(reduce(_merge, map(_read_override, overrides), {}))
    return _validate(reduce(lambda tree, layer: _merge(_with_default_types(tree), layer), layers, {}))


def dump_config(config: RunConfig) -> str:
    """YAML of every value in the order of the schema; `load_config` reads it into an equal config."""
    return write_yaml(asdict(config))


def _read_file(path: Path) -> Tree:
    try:
        value = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read the config file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a YAML file: byte {error.start} is not UTF-8") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}{_place(error)}: not valid YAML: {_problem(error)}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{path}: the top level is a {type(value).__name__}; a config is a mapping of `key: value`")
    return value


def _read_override(text: str) -> Tree:
    key, equals, value = text.partition("=")
    *parents, name = key.split(".")
    if not equals or not all((*parents, name)):
        raise InputError(f"{text!r}: an override is key=value, e.g. optim.lr=3e-4")
    try:
        tree: Tree = {name: _read_value(value)}
    except yaml.YAMLError as error:
        raise InputError(f"{text!r}: the value is not valid YAML ({_problem(error)}); put it in quotes") from error
    for end in range(1, len(parents) + 1):
        if _is_one_value(tuple(parents[:end])):
            parent = ".".join(parents[:end])
            raise InputError(f"{text!r}: {parent} is one value; give it whole, as {parent}={{key: value}}")
    return _nested(parents, tree)


def _read_value(text: str) -> Any:
    """The value of YAML; plain text as it stands, though YAML would drop what follows ` #` and join lines."""
    value = read_yaml(text)
    is_plain = isinstance(value, str) and not text.lstrip().startswith(("'", '"', "|", ">", "&", "!"))
    is_folded = "\n" in text.strip() and value == " ".join(text.split())
    return text.strip() if is_plain and (" #" in text or is_folded) else value


@cache
def _is_one_value(path: Keys) -> bool:
    """Whether `path` is a mapping with free keys, e.g. a tower's options, which must not mix with another tower's."""
    knobs = (knob for section in sections() if section.holds(path[:-1]) for knob in section.knobs)
    return any(knob.name == path[-1] and "mapping" in knob.rule for knob in knobs)


def _nested(path: Sequence[str], tree: Tree) -> Tree:
    """A tree with `tree` at `path` and nothing else."""
    return reduce(lambda inner, key: {key: inner}, reversed(path), tree)


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark else ""


def _problem(error: yaml.YAMLError) -> str:
    """PyYAML's message in one line, without its excerpt of the file."""
    return getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]


def _merge(below: Tree, above: Tree, path: Keys = ()) -> Tree:
    """Merges two trees, which are at `path`, into a new one: values of `above` win.

    Mappings merge, unless their types differ or their keys are free.
    """
    if "type" in below and above.get("type", below["type"]) != below["type"]:
        return above
    merged = dict(below)
    for key, value in above.items():
        old, key_path = below.get(key), (*path, key)
        if isinstance(old, dict) and isinstance(value, dict) and not _is_one_value(key_path):
            merged[key] = _merge(old, value, key_path)
        else:
            merged[key] = value
    return merged


def _with_default_types(tree: Tree) -> Tree:
    """Writes the default `type` into the mappings of `tree` that do not have one, e.g. `loss: {tile_size: 512}`."""
    defaults = [section for section in sections() if section.tag and section.is_default]
    for section in defaults:
        node = _at(tree, section.path)
        if isinstance(node, dict) and "type" not in node:
            tree = _merge(tree, _nested(section.path, {"type": section.tag}))
    return tree


def _at(tree: Any, path: Sequence[str]) -> Any:
    """The value at `path`, or None."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _validate(tree: Tree) -> RunConfig:
    tree = _with_default_types(tree)
    try:
        return run_config_adapter().validate_python(tree)
    except ValidationError as error:
        lines = [_explain(dict(item), tree) for item in error.errors(include_url=False)]
        raise InputError("\n".join(dict.fromkeys(lines))) from None


def _explain(error: dict[str, Any], tree: Tree) -> str:
    """The line for one of pydantic's errors: dotted key, value, rule."""
    if isinstance(cause := error.get("ctx", {}).get("error"), InputError):
        return str(cause)
    is_missing = error["type"] == "missing" and isinstance(error["loc"][-1], str)
    path = tuple(_config_keys(error["loc"], tree, is_missing=is_missing))
    path = next((path[:end] for end in range(1, len(path)) if _is_one_value(path[:end])), path)
    key = ".".join(path)
    if error["type"] == "unexpected_keyword_argument":
        return f"{key}={_shown(error['input'])}: unknown key{_nearest_key(path, tree)}"
    if is_missing:
        return f"{key} is missing: expected {_rule_at(path, tree)}"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return _explain_type(path, tree)
    return f"{key}={_shown(_at(tree, path))}: expected {_rule_at(path, tree)}"


def _config_keys(location: Sequence[str | int], tree: Tree, *, is_missing: bool) -> Iterator[str]:
    """The keys in pydantic's location, without its names of variants and union members and its list indices."""
    node: Any = tree
    for index, part in enumerate(location):
        is_the_missing = is_missing and index == len(location) - 1
        if isinstance(node, dict) and (part in node or is_the_missing):
            yield str(part)
            node = node.get(part)


def _section_at(path: Sequence[str], tree: Tree) -> Section | None:
    """The section for the node at `path`; of several variants, the one that the node's `type` chooses."""
    variants = [section for section in sections() if section.holds(path)]
    node = _at(tree, path)
    tag = node.get("type") if isinstance(node, dict) else None
    return next((section for section in variants if section.tag == tag), variants[0] if variants else None)


def _rule_at(path: Keys, tree: Tree) -> str:
    section = _section_at(path[:-1], tree)
    knobs = section.knobs if section else ()
    return next((knob.rule for knob in knobs if knob.name == path[-1]), "a mapping of `key: value`")


def _nearest_key(path: Keys, tree: Tree) -> str:
    """A hint: the known key of this section most like the last of `path`, else the same name in another section."""
    *parents, name = path
    section = _section_at(parents, tree)
    beside = get_close_matches(name, section.keys if section else (), n=1)
    elsewhere = (other for other in sections() if name in other.keys and ANY_NAME not in other.path)
    nearest = [(*parents, key) for key in beside] or [(*other.path, name) for other in elsewhere]
    if nearest:
        return f"; the nearest known is {'.'.join(nearest[0])}"
    return f"; known here: {', '.join(section.keys)}" if section else ""


def _explain_type(path: Keys, tree: Tree) -> str:
    tags = [str(section.tag) for section in sections() if section.holds(path)]
    key = ".".join((*path, "type"))
    given = _at(tree, (*path, "type"))
    if given is None:
        return f"{key} is missing: expected {' or '.join(tags)}"
    nearest = get_close_matches(str(given), tags, n=1)
    return f"{key}={given}: expected {' or '.join(tags)}" + (f"; the nearest is {nearest[0]}" if nearest else "")


def _shown(value: Any) -> str:
    """A value in one short line, strings without quotes."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 3] + "..."
