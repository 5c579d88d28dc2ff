"""WebSockets: what is served, what is refused, and a stop that loses no message that a client has sent."""

import json
import re
import threading
import time
from contextlib import ExitStack

import pytest
from runner.tests.clients import Connection, ask

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

HANDSHAKE = (
    b"GET %s HTTP/1.1\r\nhost: test\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s\r\n"
)


@pytest.fixture
def serve(start, tcp, tmp_path):
    def serve(**settings):
        settings = {"TEST_NOTES": str(tmp_path / "notes"), **settings}
        return start(sockets=[tcp], app="web:asgi", **settings).ready()

    return serve


@pytest.fixture
def notes(tmp_path):
    return lambda: [line.split() for line in (tmp_path / "notes").read_text().splitlines()]


def url(listener, path):
    host, port = listener.getsockname()
    return f"ws://{host}:{port}{path}"


def test_messages_go_both_ways_whatever_their_size(serve, tcp):
    service = serve()
    with connect(url(tcp, "/?echo=1"), max_size=None) as client:
        for text in ("a", "é" * 1000, "x" * 1_000_000):
            client.send(text)
            assert client.recv() == text
        client.send(b"1" * 300_000)
        assert client.recv() == "300000"
    service.stop()
    stderr = service.wait()[1]
    assert "accepted" not in stderr  # uvicorn's line has the query
    assert "Traceback" not in stderr


def test_a_refused_handshake_and_one_that_is_none(serve, tcp):
    serve()
    with pytest.raises(InvalidStatus) as caught:
        connect(url(tcp, "/refuse"))
    assert caught.value.response.status_code == 403
    with Connection(tcp) as connection:
        connection.sock.sendall(HANDSHAKE.replace(b"version: 13", b"version: 7") % (b"/", b""))
        assert connection.receive()[0] in {400, 426}


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"cookie: " + b"c" * 20_000 + b"\r\n", 101),  # as large as over HTTP
        (b"cookie: " + b"c" * 70_000 + b"\r\n", 431),
        (b"".join(b"x-%d: 1\r\n" % number for number in range(200)), 431),
        (b"content-length: 5\r\n", 200),  # no WebSocket has a body
        (b"content-length: 0\r\n", 101),
    ],
)
def test_heads_of_handshakes(serve, tcp, head, status):
    serve()
    with Connection(tcp) as connection:
        connection.sock.sendall(HANDSHAKE % (b"/", head) + b"hello" * (status == 200))
        assert connection.sock.recv(15).startswith(b"HTTP/1.1 %d " % status)


def test_a_late_head_of_a_handshake_is_refused(start, tcp, tmp_path):
    start(sockets=[tcp], app="service:create_app()", TEST_HEAD="0.3").ready()
    with Connection(tcp) as connection:
        connection.sock.sendall(HANDSHAKE[:80])
        assert connection.receive()[0] == 408


def test_bytes_behind_the_head_are_the_first_message(serve, tcp):
    serve()
    frame = bytes([0x81, 0x82, 0, 0, 0, 0]) + b"hi"
    with Connection(tcp) as connection:
        connection.sock.sendall(HANDSHAKE % (b"/?echo=1", b"") + frame)
        received = b""
        while not received.endswith(b"\x81\x02hi"):
            received += connection.sock.recv(1000)
        assert received.startswith(b"HTTP/1.1 101 ")


def test_an_idle_websocket_outlives_the_timers_of_http(start, tcp, tmp_path):
    notes = str(tmp_path / "notes")
    start(sockets=[tcp], app="web_timers:asgi", TEST_NOTES=notes, TEST_HEAD="0.3", TEST_KEEP_ALIVE="1").ready()
    with Connection(tcp) as connection:
        assert connection.ask("/")[0] == 200
        connection.sock.sendall(HANDSHAKE % (b"/?echo=1", b""))
        assert connection.sock.recv(1000).startswith(b"HTTP/1.1 101 ")
        time.sleep(1.6)
        connection.sock.sendall(bytes([0x81, 0x82, 0, 0, 0, 0]) + b"hi")
        assert connection.sock.recv(100) == b"\x81\x02hi"


# --- the stop -------------------------------------------------------------------------------------------


