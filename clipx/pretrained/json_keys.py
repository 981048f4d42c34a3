"""Reads a JSON file of another library key by key, so that none is ignored unseen."""

import json
from pathlib import Path
from typing import Any, NoReturn

from clipx.errors import InputError, some_names


class Keys:
    """One section of the file, whose keys are taken one after the other; those that are left are unknown."""

    def __init__(self, file: Path, name: str, values: Any) -> None:
        self._file = file
        self._name = name
        if not isinstance(values, dict):
            whole = f"{name} is" if name else "it is"
            raise InputError(f"{file}: {whole} {_shown(values)}, not a mapping of keys; take the library's own file")
        self._left: dict[str, Any] = dict(values)

    def _path(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default where it is missing."""
        return self._left.pop(key, default)

    def section(self, key: str, *, required: bool = False) -> "Keys":
        """The section under a key; one that is not required is empty where it is missing."""
        values = self.take(key)
        return Keys(self._file, self._path(key), values if required else values or {})

    def whole(self, key: str, default: int, *, of_list: str = "it must be a whole number of at least 1") -> int:
        """A whole number of at least 1; `of_list` says what a list of them means."""
        value = self.take(key, default)
        if isinstance(value, list):
            self.refuse(key, value, of_list)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.refuse(key, value, "it must be a whole number of at least 1")
        return value

    def side(self, key: str, default: int) -> int:
        """The side of a square, which may be written twice."""
        value = self._left.get(key)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            self._left[key] = value[0]
        return self.whole(key, default, of_list="clipx's pictures and patches are square")

    def number(self, key: str, default: float) -> float:
        """A number above 0."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            self.refuse(key, value, "it must be a number above 0")
        return value

    def only(self, key: str, *accepted: Any, why: str = "clipx has no such models") -> Any:
        """The value of a key, which must be among those accepted; the first of them where it is missing."""
        value = self.take(key, accepted[0])
        if not any(value is one or (value == one and type(value) is type(one)) for one in accepted):
            self.refuse(key, value, f"{why}, only {' or '.join(dict.fromkeys(map(_shown, accepted)))}")
        return value

    def pass_over(self, *keys: str) -> None:
        """Takes keys that change nothing in evaluation."""
        for key in keys:
            self._left.pop(key, None)

    def refuse(self, key: str, value: Any, why: str) -> NoReturn:
        """Raises InputError with the key and its value."""
        raise InputError(f"{self._file}: {self._path(key)}={_shown(value)} cannot be read: {why}")

    def end(self) -> None:
        """Raises InputError if keys are left."""
        if self._left:
            raise InputError(
                f"{self._file}: {self._name} has keys that are not known here: {some_names(sorted(self._left))}; what "
                "they change is not known either"
            )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}..."
