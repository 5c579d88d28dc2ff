"""WebSockets: handshakes, refusals, and a stop that loses no message that a client has sent."""

import asyncio
import json
import select
import threading
import time
from contextlib import ExitStack

import pytest
from runner.tests import web
from runner.tests.clients import Connection, ask
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from booty_runner._vendor import uvloop
from booty_runner.identity import Identity
from booty_runner.protocol_config import Config
from booty_runner.server import Server
from booty_runner.settings import Settings
from booty_runner.websocket import WebSocketProtocol

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
    assert "accepted" not in stderr  # uvicorn's own line would contain the query string
    assert "Traceback" not in stderr


def test_a_refused_handshake_and_one_that_is_none(serve, tcp):
    serve()
    with pytest.raises(InvalidStatus) as caught, connect(url(tcp, "/refuse")):
        pass
    assert caught.value.response.status_code == 403
    with Connection(tcp) as connection:
        connection.sock.sendall(HANDSHAKE.replace(b"version: 13", b"version: 7") % (b"/", b""))
        assert connection.receive()[0] in {400, 426}


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"cookie: " + b"c" * 20_000 + b"\r\n", 101),  # the same bound as for HTTP
        (b"cookie: " + b"c" * 70_000 + b"\r\n", 431),
        (b"".join(b"x-%d: 1\r\n" % number for number in range(200)), 431),
        (b"content-length: 5\r\n", 200),  # a request with a body is no handshake
        (b"content-length: 0\r\n", 101),
    ],
)
def test_heads_of_handshakes(serve, tcp, head, status):
    serve()
    with Connection(tcp) as connection:
        connection.sock.sendall(HANDSHAKE % (b"/", head) + b"hello" * (status == 200))
        assert connection.sock.recv(15).startswith(b"HTTP/1.1 %d " % status)


def test_a_late_head_of_a_handshake_is_refused(start, tcp):
    start(sockets=[tcp], app="web_timers:asgi", TEST_HEAD="0.3", TEST_KEEP_ALIVE="1").ready()
    with Connection(tcp) as connection:
        connection.sock.sendall((HANDSHAKE % (b"/", b""))[:80])
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
    """Sends messages until the server closes, counts them, and reads the echo if there is one."""

    def __init__(self, listener, path, pause):
        super().__init__()
        self.echo = "echo" in path
        self.url, self.pause, self.sent, self.code = url(listener, path), pause, 0, None

    def run(self):
        with connect(self.url, close_timeout=20) as client:
            try:
                while True:
                    client.send(f"message {self.sent}")
                    self.sent += 1
                    if self.echo:
                        client.recv()
                    time.sleep(self.pause)
            except ConnectionClosed as closed:
                self.code = closed.rcvd and closed.rcvd.code


@pytest.mark.parametrize(("seconds", "pause"), [(0.001, 0.0005), (0.02, 0.01)], ids=["fast app", "slow app"])
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
        closes, waiting = [], [connection.sock for connection in deaf]
        while waiting:
            for sock in select.select(waiting, [], [])[0]:
                assert sock.recv(100) == b"\x88\x02\x03\xf4"
                closes.append(time.monotonic() - began)
                waiting.remove(sock)
        assert closes[-1] - closes[0] > 1
        assert service.wait()[0] == 0
        assert time.monotonic() - began < 6
    assert sorted(notes()) == [["got", str(number), "0", "1012"] for number in range(4)]


def test_a_client_that_connects_again_does_not_reach_this_process_through_a_kept_connection(serve, tcp):
    """Booty's proxy keeps a connection to the app for 0.5 s after its last answer."""
    service = serve()
    with connect(url(tcp, "/")) as client, Connection(tcp) as kept:
        assert kept.ask("/")[0] == 200
        service.stop()
        began = time.monotonic()
        kept.sock.sendall(HANDSHAKE % (b"/", b""))
        assert kept.sock.recv(1000).startswith(b"HTTP/1.1 101 ")
        with pytest.raises(ConnectionClosed):
            client.recv()
        assert time.monotonic() - began > 0.5
        assert kept.sock.recv(100).endswith(b"\x88\x02\x03\xf4")
    assert service.wait()[0] == 0


def test_a_handshake_under_way_is_let_finish(serve, tcp):
    service = serve()
    sender = Sender(tcp, "/?accept=1", 0.01)
    sender.start()
    time.sleep(0.4)
    service.stop()
    sender.join()
    assert sender.code == 1012
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
    assert "cutting 1 requests, " in stderr


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


def test_a_client_that_closes_in_the_instant_in_which_it_is_told(tcp, monkeypatch, tmp_path):
    monkeypatch.setenv("TEST_NOTES", str(tmp_path / "notes"))
    settings = Settings()

    async def close_and_restart():
        server = Server(settings, Identity.of_this_process(settings))
        config = Config(loaded_app=web.asgi, timeout_keep_alive=75, ws_protocol_class=WebSocketProtocol)
        await server._listen(tcp, config, {})
        with Connection(tcp) as client:
            client.sock.sendall(HANDSHAKE % (b"/", b""))
            while not (websockets := server._websockets()) or not websockets[0].handshake_complete:
                await asyncio.sleep(0.01)
            websockets[0].data_received(b"\x88\x82\x00\x00\x00\x00\x03\xe8")
            websockets[0].restart()
            return await server._drain()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(close_and_restart())
    assert (tmp_path / "notes").read_text() == "got  0 1000\n"
