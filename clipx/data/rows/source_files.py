"""Files that people bring: only regular ones are opened, and a mark of the byte order is no text."""

import codecs
import stat
from pathlib import Path

from clipx.data.rows.row import LeftOutError, Reason, Row
from clipx.storage.failures import is_of_storage, unreadable

_BYTE_ORDER_MARKS = {  # the longer ones first: that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_regular(path: Path, name: str, *, reason: Reason) -> bytes:
    """The bytes of a file; `reason` and `name` are those of the row if it cannot be read.

    Raises:
        LeftOutError: it cannot be read, or is a pipe, a socket or a device, which is never opened.
        FileNotFoundError: it is not there.
        InputError: the storage fails.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise LeftOutError(reason, name, f"{path} is no regular file")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(str(path)) from error
    except OSError as error:
        if is_of_storage(error):
            raise unreadable(str(path), error) from error
        raise LeftOutError(reason, name, str(error)) from error
    except ValueError as error:  # a name that no file can have
        raise LeftOutError(reason, name, str(error)) from error


def image_of(row: Row) -> bytes:
    """The encoded picture of a row.

    Raises:
        LeftOutError: it has none; its file is not there, cannot be read, or is no regular file.
        InputError: the storage fails.
    """
    if row.image is None:
        raise LeftOutError("no picture", row.name)
    if isinstance(row.image, bytes):
        return row.image
    try:
        return read_regular(row.image, row.name, reason="unreadable picture")
    except FileNotFoundError as error:
        raise LeftOutError("missing file", row.name, str(row.image)) from error


def image_or_none(row: Row) -> bytes | None:
    """The encoded picture of a row; None if it has none, or its file is not there.

    Raises:
        LeftOutError: its file is there and cannot be read, or is no regular file.
        InputError: the storage fails.
    """
    if row.image is None:
        return None
    try:
        return image_of(row)
    except LeftOutError as error:
        if error.reason == "missing file":
            return None
        raise


def decode_text(data: bytes) -> str:
    """The text of a file: UTF-8, or what its byte order mark says.

    Raises:
        UnicodeDecodeError: it is neither.
    """
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8-sig")
    return data.decode(encoding)


def is_wide(head: bytes) -> bool:
    """Whether the first bytes of a file say that it is UTF-16 or UTF-32."""
    return any(head.startswith(mark) for mark in _BYTE_ORDER_MARKS)
