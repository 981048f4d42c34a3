"""Further columns of a batch, which the readers of an objective take from the members of each sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from clipx.data.sample_refs import SampleRef
from clipx.errors import RunError
from clipx.types import axis_of


@dataclass(frozen=True)
class ColumnSpec:
    """Dtype and shape of a column, beside the axis that comes first."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()


class ColumnReader(Protocol):
    """Reads columns of one sample."""

    @property
    def columns(self) -> Mapping[str, ColumnSpec]:
        """Its columns by name; the first letter after the last underscore is the axis: I, B or T (`clipx.types`)."""

    @property
    def extensions(self) -> frozenset[str]:
        """The members of a sample that it reads, e.g. `json`."""

    def read(self, members: Mapping[str, bytes], ref: SampleRef, texts: Sequence[str]) -> Mapping[str, np.ndarray]:
        """The columns of one sample.

        Args:
            members: content of the sample's members by extension, including those of other readers.
            ref: the sample and its epoch.
            texts: its captions in this epoch.

        Returns:
            Arrays whose first dimension is 1 (axis I), the number of captions (B) or of all their tokens (T).

        Raises:
            UndecodableError: the sample lacks the columns; it is bad, and the next good one replaces it.
        """


def blank_columns(readers: Sequence[ColumnReader], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Zeros instead of the readers' columns, for passes without data.

    Args:
        readers: of the objective.
        sizes: lengths along B, I and T.
    """
    specs = {name: spec for reader in readers for name, spec in reader.columns.items()}
    return {
        name: torch.from_numpy(np.zeros((sizes[axis_of(name) or "B"], *spec.shape), spec.dtype))
        for name, spec in specs.items()
    }


def checked_columns(columns: Mapping[str, np.ndarray], specs: Mapping[str, ColumnSpec]) -> Mapping[str, np.ndarray]:
    """Returns the columns if they are what their reader promised: batches of all ranks must be alike.

    Raises:
        RunError: a name, dtype or shape differs.
    """
    if columns.keys() != specs.keys():
        raise RunError(f"a column reader gave {sorted(columns)} and promised {sorted(specs)}; mend the reader")
    for name, spec in specs.items():
        value = columns[name]
        if (value.dtype, value.shape[1:]) != (spec.dtype, spec.shape):
            raise RunError(
                f"column {name} is {value.dtype} of shape {value.shape} and must be {spec.dtype} of shape "
                f"{('n', *spec.shape)}; mend its reader"
            )
    return columns


def check_lengths(columns: Mapping[str, np.ndarray], lengths: Mapping[str, int]) -> None:
    """Checks the lengths of the columns of a batch.

    Args:
        columns: by name.
        lengths: along I, B and T.

    Raises:
        RunError: a column without an axis in its name, or with more or fewer rows than the axis has.
    """
    for name, column in columns.items():
        axis = axis_of(name)
        if axis is None or len(column) != lengths[axis]:
            images, pairs, tokens = (lengths[letter] for letter in "IBT")
            raise RunError(
                f"column {name} has {len(column)} rows, for {images} images, {pairs} captions and {tokens} tokens; its "
                "name must end in _I, _B or _T, and its reader give one row for each of these"
            )
