"""What an index leaves out: conditions on captions, pictures and fields, lists of keys, duplicates."""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np


@dataclass(frozen=True, eq=False)
class FilterResult:
    """What a filter says of the N samples of a shard."""

    filter_id: int
    """Names the filter; 0 is none."""
    reasons: np.ndarray
    """uint8 (N,): 0 passes, else the number of the reason, from 1 on."""
    hashes: np.ndarray | None
    """uint64 (N,), equal for samples that are duplicates; None if the filter does not look for these."""


def filter_id(text: str) -> int:
    """A number for the text of a filter, 0 for none."""
    return int.from_bytes(sha256(text.encode()).digest()[:7], "little") + 1 if text else 0
