"""A store of teachers' embeddings, opened by its description alone; imports no torch until columns are asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipx.config.paths import expand_home
from clipx.config.schema import JobConfig, RunConfig
from clipx.data.teachers.description import Description, read_description
from clipx.errors import InputError, some_names

if TYPE_CHECKING:
    from clipx.data.teachers.reader import TeacherColumns


def open_teachers(folder: str, *, key: str = "data.teachers") -> "Teachers":
    """Opens a finished store; reads its description alone.

    Args:
        folder: its address.
        key: of the config that says it, for messages.

    Raises:
        InputError: the folder is remote or not there, no store, unfinished, damaged or of another version.
    """
    return Teachers(Path(expand_home(folder)), read_description(folder, key=key), key=key)


def teachers_of(config: JobConfig) -> "Teachers | None":
    """The store that a run reads (`RunConfig.teachers`), opened; None if it reads none.

    Raises:
        InputError: as `open_teachers`.
    """
    if not isinstance(config, RunConfig) or config.teachers is None:
        return None
    key, folder = config.teachers
    return open_teachers(folder, key=key)


class Teachers:
    """The teachers of a store.

    Args:
        folder: of the store.
        description: what it holds.
        key: of the config that names it.
    """

    def __init__(self, folder: Path, description: Description, *, key: str = "data.teachers") -> None:
        self.folder = folder
        self.named = f"{key}={folder}"
        """For messages."""
        self.description = description

    @property
    def names(self) -> tuple[str, ...]:
        """Of all teachers, in the order in which they were given."""
        return tuple(teacher.name for teacher in self.description.teachers)

    @property
    def dims(self) -> Mapping[str, int]:
        """D of each teacher, by name."""
        return {teacher.name: teacher.dim for teacher in self.description.teachers}

    @property
    def logit_scales(self) -> Mapping[str, float]:
        """The multiplier of each teacher's similarities, by name."""
        return {teacher.name: teacher.logit_scale for teacher in self.description.teachers}

    @property
    def views(self) -> int:
        """K, of each picture."""
        return self.description.views

    def column_reader(self, names: Sequence[str]) -> "TeacherColumns":
        """Reads `image_column` and `text_column` (`clipx.data.teacher_columns`) of each of these teachers.

        Raises:
            InputError: a teacher is not in the store.
        """
        from clipx.data.teachers.reader import TeacherColumns

        if absent := [name for name in names if name not in self.names]:
            raise InputError(f"{self.named} has no teacher {absent[0]!r}; it has {some_names(self.names)}")
        return TeacherColumns(self.folder, self.description, names)
