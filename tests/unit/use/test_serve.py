import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from PIL import Image
from search_folders import COUNT, Searched, write_searched
from tiny_clip import encoded, picture

from clipx.errors import InputError
from clipx.use.bounded_server import MAX_REQUESTS
from clipx.use.find import Finder
from clipx.use.queries import Query, QueryEncoder
from clipx.use.serve import SearchServer
from clipx.use.uploads import MAX_PICTURE, RequestError, picture_of_form


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    return write_searched(tmp_path_factory.mktemp("searched"))


@pytest.fixture(scope="module")
def finder(searched: Searched) -> Finder:
    return Finder(searched.embeddings, QueryEncoder(searched.embeddings))


@pytest.fixture(scope="module")
def server(searched: Searched, finder: Finder) -> Iterator[SearchServer]:
    running = SearchServer(searched.embeddings, "127.0.0.1", 0)
    running.search_with(finder, Finder(searched.embeddings, finder.encoder, by="text"))
    thread = threading.Thread(target=running.run)
    thread.start()
    yield running
    running.stop()
    thread.join()
    running.close()


class Answer:
    def __init__(self, response: HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(server: SearchServer, path: str, body: bytes | None = None, *, method: str = "", **headers: str) -> Answer:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method or ("GET" if body is None else "POST"), path, body, names)
    try:
        return Answer(connection.getresponse())
    finally:
        connection.close()


def form(data: bytes, **fields: str) -> tuple[bytes, str]:
    """A form as a browser sends it, and its content type."""
    head = "--XyZ\r\nContent-Disposition: form-data; name="
    parts = [f'{head}"{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
    parts.append(f'{head}"picture"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'.encode())
    return b"".join(parts) + data + b"\r\n--XyZ--\r\n", "multipart/form-data; boundary=XyZ"


def test_json_has_what_the_command_finds(server: SearchServer, finder: Finder) -> None:
    answer = ask(server, "/search?q=a+red+bicycle&k=3").json
    [found] = finder.find([Query("text", "", "a red bicycle")], k=3)
    assert answer == {
        "query": "a red bicycle",
        "by": "image",
        "exact": True,
        "hits": [row.as_json() | {"picture": f"/picture/{row.row}"} for row in found],
    }
    assert len(ask(server, "/search?q=x").json["hits"]) == COUNT  # no k: as many as there are
    by_text = ask(server, "/search?q=picture+number+5&k=1&by=text").json
    assert (by_text["by"], by_text["hits"][0]["row"]) == ("text", 5)
    like = ask(server, "/search?row=4&k=2").json
    assert [hit["row"] for hit in like["hits"]] == [row.row for row in finder.find([Query("row", "", row=4)], k=2)[0]]


def test_a_picture_is_sent_as_a_body_or_by_a_form(server: SearchServer) -> None:
    data = encoded(picture(6))
    assert ask(server, "/search?k=1", data, Content_Type="image/png").json["hits"][0]["row"] == 6
    body, kind = form(data, k="1")
    answer = ask(server, "/search", body, Content_Type=kind, Origin=server.url.rstrip("/")).json
    assert [hit["row"] for hit in answer["hits"]] == [6]
    page = ask(server, "/", body, Content_Type=kind)
    assert (page.status, re.findall(rb'src="/picture/(\d+)"', page.body)) == (200, [b"6"])


def test_the_page_shows_what_was_found_as_text(server: SearchServer) -> None:
    page = ask(server, "/?q=%3Cscript%3Ex&k=11")
    text = page.body.decode()
    assert page.status == 200
    assert text.count('<img src="/picture/') == COUNT
    assert "<script>x" not in text
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert text.count("&lt;script&gt;alert(1)") == 2  # as a caption, and as what a picture shows
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_pictures_are_made_anew_and_known_by_number_alone(server: SearchServer) -> None:
    answer = ask(server, "/picture/4")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "image/jpeg")
    assert Image.open(BytesIO(answer.body)).size == (30, 26)
    for path in ("/picture/11", "/picture/-1", "/picture/", "/picture/../model", "/picture/%2e%2e/x", "/picture/4/.."):
        assert ask(server, path).status == 404
    for path in ("/etc/passwd", "/../../etc/passwd", "//etc/passwd", "/embeddings.json", "/search/x", "/%00"):
        assert ask(server, path).status == 404


