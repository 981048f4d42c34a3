"""The server of `clipx search --serve`: a page, JSON, and pictures by the number of their row.

    GET  /?q=a+red+bicycle&k=20         the page with what was found; row=7 instead of q finds what is like row 7
    POST /                              the same for a picture, as a browser's form sends it
    GET  /search?q=...&k=..             JSON
    POST /search?k=..                   JSON, for a picture: its bytes as the body
    GET  /picture/7                     the picture of row 7, small, made anew
    HEAD                                what GET answers, without the body

What it gives away are these pictures and what the folder of embeddings says of them: no path of a request is ever
opened, and a text is never taken for a file or a URL. On loopback it answers only who calls it by such a name, so that
no website can reach it through a name of its own that leads here; and what another site's page sends is refused.
"""

import ipaddress
import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from clipx.errors import ClipxError
from clipx.printable import redacted
from clipx.use.bounded_server import BoundedServer, listening
from clipx.use.pictures import Pictures
from clipx.use.queries import Query, row_query
from clipx.use.search_page import POLICY, Form, search_page
from clipx.use.uploads import RequestError, fields_of, is_from_elsewhere, number, picture_of_form, read_body

if TYPE_CHECKING:
    from clipx.use.embeddings import Embeddings
    from clipx.use.find import Finder, Found

DEFAULT_K = 20
MAX_K = 500
"""Rows of one answer."""
_MAX_TEXT = 10_000  # characters of a query; no model reads so many
_TIMEOUT_S = 30  # of a client that says nothing
_USUAL_PORT = 80  # browsers do not name it
_THUMBNAILS = 2048  # kept: some 20 MB
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
_GREY = (  # where there is no picture
    b'<svg xmlns="http://www.w3.org/2000/svg" width="128" height="96"><rect width="128" height="96" fill="#888"/></svg>'
)

log = logging.getLogger(__name__)


class _Question(NamedTuple):
    query: Query
    k: int
    finder: "Finder"


class SearchServer:
    """A server that has taken its port, and answers when it is told what to search.

    Args:
        embeddings: what is searched.
        host: an address or name of this machine.
        port: 0 takes a free one.

    Raises:
        InputError: the port is in use or not allowed, or the host is none of this machine.
    """

    def __init__(self, embeddings: "Embeddings", host: str, port: int) -> None:
        self.embeddings, self.host = embeddings, host
        self.pictures = Pictures(embeddings)
        self.thumbnail = lru_cache(maxsize=_THUMBNAILS)(self.pictures.jpeg)
        self.finders: dict[str, Finder] = {}
        self._turn = Lock()  # of the model, and of the memory that a search takes
        self._server: _Server = listening(_Server, host, port, _Handler)
        self._server.owner = self
        self.port = int(self._server.server_address[1])

    @property
    def is_private(self) -> bool:
        """Whether only programs of this machine reach it."""
        return ipaddress.ip_address(str(self._server.server_address[0]).partition("%")[0]).is_loopback

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/"

    def search_with(self, *finders: "Finder") -> None:
        """Says what to search, the usual first; the model is loaded now and not with the first request."""
        _ = finders[0].encoder.pretrained
        self.finders = {finder.by: finder for finder in finders}

    def run(self) -> None:
        """Answers until Ctrl-C or `stop`."""
        try:
            self._server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            log.debug("ended by the keyboard")

    def stop(self) -> None:
        """Ends `run`, from another thread."""
        self._server.shutdown()

    def close(self) -> None:
        """Gives the port back."""
        self._server.server_close()

    def find(self, question: _Question) -> "list[Found]":
        """What was asked for; one question at a time."""
        with self._turn:
            return question.finder.find([question.query], k=question.k)[0]

    def finder(self, by: str | None) -> "Finder":
        """What searches the embeddings of a kind, or the usual ones.

        Raises:
            RequestError: there is none.
        """
        usual = next(iter(self.finders))
        if (by or usual) not in self.finders:
            raise RequestError(HTTPStatus.BAD_REQUEST, f"by must be {' or '.join(self.finders)}")
        return self.finders[by or usual]

    def is_called(self, host: str | None) -> bool:
        """Whether a request's Host is a name of this server; open to all, it cannot know its names."""
        if not self.is_private:
            return True
        try:
            name = urlsplit(f"//{host or ''}")
            names = {"localhost", "127.0.0.1", "::1", self.host.lower()}
            return name.hostname in names and (name.port or _USUAL_PORT) == self.port
        except ValueError:
            return False


