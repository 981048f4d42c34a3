"""A web server with a thread for each request, of which there are only so many at once."""

import errno
import logging
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore
from typing import Any, TypeVar

from clipx.errors import InputError

MAX_REQUESTS = 32

log = logging.getLogger(__name__)


class BoundedServer(ThreadingHTTPServer):
    """Answers `MAX_REQUESTS` at once; further clients wait at the port."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # of socketserver 5: whoever finds the queue full tries again after a second

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._turns = BoundedSemaphore(MAX_REQUESTS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """See `socketserver.BaseServer`."""
        self._turns.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """See `socketserver.ThreadingMixIn`."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._turns.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that went away; a handler says itself what else goes wrong."""
        log.debug("a request failed", exc_info=True)


Server = TypeVar("Server", bound=BoundedServer)


def listening(kind: type[Server], host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> Server:
    """A server that has taken its port.

    Raises:
        InputError: the port is in use or not allowed, or the host is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return type(kind.__name__, (kind,), {"address_family": family})((host, port), handler)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"--port {port} is in use on {host}; choose another, or 0 for a free one") from error
        raise InputError(f"--host {host} --port {port}: {error.strerror or error}; choose others") from error
