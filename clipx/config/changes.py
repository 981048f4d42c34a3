"""What differs between two configs, key by key, for comparisons and for a person."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clipx.config.sections import as_tree
from clipx.printable import redacted

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Changes = dict[str, tuple[object, object]]
"""Values before and after by dotted key; None where there is none."""

_MAX_NAMED = 10


def changes_between(before: "DataclassInstance", after: "DataclassInstance") -> Changes:
    """The keys whose values differ; where a section is of two types, without the keys that one of them lacks."""
    old, new = _flat(redacted(as_tree(before))), _flat(redacted(as_tree(after)))
    changed = [key for key in {**new, **old} if old.get(key) != new.get(key)]
    both_have = [key for key in changed if key.endswith(".type") and key in old and key in new]
    retyped = tuple(key.removesuffix("type") for key in both_have)
    lacking = {key for key in changed if key.startswith(retyped) and (key not in old or key not in new)}
    # a mapping with free keys that was empty, or is now: its keys say it
    lacking |= {key for key in changed if {} in (old.get(key), new.get(key)) and (key not in old or key not in new)}
    return {key: (old.get(key), new.get(key)) for key in changed if key not in lacking}


def named(changes: Changes, prefix: str = "") -> str:
    """The changes in one line, at most ten of them."""
    listed = [f"{prefix}{key}: {old} -> {new}" for key, (old, new) in changes.items()]
    rest = f"; and {len(listed) - _MAX_NAMED} more" if len(listed) > _MAX_NAMED else ""
    return "; ".join(listed[:_MAX_NAMED]) + rest


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = tuple(value) if isinstance(value, list) else value
    return flat