class _Server(BoundedServer):
    owner: SearchServer


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "clipx", ""
    timeout = _TIMEOUT_S
    protocol_version = "HTTP/1.0"  # a connection for each request: none stays open and keeps a thread

    def do_GET(self) -> None:
        """Answers with a page, JSON or a picture."""
        self._answer(self._get)

    def do_HEAD(self) -> None:
        """The same without the body."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answers to a picture."""
        self._answer(self._post)

    def _answer(self, action: Any) -> None:
        owner = self.server.owner
        try:
            if not owner.is_called(self.headers.get("Host")):
                raise RequestError(HTTPStatus.FORBIDDEN, f"this is {owner.url}; call it by this name")
            if not owner.finders:
                raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "the model is being loaded; come again")
            path, _, query = self.path.partition("?")
            action(path, fields_of(query))
        except RequestError as error:
            self._send_json(error.status, {"error": str(error)})
        except ClipxError as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except OSError:
            raise  # the client went away
        except Exception:
            log.exception("a request could not be answered")
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "something is wrong here; the log says what"})

    def _get(self, path: str, asked: Mapping[str, str]) -> None:
        if path == "/":
            self._send_page(asked, None)
        elif path == "/search":
            self._send_found(self._question(asked, None))
        elif path.startswith("/picture/"):
            self._send_picture(path.removeprefix("/picture/"))
        else:
            raise RequestError(HTTPStatus.NOT_FOUND, "there is /, /search and /picture/N")

    def _post(self, path: str, asked: Mapping[str, str]) -> None:
        if is_from_elsewhere(self.headers):
            raise RequestError(HTTPStatus.FORBIDDEN, "only pages of this server may send pictures")
        if path not in ("/", "/search"):
            raise RequestError(HTTPStatus.NOT_FOUND, "there is / and /search")
        body = read_body(self.rfile, self.headers)
        content_type = self.headers.get("Content-Type", "")
        if content_type.startswith("multipart/form-data"):
            body, fields = picture_of_form(body, content_type)
            asked = {**fields, **asked}
        if path == "/":
            self._send_page(asked, body)
        else:
            self._send_found(self._question(asked, body))

    def _question(self, asked: Mapping[str, str], picture: bytes | None) -> _Question:
        owner = self.server.owner
        finder = owner.finder(asked.get("by"))
        k = number(asked.get("k") or str(_usual_k(finder)), "k", least=1, most=MAX_K)
        if picture is not None:
            return _Question(Query("picture", "your picture", data=picture), k, finder)
        if "row" in asked:
            row = number(asked["row"], "row", least=0, most=owner.embeddings.num_rows - 1)
            return _Question(row_query(owner.embeddings, row), k, finder)
        text = asked.get("q", "").strip()
        if not text or len(text) > _MAX_TEXT:
            raise RequestError(HTTPStatus.BAD_REQUEST, f"q must be a text of 1 to {_MAX_TEXT:,} characters")
        return _Question(Query("text", text, text), k, finder)

    def _send_page(self, asked: Mapping[str, str], picture: bytes | None) -> None:
        owner = self.server.owner
        finder = next(iter(owner.finders.values()))
        status, found, title, problem, k = HTTPStatus.OK, None, "", owner.pictures.problem, _usual_k(finder)
        if problem:
            problem = f"No pictures: {problem}"
        if picture is not None or "q" in asked or "row" in asked:
            try:
                question = self._question(asked, picture)
                k, title, finder = question.k, question.query.shown, question.finder
                found = owner.find(question)
            except (ClipxError, RequestError) as error:
                status, problem = HTTPStatus.BAD_REQUEST, str(error)
        form = Form(asked.get("q", ""), k, finder.by, tuple(owner.finders))
        body = search_page(finder, found, form, title=title, problem=problem)
        self._send(status, "text/html; charset=utf-8", body.encode())

    def _send_found(self, question: _Question) -> None:
        owner = self.server.owner
        finder = question.finder
        hits = [row.as_json() | {"picture": f"/picture/{row.row}"} for row in owner.find(question)]
        about = {"query": question.query.shown, "by": finder.by, "exact": finder.index is None}
        self._send_json(HTTPStatus.OK, redacted(about | {"hits": hits}))

    def _send_picture(self, named: str) -> None:
        owner = self.server.owner
        row = number(named, "a row", least=0, most=owner.embeddings.num_rows - 1, status=HTTPStatus.NOT_FOUND)
        data = owner.thumbnail(row)
        if data is None:
            self._send(HTTPStatus.OK, "image/svg+xml", _GREY)
        else:
            self._send(HTTPStatus.OK, "image/jpeg", data, cache="private, max-age=600")

    def _send_json(self, status: HTTPStatus, value: object) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: HTTPStatus, content_type: str, body: bytes, *, cache: str = "no-store") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", cache)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: what people look for is theirs."""


def _usual_k(finder: "Finder") -> int:
    return min(DEFAULT_K, max(finder.num_rows, 1))
