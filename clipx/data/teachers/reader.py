"""Teachers' embeddings of the drawn views and captions, as columns of a batch."""

import resource
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipx.data.columns import ColumnSpec, RawSample
from clipx.data.decode import UndecodableError
from clipx.data.teacher_columns import image_column, text_column
from clipx.data.teachers.description import LEFT_OUT, Description, shard_file
from clipx.data.teachers.names import StoredShards
from clipx.data.teachers.shard_file import ShardFile
from clipx.errors import RunError
from clipx.storage.failures import hint

_MAX_OPEN = 1024  # files that are mapped at once; a loader process reads as many as it has lanes
# Of the descriptors. A mapped file keeps one; shards may take two thirds of them (`ShardReader`), and a run may have
# two readers of teachers, one for its loss and one for the pairs that it chooses.
_SHARE = 12


class TeacherColumns:
    """Reads the embeddings of some teachers, float32 of unit length, from a store.

    A sample that could not be taught is bad, as its picture or caption could not be read.

    Args:
        folder: of the store.
        description: what it holds.
        names: of the teachers.
    """

    extensions: frozenset[str] = frozenset()
    """Nothing is read from the shards."""

    def __init__(self, folder: Path, description: Description, names: Sequence[str]) -> None:
        self._folder, self._description = folder, description
        all_names = [teacher.name for teacher in description.teachers]
        self._wanted = [(name, all_names.index(name)) for name in names]
        self._dims = [teacher.dim for teacher in description.teachers]
        self._shards = StoredShards([shard.name for shard in description.shards])
        self._open: OrderedDict[int, ShardFile] = OrderedDict()  # the one that was used last at the end
        self.columns = {
            column(name): ColumnSpec(np.dtype(np.float32), (self._dims[number],))
            for name, number in self._wanted
            for column in (image_column, text_column)
        }
        """By name."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def read(self, sample: RawSample) -> Mapping[str, np.ndarray]:
        """See `clipx.data.columns.ColumnReader`.

        Raises:
            UndecodableError: the sample could not be taught.
            RunError: the shard, the sample or a text was not taught, or its file is damaged.
        """
        assert sample.view is not None, "a run with teachers draws views"
        path, key = sample.name()[:2]
        number = self._shards.number(path)
        file = self._file(number)
        row = file.row(key)
        if row is None:
            raise RunError(f"sample {key} of {path} was not taught; the shard is another one now: teach it again")
        if row < 0:
            raise UndecodableError(f"has no teachers' embeddings; why, says {self._folder / LEFT_OUT}")
        places = [place for place in file.places(row, sample.texts) if place is not None]
        if len(places) < len(sample.texts):
            raise RunError(
                f"a text of sample {key} of {path} was not taught: {sample.texts[0][:80]!r}; teachers know the "
                "captions that the shard had under its caption keys: teach them again"
            )
        columns: dict[str, np.ndarray] = {}
        try:
            for name, teacher in self._wanted:
                columns[image_column(name)] = file.image(teacher, row, sample.view)
                columns[text_column(name)] = file.texts(teacher, places)
        except ValueError as error:
            raise self._damaged(number, error) from error
        return columns

    def _file(self, number: int) -> ShardFile:
        file = self._open.pop(number, None)  # a thread that misses it meanwhile maps it again
        if file is None:
            file = self._mapped(number)
            descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)  # that loader processes raise for themselves
            most = min(_MAX_OPEN, max(16, descriptors // _SHARE))
            while len(self._open) >= most:
                self._open.popitem(last=False)
        self._open[number] = file
        return file

    def _mapped(self, number: int) -> ShardFile:
        path = shard_file(self._folder, number)
        try:
            return ShardFile(path, dims=self._dims, views=self._description.views)
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror or error}; {hint(error)}") from error
        except ValueError as error:
            raise self._damaged(number, error) from error

    def _damaged(self, number: int, error: ValueError) -> RunError:
        path = shard_file(self._folder, number)
        return RunError(f"{path} is damaged ({error}); restore it, or teach the shard again into a new folder")
