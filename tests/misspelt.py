"""Every way to misspell one key of a YAML file, for tests of those who read it."""

import copy
from collections.abc import Iterator
from typing import Any

Path = tuple[str | int, ...]


def key_paths(tree: Any, path: Path = ()) -> Iterator[Path]:
    """The place of every key, at any depth."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        if isinstance(tree, dict):
            yield (*path, key)
        yield from key_paths(child, (*path, key))


def misspell(tree: Any, path: Path) -> Any:
    """A copy whose key at `path` has one letter too many."""
    wrong = copy.deepcopy(tree)
    node = wrong
    for key in path[:-1]:
        node = node[key]
    node[f"{path[-1]}x"] = node.pop(path[-1])
    return wrong