def test_head_is_get_without_the_body(server: SearchServer) -> None:
    for path in ("/", "/search?q=a&k=1", "/picture/1", "/none"):
        asked, answer = ask(server, path), ask(server, path, method="HEAD")
        assert (answer.status, answer.body) == (asked.status, b"")
        assert answer.headers["Content-Length"] == str(len(asked.body))


def test_a_text_is_never_taken_for_a_file_or_a_url(
    server: SearchServer, searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipx.use.queries.picture_bytes", lambda address: pytest.fail(f"{address} was opened"))
    for text in (
        f"picture:{searched.pictures}/dir/04.png",
        f"{searched.pictures}/dir/04.png",
        "http://127.0.0.1:1/a.png",
    ):
        answer = ask(server, f"/search?k=1&q={text}").json
        assert answer["query"] == text


def test_other_names_and_other_sites_are_refused(server: SearchServer) -> None:
    for host in (
        "evil.example",
        f"evil.example:{server.port}",
        "127.0.0.1:1",
        "localhost",
        "",
        "[::1",
        f"127.0.0.1.x:{server.port}",
    ):
        assert ask(server, "/search?q=a", Host=host).status == 403, host
    for host in (f"localhost:{server.port}", f"127.0.0.1:{server.port}", f"[::1]:{server.port}"):
        assert ask(server, "/search?q=a&k=1", Host=host).status == 200, host
    server.port, port = 80, server.port  # which browsers do not name
    assert (server.is_called("localhost"), server.is_called(f"localhost:{port}")) == (True, False)
    server.port = port
    data = encoded(picture(6))
    for origin in ("http://evil.example", "null", f"http://evil.example:{server.port}"):
        assert ask(server, "/search?k=1", data, Origin=origin).status == 403


def test_bad_requests_say_what_is_wrong(server: SearchServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, message in [
        ("/search", "q must be a text of 1 to 10,000 characters"),
        ("/search?q=" + "a" * 10_001, "q must be a text of 1 to 10,000 characters"),
        ("/search?q=a&k=0", "k must be a number from 1 to 500"),
        ("/search?q=a&k=x", "k must be a number from 1 to 500"),
        ("/search?q=a&k=501", "k must be a number from 1 to 500"),
        ("/search?q=a&k=12", "-k 12: only 11 rows have a picture; ask for at most so many"),
        ("/search?q=a&by=x", "by must be image or text"),
        ("/search?row=11", "row must be a number from 0 to 10"),
        ("/search?" + "&".join(f"a{i}=1" for i in range(20)), "more than 16 fields"),
    ]:
        answer = ask(server, path)
        assert (answer.status, answer.json) == (400, {"error": message})
    page = ask(server, "/?q=a&k=12")
    assert page.status == 400
    assert b"-k 12: only 11 rows have a picture" in page.body
    no_picture = ask(server, "/search", b"no picture")
    assert no_picture.status == 400
    assert no_picture.json["error"].startswith("your picture is no picture that can be read")
    assert ask(server, "/search", b"x", Content_Length=str(MAX_PICTURE << 2)).status == 413
    assert ask(server, "/search", b"", Content_Length="0").status == 400
    assert ask(server, "/search", b"x", Content_Length="many").status == 411
    assert ask(server, "/elsewhere", b"x").status == 404
    assert ask(server, "/search", b"x", Content_Type="multipart/form-data; boundary=A").status == 400
    monkeypatch.setattr(SearchServer, "find", lambda *_: 1 / 0)
    broken = ask(server, "/search?q=a&k=1")
    assert (broken.status, broken.json["error"]) == (500, "something is wrong here; the log says what")


def test_forms_that_are_none() -> None:
    data = b"a\r\n--Xy\r\n\r\n--"  # looks nearly like a boundary
    body, kind = form(data, k="3")
    assert picture_of_form(body, kind) == (data, {"k": "3"})
    for broken, of_kind in [
        (body, "multipart/form-data"),
        (body, "multipart/form-data; boundary=other"),
        (body[:-8], kind),
        (form(b"")[0], kind),
        (body.replace(b"picture", b"another"), kind),
    ]:
        with pytest.raises(RequestError):
            picture_of_form(broken, of_kind)


def test_a_port_in_use_or_a_host_of_others(server: SearchServer, searched: Searched) -> None:
    with pytest.raises(InputError, match=f"--port {server.port} is in use on 127.0.0.1; choose another, or 0 for a"):
        SearchServer(searched.embeddings, "127.0.0.1", server.port)
    for host in ("192.0.2.1", "no.such.host.invalid"):
        with pytest.raises(InputError, match=f"--host {host} --port 0: "):
            SearchServer(searched.embeddings, host, 0)


def test_before_the_model_is_there(searched: Searched) -> None:
    starting = SearchServer(searched.embeddings, "localhost", 0)
    thread = threading.Thread(target=starting.run)
    thread.start()
    try:
        assert ask(starting, "/").status == 503
    finally:
        starting.stop()
        thread.join()
        starting.close()


def test_too_many_at_once_wait(server: SearchServer) -> None:
    """Clients that say nothing take threads; others come after them."""
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(MAX_REQUESTS)]
    waiting = threading.Timer(0.5, lambda: [client.close() for client in silent])
    waiting.start()
    assert ask(server, "/picture/1").status == 200
    waiting.join()


@pytest.mark.full
def test_the_command_serves_until_ctrl_c(searched: Searched) -> None:
    command = [sys.executable, "-m", "clipx", "search", str(searched.embeddings.folder), "--serve", "--port", "0"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        address = re.match(r"http://127.0.0.1:(\d+)/  Ctrl-C ends it\n", process.stdout.readline())
        assert address is not None
        connection = HTTPConnection("127.0.0.1", int(address[1]), timeout=60)
        connection.request("GET", "/search?q=a&k=1")
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("ended\n", "")
        assert process.returncode == 0
    finally:
        process.kill()


class TestInABrowser:
    def test_the_page_shows_all_pictures_and_asks_nobody_else(self, server: SearchServer) -> None:
        with chromium() as browser:
            first = browser.visit(server.url)
            page = browser.visit(f"{server.url}?q=a+red+bicycle&k=8", dark=True)
            narrow = browser.visit(f"{server.url}?q=a+red+bicycle&k=8", width=360)
            dropped = browser.visit(server.url, script=DROP)
            like = browser.visit(f"{server.url}?q=a+red+bicycle&k=8", script=CLICK)
        for seen in (first, page, narrow):
            assert seen.errors == []
            assert seen.broken == []
            assert not seen.too_wide
            assert all(address.startswith(server.url) for address in seen.requests)
        assert (first.num_pictures, page.num_pictures) == (0, 8)
        assert "cosine" in page.text
        for seen in (dropped, like):
            assert (seen.errors, seen.broken) == ([], [])
        assert dropped.value == [1, "a.png"]
        assert like.value.startswith("/?row=")


DROP = """
(async () => {
  const canvas = document.createElement("canvas");
  const blob = await new Promise(done => canvas.toBlob(done));
  const form = document.getElementById("by-picture");
  form.submit = () => { form.sent = true; };
  const transfer = new DataTransfer();
  transfer.items.add(new File([blob], "a.png", {type: "image/png"}));
  dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, cancelable: true}));
  return [form.elements.picture.files.length, form.sent ? form.elements.picture.files[0].name : ""];
})()
"""
CLICK = "document.querySelector('.sheet a').getAttribute('href')"
