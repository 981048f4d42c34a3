"""What clients of `clipx search --serve` send: numbers, and pictures as bodies or in a browser's form."""

import re
from email.message import Message
from http import HTTPStatus
from typing import Protocol
from urllib.parse import parse_qsl

MAX_PICTURE = 32 << 20
"""Bytes of a picture that is sent."""
_FORM = 64 << 10  # bytes that a form may add to its picture
_MAX_PARTS = 16
_MAX_FIELD = 1000  # bytes of a field that is no picture


class Stream(Protocol):
    """What is read from a client."""

    def read(self, size: int, /) -> bytes:
        """So many bytes; fewer at the end."""


class Headers(Protocol):
    """Those of a request, by name."""

    def get(self, name: str, failobj: str, /) -> str:
        """The value, or `failobj`."""


class RequestError(Exception):
    """A request that is refused: the status of the answer, and a line that says why."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def fields_of(query: str) -> dict[str, str]:
    """The fields of an address's query, the last of each name.

    Raises:
        RequestError: there are too many.
    """
    try:
        return dict(parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_PARTS, errors="replace"))
    except ValueError as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"more than {_MAX_PARTS} fields") from error


def number(text: str, name: str, *, least: int, most: int, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> int:
    """The number that a field holds.

    Raises:
        RequestError: it holds none, or one out of range.
    """
    value = int(text) if text.isascii() and text.isdecimal() and len(text) <= 12 else -1
    if not least <= value <= most:
        raise RequestError(status, f"{name} must be a number from {least} to {most}")
    return value


def read_body(stream: Stream, headers: Headers) -> bytes:
    """The body of a request.

    Raises:
        RequestError: it is too long, does not say how long it is, or ends early.
    """
    length = headers.get("Content-Length", "")
    if not length.isascii() or not length.isdecimal():
        raise RequestError(HTTPStatus.LENGTH_REQUIRED, "say how long the picture is (Content-Length)")
    if len(length) > 12 or int(length) > MAX_PICTURE + _FORM:
        raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a picture may have {MAX_PICTURE >> 20} MB")
    body = stream.read(int(length))
    if len(body) < int(length) or not body:
        raise RequestError(HTTPStatus.BAD_REQUEST, "the picture is empty, or ended early")
    return body


def picture_of_form(body: bytes, content_type: str) -> tuple[bytes, dict[str, str]]:
    """The picture of a form (multipart/form-data, RFC 7578), and its other fields.

    Raises:
        RequestError: it is no such form, or has no picture.
    """
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not 1 <= len(boundary) <= 70 or not boundary.isascii():
        raise RequestError(HTTPStatus.BAD_REQUEST, "the form has no boundary")
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode())[1:]
    if len(parts) > _MAX_PARTS or not parts or not parts[-1].startswith(b"--"):
        raise RequestError(HTTPStatus.BAD_REQUEST, "the form is not whole")
    picture, fields = b"", {}
    for part in parts[:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        name = re.search(rb'\bname="([^"]*)"', head)
        if name is None:
            continue
        if name[1] == b"picture":
            picture = value
        else:
            fields[name[1].decode(errors="replace")] = value[:_MAX_FIELD].decode(errors="replace")
    if not picture:
        raise RequestError(HTTPStatus.BAD_REQUEST, "the form has no picture; choose one")
    return picture, fields


def is_from_elsewhere(headers: Headers) -> bool:
    """Whether a page of another site sends a request, as far as the browser tells."""
    origin = headers.get("Origin", "")
    return bool(origin) and origin.partition("://")[2] != headers.get("Host", "")
