"""Checks the values of a config class, from a file or in Python, and says in lines for a person what is wrong.

`validated` makes the constructor of a config class check its arguments; `validate` makes one from a tree of plain
values, as YAML has them.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import ValidationError

from clipx.config.sections import ANY_NAME, Section, adapter, sections
from clipx.errors import InputError

Tree = dict[str, Any]
Keys = tuple[str, ...]
MAX_SHOWN = 100
"""Most characters of a value in an error message."""
MAX_NAMES = 10
"""Most names in an error message."""

T = TypeVar("T")


def validated(config_class: type[T]) -> type[T]:
    """Makes `config_class(...)`, and so `dataclasses.replace`, refuse what a config file could not say.

    Values are converted as those of a file (a list becomes a tuple). The decorator stands above `@dataclass`.
    """
    built: Callable[..., None] = config_class.__init__

    @functools.wraps(built)
    def check_and_build(self: T, **values: Any) -> None:
        _validate(config_class, values, instance=self)

    config_class.__init__ = check_and_build  # type: ignore[assignment]
    return config_class


def validate(config_class: type[T], tree: Tree) -> T:
    """The config of a tree of plain values.

    Raises:
        InputError: a rule is broken; the message has one line per problem, with key, value and rule.
    """
    config: T = _validate(config_class, tree)
    return config


def with_default_types(root: type, tree: Tree) -> Tree:
    """Writes the default `type` into the mappings of `tree` that do not have one, e.g. `loss: {tile_size: 512}`."""
    if not any(isinstance(value, dict) for value in tree.values()):
        return tree  # as those of the constructors are, most often: the sections need not be made
    for section in sections(root):
        if section.path and section.tag and section.is_default:
            node = _at(tree, section.path)
            if isinstance(node, dict) and "type" not in node:
                tree = _put(tree, section.path, {"type": section.tag, **node})
    return tree


@functools.cache
def is_one_value(root: type, path: Keys) -> bool:
    """Whether `path` is a mapping with free keys, e.g. a tower's options, which must not mix with another tower's."""
    knobs = (knob for section in sections(root) if section.holds(path[:-1]) for knob in section.knobs)
    return any(knob.name == path[-1] and "mapping" in knob.rule for knob in knobs)


def shared_keys(root: type, path: Keys, *, tags: tuple[Any, Any]) -> set[str]:
    """What two variants of the mapping at `path` have from one class: of optimizers the learning rate over time."""
    variants = [section for section in sections(root) if section.holds(path) and section.tag in tags]
    return set.intersection(*(set(section.inherited) for section in variants)) if len(variants) == len(tags) else set()


def _validate(root: type, tree: Tree, *, instance: Any = None) -> Any:
    """Fills the fields of `instance`, or makes one."""
    tree = with_default_types(root, tree)
    try:
        return adapter(root).validator.validate_python(tree, self_instance=instance)
    except ValidationError as error:
        explain = _Explainer(root, tree)
        lines = [explain(dict(item)) for item in error.errors(include_url=False)]
        raise InputError("\n".join(dict.fromkeys(lines))) from None


class _Explainer:
    """Makes the line for one of pydantic's errors: dotted key, value, rule."""

    def __init__(self, root: type, tree: Tree) -> None:
        self._root = root
        self._tree = tree

    def __call__(self, error: dict[str, Any]) -> str:
        if isinstance(cause := error.get("ctx", {}).get("error"), InputError):
            return str(cause)
        is_missing = error["type"] == "missing" and isinstance(error["loc"][-1], str)
        path = tuple(self._config_keys(error["loc"], is_missing=is_missing))
        if self._section_at(path[:-1]) is None:  # sections within such a mapping have rules of their own
            path = next((path[:end] for end in range(1, len(path)) if is_one_value(self._root, path[:end])), path)
        key = ".".join(path)
        if error["type"] == "unexpected_keyword_argument":
            return f"{key}={_shown(error['input'])}: unknown key{self._nearest_key(path)}"
        if is_missing:
            return f"{key} is missing: expected {self._rule_at(path)}"
        if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
            return self._explain_type(path)
        said = str(cause)  # by a validator that has a rule which the type does not say
        rule = said if said.startswith("expected ") else f"expected {self._rule_at(path)}"
        return f"{key}={_shown(_at(self._tree, path))}: {rule}"

    def _config_keys(self, location: Sequence[str | int], *, is_missing: bool) -> Iterator[str]:
        """The keys in pydantic's location, without its names of variants and union members and its list indices."""
        node: Any = self._tree
        for index, part in enumerate(location):
            is_the_missing = is_missing and index == len(location) - 1
            if isinstance(node, dict) and (part in node or is_the_missing):
                yield str(part)
                node = node.get(part)

    def _section_at(self, path: Sequence[str]) -> Section | None:
        """The section for the node at `path`; of several variants, the one that the node's `type` chooses."""
        variants = [section for section in sections(self._root) if section.holds(path)]
        node = _at(self._tree, path)
        tag = node.get("type") if isinstance(node, dict) else None
        return next((section for section in variants if section.tag == tag), variants[0] if variants else None)

    def _rule_at(self, path: Keys) -> str:
        section = self._section_at(path[:-1])
        knobs = section.knobs if section else ()
        return next((knob.rule for knob in knobs if knob.name == path[-1]), "a mapping of `key: value`")

    def _nearest_key(self, path: Keys) -> str:
        """A hint: the known key of this section most like the last of `path`, else the same name in another section."""
        *parents, name = path
        section = self._section_at(parents)
        beside = get_close_matches(name, section.keys if section else (), n=1)
        others = sections(self._root)
        elsewhere = (other for other in others if name in other.keys and ANY_NAME not in other.path)
        nearest = [(*parents, key) for key in beside] or [(*other.path, name) for other in elsewhere]
        if nearest:
            return f"; the nearest known is {'.'.join(nearest[0])}"
        if not section:
            return ""
        more = ", ..." if len(section.keys) > MAX_NAMES else ""
        return f"; known here: {', '.join(section.keys[:MAX_NAMES])}{more}"

    def _explain_type(self, path: Keys) -> str:
        tags = [str(section.tag) for section in sections(self._root) if section.holds(path)]
        if not isinstance(node := _at(self._tree, path), Mapping):  # in Python, a config of another part
            return f"{'.'.join(path)}={_shown(node)}: expected type {' or '.join(tags)}"
        key = ".".join((*path, "type"))
        given = node.get("type")
        if given is None:
            return f"{key} is missing: expected {' or '.join(tags)}"
        nearest = get_close_matches(str(given), tags, n=1)
        return f"{key}={given}: expected {' or '.join(tags)}" + (f"; the nearest is {nearest[0]}" if nearest else "")


def _put(tree: Tree, path: Keys, value: Any) -> Tree:
    """The tree with another value at `path`, which it has."""
    key, *rest = path
    return {**tree, key: _put(tree[key], tuple(rest), value) if rest else value}


def _at(tree: Any, path: Sequence[str]) -> Any:
    """The value at `path`, or None."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _shown(value: Any) -> str:
    """A value in one short line, strings without quotes."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 3] + "..."
