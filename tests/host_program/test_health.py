"""The answer of a service to the question of its health, or the reason why there is none."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from booty_host import health, release
from booty_host.app import App

PID, INVOCATION, SHA = 4711, "0123456789abcdef", "a" * 40


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers as the server is set up to, and names itself as the runner does."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.requests.append((self.path, self.headers["Host"]))
        status, body, headers = server.answer
        self.send_response(status)
        if self.headers["X-Booty-Ask"] == INVOCATION:
            self.send_header("X-Booty-Release", SHA)
            self.send_header("X-Booty-Pid", str(PID))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as serving:
        serving.requests = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "reason", "of"),
    [
        (200, b'{"status": "ok", "release": "abc"}', "", "abc"),
        (503, b'{"reason": "no disk"}', "/health says 503: no disk", None),
        (404, b"nginx", "/health says 404: no reason given", None),
        (200, b"[]", "/health says 200, but the answer is not a JSON object", None),
    ],
)
def test_the_json_of_a_release_that_does_not_name_itself(
    server: Any, status: int, body: bytes, reason: str, of: str | None
) -> None:
    server.answer = (status, body, {})
    answer = {"status": status, "reason": reason, "release": of, "environment": None}
    assert health.ask_json("0.0.0.0", server.server_address[1]) == answer
    assert server.requests == [("/health", "localhost")]


def ask(server: Any, path: str = "/ok", host: str = "shop.test", invocation: str = INVOCATION) -> dict[str, Any]:
    return health.ask_process("127.0.0.1", server.server_address[1], path, host, invocation, PID)


@pytest.mark.parametrize(
    ("path", "status", "body", "headers", "reason"),
    [
        ("/ok", 200, b"<html>", {}, ""),
        ("/ok", 204, b"", {}, ""),
        ("", 404, b"", {}, ""),
        ("", 302, b"", {"Location": "/login"}, ""),
        ("", 500, b"<html>", {}, "GET / answers 500: no reason given"),
        ("/ok", 503, b'{"reason": "no database"}', {}, "GET /ok answers 503: no database"),
        ("/ok", 400, b"", {}, "GET /ok answers 400 to the Host header shop.test: set app_health_host to a host that"),
        (
            "/ok",
            301,
            b"",
            {"Location": "https://shop.test/ok"},
            "GET /ok answers 301 and leads to https://shop.test/ok:",
        ),
        ("/ok", 301, b"", {"Location": "https://shop.test/ok"}, "(Django: SECURE_PROXY_SSL_HEADER)"),
        ("/ok", 302, b"", {"Location": "/login"}, "GET /ok answers 302 and leads to /login: name a path that answers"),
        ("/ok", 401, b"", {}, "GET /ok answers 401: it wants a login."),
        ("/ok", 403, b"", {}, "GET /ok answers 403: it wants a login."),
        ("/ok", 404, b"", {}, "GET /ok answers 404: the app has no such path."),
        ("/ok", 405, b"", {}, "GET /ok answers 405: the path does not take GET."),
        ("/ok", 418, b"", {}, "GET /ok answers 418: name a path that answers 2xx: app_health_path"),
    ],
)
def test_each_refusal_says_what_to_write(
    server: Any, path: str, status: int, body: bytes, headers: dict[str, str], reason: str
) -> None:
    server.answer = (status, body, headers)
    answer = ask(server, path)
    assert server.requests == [(path or "/", "shop.test")]
    assert (answer["status"], answer["release"]) == (status, SHA)
    assert (reason in answer["reason"]) if reason else answer["reason"] == ""


def test_another_process_does_not_count(server: Any) -> None:
    server.answer = (200, b"", {})
    answer = ask(server, invocation="that of another process")
    reason = "GET /ok is answered by another process than the service's (PID 4711)"
    assert answer == {"status": 200, "release": None, "reason": reason}
    server.answer = (200, b"", {"X-Booty-Release": SHA, "X-Booty-Pid": "1"})
    assert ask(server, invocation="that of another process")["release"] is None


def test_a_stream_without_an_end_is_an_answer() -> None:
    class Stream(Answer):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("X-Booty-Release", SHA)
            self.send_header("X-Booty-Pid", str(PID))
            self.end_headers()
            self.wfile.flush()
            self.rfile.read(1)  # until the client leaves

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stream) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        assert ask(serving)["reason"] == ""
        serving.shutdown()
        thread.join()


@pytest.mark.parametrize("head", [b"HTTP/1.1 100 Continue\r\n\r\n", b"X: y\r\n"])
def test_an_answer_without_an_end_is_none(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    """Each part of it arrives in time."""
    monkeypatch.setattr(health, "SECONDS", 0.5)
    over = threading.Event()

    def send(listener: socket.socket) -> None:
        with suppress(OSError), listener.accept()[0] as connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\n" if head.startswith(b"X") else b"")
            while not over.wait(0.05):
                connection.sendall(head)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=send, args=(listener,))
        thread.start()
        began = time.monotonic()
        answer = health.get("127.0.0.1", listener.getsockname()[1], "/", "localhost")
        assert time.monotonic() - began < 5
        over.set()
        thread.join()
    assert answer["status"] == 0
    assert answer["reason"].endswith("timed out")


@pytest.mark.parametrize(
    ("path", "host", "invocation"),
    [
        ("/", "a\nb", "0"),
        ("/", "localhost", "\n123"),
        ("/", "localhost", "\u20ac"),
        ("/\n", "a", "0"),
        ("/\xe9", "a", "0"),
    ],
)
def test_a_question_that_a_process_has_spoiled_has_no_answer(
    server: Any, path: str, host: str, invocation: str
) -> None:
    """The parts of the question are variables of the process, which can change them."""
    answer = health.ask_process("127.0.0.1", server.server_port, path, host, invocation, PID)
    assert (answer["status"], answer["release"]) == (0, None)
    assert answer["reason"].startswith(f"no answer on 127.0.0.1:{server.server_port}: ")


def test_json_that_is_nested_too_deep_is_none() -> None:
    assert health.parsed(b"[" * 60_000) == {}
    assert health.explained(b'{"a":' * 60_000) == "no reason given"


def test_health_of_nobody() -> None:
    answer = health.ask_json("127.0.0.1", 1)
    assert answer["status"] == 0
    assert "no answer on 127.0.0.1:1: " in answer["reason"]


def test_health_without_a_socket_unit(tmp_path: Path) -> None:
    app = App("shop", tmp_path)
    answer = {"status": 0, "reason": f"{tmp_path}/etc/systemd/system/shop.socket: it names no address and port"}
    assert release.ask_installed(app, 1) == answer


@pytest.mark.parametrize(
    ("environ", "fields", "question"),
    [
        ("", "{}", None),
        ("", '"contract": 2', None),
        ("INVOCATION_ID=12", '"contract": 3', ("", "localhost", "12")),
        ("", '"contract": 3, "health": {"path": "/a", "host": ""}', ("/a", "localhost", "")),
        ("BOOTY_HEALTH_PATH=/b", '"contract": 3, "health": {"path": "/a", "host": "h"}', ("/b", "h", "")),
        ("BOOTY_HEALTH_HOST=i", '"contract": 3, "health": {"path": "/a", "host": "h"}', ("/a", "i", "")),
    ],
)
def test_the_inventory_comes_before_the_commit(
    tmp_path: Path, environ: str, fields: str, question: tuple[str, str, str] | None
) -> None:
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/environ").write_text(f"BOOTY_RELEASE_DIR=/opt/shop/releases/a\0{environ}\0")
    content = fields if fields == "{}" else f'{{"layer": "l", "python": "3.11", {fields}}}'
    (tmp_path / "opt/shop/releases/a").mkdir(parents=True)
    (tmp_path / "opt/shop/releases/a/release.json").write_text(content)
    assert release.question(App("shop", tmp_path), 7) == question


def test_the_app_s_own_words_show_no_secret(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App("shop", tmp_path)
    app.etc.mkdir(parents=True)
    app.secrets_env.write_text("API_TOKEN=hunter2-hunter2\n")
    monkeypatch.setattr(release, "question", lambda *_: ("/ok", "shop.test", INVOCATION))
    for status, body, headers in (
        (503, b'{"detail": "no login with hunter2-hunter2"}', {}),
        (302, b"", {"Location": "/x?t=hunter2-hunter2"}),
    ):
        server.answer = (status, body, headers)
        answer = release.ask(app, ("127.0.0.1", server.server_address[1]), PID)
        assert "[Filtered]" in answer["reason"]
        assert "hunter2" not in answer["reason"]
