"""Servers on loopback for tests: a web server that can misbehave, and an object store."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from unittest.mock import patch
from urllib.request import Request, urlopen

import fsspec

Mode = Literal["serve", "silent", "stall", "cut"]


class WebServer:
    """Serves bytes by path, with ranges; use it in a `with`.

    Attributes, to be set at any time:
        files: by path, without the first slash.
        mode: serve; silent (accepts and never answers); stall (sends half of the body, then nothing); cut (sends half
            of the body, then closes the connection).
        failures: so many coming requests are answered with `failure_status`.
        delay_s: of each answer.
        ranges: whether parts are given; otherwise the whole file is the answer to every request.
        with_length: whether an answer says its length.
        headers: of every answer, besides.
        refusals: by path, the status and the headers of an answer that is no file.
        requests: (path, value of the Range header or "") of each request so far.
        bytes_sent: of all bodies so far.
    """

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = files or {}
        self.mode: Mode = "serve"
        self.failures = 0
        self.failure_status = 503
        self.delay_s = 0.0
        self.ranges = self.with_length = True
        self.headers: dict[str, str] = {}
        self.refusals: dict[str, tuple[int, dict[str, str]]] = {}
        self.requests: list[tuple[str, str]] = []
        self.bytes_sent = 0
        self.closing = threading.Event()
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = _QuietServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "WebServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.vanish()

    def vanish(self) -> None:
        """Refuses connections from now on, and breaks those that are open."""
        if not self.closing.is_set():
            self.closing.set()
            self._server.shutdown()
            self._server.server_close()


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        """A client that hung up is what many tests are about."""


class _Handler(BaseHTTPRequestHandler):
    owner: WebServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()  # only object stores' clients ask so, and of a server that says no or nothing

    def do_GET(self) -> None:
        server = self.owner
        if server.closing.is_set():
            self.close_connection = True
            return
        path, span = self.path.lstrip("/"), self.headers.get("Range", "")
        with server.lock:
            server.requests.append((path, span))
            failing = server.failures > 0
            server.failures -= failing
        time.sleep(server.delay_s)
        if server.mode == "silent":
            server.closing.wait()
            self.close_connection = True
        elif failing:
            self._answer(server.failure_status, b"")
        elif path in server.refusals:
            status, headers = server.refusals[path]
            self._answer(status, b"", headers)
        elif path not in server.files:
            self._answer(404, b"")
        elif span and server.ranges:
            self._part(server.files[path], span)
        else:
            self._answer(200, server.files[path])

    def _part(self, content: bytes, span: str) -> None:
        start, stop = map(int, span.removeprefix("bytes=").split("-"))
        if start >= len(content):
            self._answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        part = content[start : stop + 1]
        self._answer(206, part, {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(content)}"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        server = self.owner
        self.send_response(status)
        for name, value in (server.headers | (headers or {})).items():
            self.send_header(name, value)
        if server.with_length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        broken = server.mode != "serve" and len(body) > 1
        sent = body[: len(body) // 2] if broken else body
        self.wfile.write(sent)
        with server.lock:
            server.bytes_sent += len(sent)
        if broken:
            if server.mode == "stall":
                self.wfile.flush()
                server.closing.wait()
            self.close_connection = True


@contextmanager
def object_store() -> Iterator[str]:
    """An S3 server (moto) with an empty bucket named `bucket`, and an environment in which `s3://` means it.

    Moto keeps its objects in this process: two such servers would share them.
    """
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    s3 = fsspec.get_filesystem_class("s3")
    try:
        with patch.dict(os.environ, environment):
            urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST"), timeout=30).close()
            s3.clear_instance_cache()  # fsspec keeps connections to an endpoint of an earlier test
            fsspec.filesystem("s3").mkdir("bucket")
            yield environment["AWS_ENDPOINT_URL"]
    finally:
        s3.clear_instance_cache()
        server.stop()