class Sender(threading.Thread):
    """Sends until the server closes; counts what it had sent by then, without any answer."""

    def __init__(self, listener, path, pause):
        super().__init__()
        self.client = connect(url(listener, path), close_timeout=20)
        self.pause, self.sent, self.code = pause, 0, None

    def run(self):
        try:
            while True:
                self.client.send(f"message {self.sent}")
                self.sent += 1
                time.sleep(self.pause)
        except ConnectionClosed as closed:
            self.code = closed.rcvd and closed.rcvd.code
        self.client.close()


@pytest.mark.parametrize(("seconds", "pause"), [(0.001, 0), (0.02, 0.01)], ids=["fast app", "slow app"])
@pytest.mark.parametrize("echo", ["", "&echo=1"], ids=["silent", "echo"])
def test_a_stop_delivers_what_clients_had_sent(serve, tcp, notes, seconds, pause, echo):
    service = serve()
    senders = [Sender(tcp, f"/?name={number}&seconds={seconds}{echo}", pause) for number in range(8)]
    for sender in senders:
        sender.start()
    time.sleep(1)
    began = time.monotonic()
    service.stop()
    for sender in senders:
        sender.join()
    assert service.wait(40)[0] == 0
    assert 1 < time.monotonic() - began < 25
    assert [sender.code for sender in senders] == [1012] * 8
    got = {name: (int(count), code) for _, name, count, code in notes()}
    assert got == {str(number): (sender.sent, "1012") for number, sender in enumerate(senders)}


def test_closes_are_spread_and_a_client_that_does_not_answer_is_cut(serve, tcp, notes):
    service = serve()
    with ExitStack() as stack:
        deaf = [stack.enter_context(Connection(tcp)) for _ in range(4)]
        for number, connection in enumerate(deaf):
            connection.sock.sendall(HANDSHAKE % (b"/?name=%d" % number, b""))
            assert connection.sock.recv(1000).startswith(b"HTTP/1.1 101 ")
        began = time.monotonic()
        service.stop()
        closes = []
        for connection in deaf:
            assert connection.sock.recv(100) == b"\x88\x02\x03\xf4"
            closes.append(time.monotonic() - began)
        assert closes[-1] - closes[0] > 1
        assert service.wait()[0] == 0
        assert time.monotonic() - began < 6
    assert sorted(notes()) == [["got", str(number), "0", "1012"] for number in range(4)]


def test_a_handshake_under_way_is_let_finish(serve, tcp):
    service = serve()
    opened = []
    thread = threading.Thread(target=lambda: opened.append(connect(url(tcp, "/?accept=1"))))
    thread.start()
    time.sleep(0.4)
    service.stop()
    thread.join()
    with pytest.raises(ConnectionClosed) as closed:
        opened[0].recv(timeout=5)
    assert closed.value.rcvd.code == 1012
    assert service.wait()[0] == 0


def test_what_is_left_at_the_end_of_the_drain_is_cut(serve, tcp):
    service = serve(BOOTY_DRAIN_SECONDS="1")
    with connect(url(tcp, "/?seconds=60")) as client:
        client.send("long")
        time.sleep(0.3)
        began = time.monotonic()
        service.stop()
        status, stderr = service.wait()
        assert time.monotonic() - began < 4
    assert status == 0
    assert re.search(r"cutting 1 requests, 1 connections after 1\.\d s", stderr)


def test_workers_drain_their_websockets(serve, tcp, notes):
    service = serve(BOOTY_WORKERS="2")
    senders = [Sender(tcp, f"/?name={number}&seconds=0.001", 0.005) for number in range(6)]
    for sender in senders:
        sender.start()
    time.sleep(0.5)
    service.stop()
    for sender in senders:
        sender.join()
    assert service.wait()[0] == 0
    assert {name: int(count) for _, name, count, _ in notes()} == {
        str(number): sender.sent for number, sender in enumerate(senders)
    }


def test_an_asgi_2_app_has_websockets_too(start, tcp, tmp_path):
    start(sockets=[tcp], app="web:asgi2", TEST_NOTES=str(tmp_path / "notes")).ready()
    with connect(url(tcp, "/?echo=1")) as client:
        client.send("a")
        assert client.recv() == "a"
    assert json.loads(ask(tcp, "/a")[2])["path"] == "/a"
