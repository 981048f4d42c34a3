"""Names of shards that stay the same wherever they lie and whatever other shards a run reads."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence

from clipx.config.paths import expand_home
from clipx.data.index.shard_index import base_name
from clipx.errors import RunError
from clipx.printable import redact, unsigned
from clipx.storage.files import is_local
from clipx.storage.remote import PIPE


def distinct_names(paths: Iterable[str]) -> list[str]:
    """For each shard the shortest end of its address, in whole names of folders, that no other of them has."""
    ends = [_ends(path) for path in paths]
    lengths = [1] * len(ends)
    while True:
        names = [named[min(length, len(named)) - 1] for named, length in zip(ends, lengths, strict=True)]
        counts = Counter(names)
        longer = [i for i, name in enumerate(names) if counts[name] > 1 and lengths[i] < len(ends[i])]
        if not longer:
            return names
        for i in longer:
            lengths[i] += 1


class StoredShards:
    """The shards of a store, found by the addresses that a run reads them from.

    Args:
        names: distinct ones, in the order of the store.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._numbers = {name: number for number, name in enumerate(self.names)}
        self._found: dict[str, int] = {}

    def find(self, path: str) -> int | None:
        """The number of the shard at an address; None if it is none of them."""
        return next((self._numbers[name] for name in _ends(path) if name in self._numbers), None)

    def number(self, path: str) -> int:
        """The number of the shard at an address.

        Raises:
            RunError: it is none of them.
        """
        number = self._found.get(path)
        if number is None:
            number = self.find(path)
            if number is None:
                raise RunError(f"shard {path} was not taught; run `clipx data teach` with all shards of the run")
            self._found[path] = number
        return number


def _ends(path: str) -> Sequence[str]:
    """The ends of an address, the shortest first: 0.tar, b/0.tar, a/b/0.tar."""
    if path.startswith(PIPE):
        return [base_name(path)]
    path = os.path.abspath(expand_home(path)) if is_local(path) else redact(unsigned(path))
    *folders, name = path.split("/")
    ends = [name]
    for folder in reversed(folders):
        ends.append(f"{folder}/{ends[-1]}")
    return ends
