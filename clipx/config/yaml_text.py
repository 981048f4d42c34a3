"""Reads and writes YAML with the scalar rules of YAML 1.2, on top of PyYAML, which has those of 1.1.

So `3e-4` is a number, `010` is ten, and `no`, `on`, `12:30` and `2026-01-31` are strings. A key that occurs twice in a
mapping is an error. The dumper quotes by the rules of both versions, so that its text reads back equal here and has the
same meaning for any other reader. What a stranger's few lines may grow to, by aliases of aliases, has a limit.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.events import AliasEvent

_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"

_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "merge": r"<<",
}
"""Pattern by tag; the first match wins (YAML 1.2.2, section 10.3.2; merge keys are those of 1.1)."""


_MAX_DEPTH = 64  # mappings and lists in each other; a config has less than ten
_MAX_REPEATED = 1_000_000  # characters and values by which aliases may make a text longer


class _Loader(yaml.SafeLoader):
    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._repeated = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """Composes like PyYAML, within limits."""
        event: Any = self.peek_event()
        is_alias, mark = isinstance(event, AliasEvent), event.start_mark
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ComposerError(None, None, f"more than {_MAX_DEPTH} values in each other", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and is_alias:
            self._repeated += self._sizes.get(node, _MAX_REPEATED)  # not composed yet: it is in itself
            if self._repeated >= _MAX_REPEATED:
                raise ComposerError(None, None, f"the alias {event.anchor!r} repeats too much", mark)
        elif node is not None:
            self._sizes[node] = _size(node, self._sizes)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Composes like PyYAML, but reads every plain key as a string, and refuses a key that occurs twice."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ComposerError(None, None, "a key must be one word", key.start_mark)
            if key.value in seen:
                raise ComposerError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
            if key.tag != _MERGE:
                key.tag = _TAG + "str"
        return node


def _size(node: yaml.Node, sizes: Mapping[yaml.Node, int]) -> int:
    """Characters and values of a node, in all that it holds."""
    if isinstance(node, yaml.MappingNode):
        return 1 + sum(sizes[key] + sizes[value] for key, value in node.value)
    return 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else sum(sizes[item] for item in node.value))


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Writes a value at each of its places, without anchors."""
        return True


def read_yaml(text: str) -> Any:
    """The value of YAML text.

    Raises:
        yaml.YAMLError: not YAML, more than one document, a key that occurs twice, or values in each other
            or repeated by aliases beyond all need.
    """
    return yaml.load(text, Loader=_Loader)


def write_yaml(value: Any) -> str:
    """YAML text of plain values: block style in the order given, lists of numbers on one line."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    try:
        return int(loader.construct_scalar(node))
    except ValueError as error:  # thousands of digits
        raise ConstructorError(None, None, "a number of too many digits", node.start_mark) from error


def _represent_list(dumper: yaml.SafeDumper, items: Any) -> yaml.SequenceNode:
    is_short = all(isinstance(item, int | float) for item in items)
    return dumper.represent_sequence(_TAG + "seq", items, flow_style=is_short)


_Loader.yaml_implicit_resolvers = {}  # removes the resolvers of YAML 1.1
for _name, _pattern in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), None)
_Loader.add_constructor(_TAG + "int", _construct_int)
for _type in (list, tuple):
    _Dumper.add_representer(_type, _represent_list)
