"""Counter-based randomness: a number is a function of its keys, so no generator state exists to save or lose.

One formula serves numpy on the host (data order, augmentation seeds) and torch on the device (patch dropout);
int64 arithmetic wraps identically in both. The mixer is the finaliser of SplitMix64 (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014, figure 16).
"""

from enum import IntEnum
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch  # only named here: commands that draw on the host start without it

Array = TypeVar("Array", np.ndarray, "torch.Tensor")


class Stream(IntEnum):
    """What a number is drawn for; first key after the seed, so that draws for different purposes are independent."""

    SHARD_ORDER = 1
    ROTATION = 2
    WINDOW = 3
    AUGMENT = 4
    CAPTION = 5
    PATCH_DROP = 6
    DROPOUT = 7
    TEMPLATE = 8
    SOURCE = 9


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as `value`."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_ALL_BITS = (1 << 64) - 1
_INCREMENT = _signed(0x9E3779B97F4A7C15)
_FACTOR_1 = _signed(0xBF58476D1CE4E5B9)
_FACTOR_2 = _signed(0x94D049BB133111EB)


def _shift(bits: Array, amount: int) -> Array:
    """Logical right shift; int64's own `>>` copies the sign bit, which the mask takes off again."""
    return (bits >> amount) & ((1 << (64 - amount)) - 1)


def _mix(bits: Array) -> Array:
    bits = (bits ^ _shift(bits, 30)) * _FACTOR_1
    bits = (bits ^ _shift(bits, 27)) * _FACTOR_2
    return bits ^ _shift(bits, 31)


def fold(bits: Array, *keys: Array | int) -> Array:
    """Hashes `bits` with further keys, one after the other; keys broadcast against `bits`.

    Args:
        bits: int64 array or tensor, any shape: the hash so far (`start` gives the first one).
        keys: ints or int64 arrays of the same kind.

    Returns:
        int64 of the broadcast shape, all 64 bits uniform.
    """
    for key in keys:
        bits = _mix((bits ^ key) + _INCREMENT)
    return bits


def start(seed: int, stream: Stream) -> np.ndarray:
    """The hash of (seed, purpose) on the host, shape (1,), to be folded with further keys."""
    # the seed is folded in, not started from: raw seeds that differ in a bit would meet other streams' hashes
    return fold(np.zeros(1, dtype=np.int64), _signed(seed), int(stream))


def key(seed: int, stream: Stream, *keys: int) -> int:
    """One non-negative 63-bit integer for scalar keys, fit to seed a generator: the top bits of `fold`'s hash.

    In plain Python, since it is called several times for every picture: numpy takes 48 us for an array of one element.
    """
    bits = 0
    for value in (seed, int(stream), *keys):
        bits = ((bits ^ value) + _INCREMENT) & _ALL_BITS
        bits = ((bits ^ (bits >> 30)) * _FACTOR_1) & _ALL_BITS
        bits = ((bits ^ (bits >> 27)) * _FACTOR_2) & _ALL_BITS
        bits ^= bits >> 31
    return bits >> 1


def uniform(bits: np.ndarray) -> np.ndarray:
    """Float64 in [0, 1) from the top 53 bits of each hash."""
    return _shift(bits, 11).astype(np.float64) * 2.0**-53


def permutation(bits: np.ndarray, length: int) -> np.ndarray:
    """A permutation of range(length) for each hash in `bits`.

    Sorting hashes gives every order with equal probability up to 64-bit collisions, and unlike numpy's Generator the
    result cannot change with numpy's version (its NEP 19 lets streams change).

    Args:
        bits: int64 (N,).
        length: elements to permute.

    Returns:
        int64 (N, length), each row a permutation.
    """
    return np.argsort(fold(bits[:, None], np.arange(length, dtype=np.int64)), axis=1, kind="stable")
