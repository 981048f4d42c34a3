"""Further columns of a batch, which the readers of an objective take from the members of each sample."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from clipx.data.captions import TextReader
from clipx.data.decode import UndecodableError
from clipx.data.sample_refs import SampleName, SampleRef
from clipx.errors import ClipxError, RunError
from clipx.types import Batch, axis_of, tensor_fields


@dataclass(frozen=True)
class ColumnSpec:
    """Dtype and shape of a column, beside the axis that comes first."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """What a column reader is given of a sample."""

    members: Mapping[str, bytes]
    """Content by extension, including the members of other readers."""
    texts: Sequence[str]
    """Its captions in this epoch, K of them."""
    ref: SampleRef
    """Where it stands in the run's order: another one once a shard is added."""
    name: Callable[[], SampleName]
    """Gives its shard and key, which stay the same; looked up on demand."""
    view: int | None = None
    """Which of the views that teachers saw this epoch shows (`clipx.data.teachers`); None without `data.teachers`."""


class ColumnReader(Protocol):
    """Reads columns of one sample."""

    @property
    def columns(self) -> Mapping[str, ColumnSpec]:
        """Its columns by name; the first letter after the last underscore is the axis: I, B or T (`clipx.types`)."""

    @property
    def extensions(self) -> frozenset[str]:
        """The members of a sample that it reads, e.g. `json`."""

    def read(self, sample: RawSample) -> Mapping[str, np.ndarray]:
        """The columns of one sample.

        Returns:
            Arrays whose first dimension is 1 (axis I), K (B) or the number of tokens of its captions (T).

        Raises:
            UndecodableError: the sample lacks the columns; it is bad, and the next good one replaces it.
        """


Images = Literal["needed", "optional", "unread"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an objective has read of every sample."""

    columns: Sequence[ColumnReader] = ()
    """Readers of further columns."""
    texts: TextReader | None = None
    """What gives the texts; None: the captions that the config describes."""
    images: Images = "needed"
    """needed: a sample without a picture is bad; optional: it has a black one; unread: no picture is read at all."""

    def image_size(self, size: int) -> int:
        """Pixels of an image's side in a batch, where the model takes `size`: 0 if none is read."""
        return 0 if self.images == "unread" else size


def check_columns(readers: Sequence[ColumnReader]) -> None:
    """Looks at the names of all columns before anything is read.

    Raises:
        RunError: a name has no axis, is a field of a batch, or is that of another column.
    """
    names = [name for reader in readers for name in reader.columns]
    for name in names:
        if axis_of(name) is None or name in tensor_fields(Batch) or names.count(name) > 1:
            raise RunError(
                f"column {name}: a column's name must end in _I, _B or _T, and be no other column's and no field of "
                f"Batch ({', '.join(sorted(tensor_fields(Batch)))}); give it another one"
            )


def read_columns(readers: Sequence[ColumnReader], sample: RawSample) -> dict[str, np.ndarray]:
    """The columns of one sample, if they are what their readers promised: batches of all ranks must be alike.

    Raises:
        UndecodableError: from a reader.
        ClipxError: from a reader that says itself what is wrong.
        RunError: a reader failed, or a name, a dtype or a shape is another one.
    """
    columns: dict[str, np.ndarray] = {}
    for reader in readers:
        try:
            values = reader.read(sample)
        except (UndecodableError, ClipxError):
            raise
        except Exception as error:
            shard, key = sample.name()[:2]
            raise RunError(f"{type(reader).__name__} failed at {key} of {shard} ({error!r}); mend it") from error
        if values.keys() != reader.columns.keys():
            raise RunError(f"{type(reader).__name__} gave {sorted(values)} and promised {sorted(reader.columns)}")
        for name, spec in reader.columns.items():
            columns[name] = value = values[name]
            rows = {"I": 1, "B": len(sample.texts)}.get(axis_of(name) or "", len(value) if value.ndim else 0)
            if (value.dtype, value.shape) != (spec.dtype, (rows, *spec.shape)):
                raise RunError(
                    f"column {name} of a sample is {value.dtype} of shape {value.shape} and must be {spec.dtype} of "
                    f"shape {(rows, *spec.shape)}; mend {type(reader).__name__}"
                )
    return columns


def blank_columns(readers: Sequence[ColumnReader], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Zeros instead of the readers' columns, for passes without data; `sizes` are the lengths along B, I and T."""
    return {
        name: torch.from_numpy(np.zeros((sizes[axis_of(name) or "B"], *spec.shape), spec.dtype))
        for reader in readers
        for name, spec in reader.columns.items()
    }
