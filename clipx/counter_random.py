"""Counter-based random numbers: a number is a function of its keys, so there is no generator state to save.

The same formula is used by numpy on the host (data order, augmentation seeds) and torch on the device (patch and slot
dropout); int64 arithmetic overflows identically in both. The mixer is the finaliser of SplitMix64 (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 16).
"""

from enum import IntEnum, unique
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch  # only for types: commands that draw on the host start without torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")


@unique  # or a second purpose of one value would be a name of the first
class Stream(IntEnum):
    """The purpose of a number: the first key after the seed, so that different purposes are independent."""

    SHARD_ORDER = 1
    ROTATION = 2
    WINDOW = 3
    AUGMENT = 4
    CAPTION = 5
    PATCH_DROP = 6
    DROPOUT = 7
    TEMPLATE = 8
    SOURCE = 9
    BOOTSTRAP = 10
    SHOTS = 11
    FOLD = 12
    HEAD_DROPOUT = 13
    ABSENT = 14
    SELECT = 15
    CAPTION_PART = 18
    TAUGHT_VIEW = 20
    DRAWN_VIEW = 21
    HELD_OUT = 31


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as `value`."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_ALL_BITS = (1 << 64) - 1
_INCREMENT = _signed(0x9E3779B97F4A7C15)
_FACTOR_1 = _signed(0xBF58476D1CE4E5B9)
_FACTOR_2 = _signed(0x94D049BB133111EB)


def _shift(bits: Array, amount: int) -> Array:
    """Logical right shift: int64's own `>>` copies the sign bit, which the mask removes."""
    return (bits >> amount) & ((1 << (64 - amount)) - 1)


def _mix(bits: Array) -> Array:
    bits = (bits ^ _shift(bits, 30)) * _FACTOR_1
    bits = (bits ^ _shift(bits, 27)) * _FACTOR_2
    return bits ^ _shift(bits, 31)


def fold(bits: Array, *keys: Array | int) -> Array:
    """Hashes `bits` with more keys, one after another; keys broadcast against `bits`.

    Args:
        bits: the hash until now, an int64 array or tensor of any shape (`start` makes the first one).
        keys: ints, or int64 arrays or tensors like `bits`.

    Returns:
        int64 of the broadcast shape; all 64 bits are uniform.
    """
    for key in keys:
        bits = _mix((bits ^ key) + _INCREMENT)
    return bits


def start(seed: int, stream: Stream) -> np.ndarray:
    """The hash of (seed, purpose) on the host, int64 (1,), to fold with more keys."""
    # The seed is a key and not the initial hash: seeds that differ in one bit would collide with other streams.
    return fold(np.zeros(1, dtype=np.int64), _signed(seed), int(stream))


def key(seed: int, stream: Stream, *keys: int) -> int:
    """A non-negative 63-bit integer for scalar keys, for example to seed a generator: the top bits of `fold`'s hash.

    It is plain Python, because it is called several times per image: numpy takes 48 us for an array of one element.
    """
    bits = 0
    for value in (seed, int(stream), *keys):
        bits = ((bits ^ value) + _INCREMENT) & _ALL_BITS
        bits = ((bits ^ (bits >> 30)) * _FACTOR_1) & _ALL_BITS
        bits = ((bits ^ (bits >> 27)) * _FACTOR_2) & _ALL_BITS
        bits ^= bits >> 31
    return bits >> 1


def keys(seed: int, stream: Stream, *values: np.ndarray) -> np.ndarray:
    """What `key` gives for each row of int64 arrays."""
    return _shift(fold(start(seed, stream), *values), 1)


def uniform(bits: np.ndarray) -> np.ndarray:
    """float64 numbers in [0, 1) from the top 53 bits of each hash."""
    return _shift(bits, 11).astype(np.float64) * 2.0**-53


def permutation(bits: np.ndarray, length: int) -> np.ndarray:
    """A permutation of range(length) for each hash in `bits`.

    It sorts hashes: every order has the same probability, up to 64-bit collisions. Unlike numpy's Generator the result
    cannot change with numpy's version (NEP 19 allows its streams to change).

    Args:
        bits: hashes, int64 (N,).
        length: number of elements to permute.

    Returns:
        int64 (N, length), each row a permutation.
    """
    return np.argsort(fold(bits[:, None], np.arange(length, dtype=np.int64)), axis=1, kind="stable")
