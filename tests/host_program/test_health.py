"""The answer of /health, or the reason why there is none."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from booty_host import health
from booty_host.app import App


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers what the server was told to."""

    def do_GET(self) -> None:
        status, body = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b'{"status": "ok", "release": "abc"}', {"status": 200, "release": "abc"}),
        (503, b'{"reason": "no disk"}', {"status": 503, "reason": "no disk"}),
        (404, b"nginx", {"status": 404, "reason": "status 404, but the answer is not a JSON object"}),
        (200, b"[]", {"status": 200, "reason": "status 200, but the answer is not a JSON object"}),
    ],
)
def test_health(server: Any, status: int, body: bytes, expected: dict[str, Any]) -> None:
    server.answer = (status, body)
    assert health.ask("0.0.0.0", server.server_address[1]) == expected


def test_health_of_nobody() -> None:
    answer = health.ask("127.0.0.1", 1)
    assert answer["status"] == 0
    assert "no answer on 127.0.0.1:1: " in answer["reason"]


def test_health_without_a_socket_unit(tmp_path: Path) -> None:
    app = App("shop", tmp_path)
    answer = {"status": 0, "reason": f"{tmp_path}/etc/systemd/system/shop.socket: it names no address and port"}
    assert health.ask_installed(app) == answer
