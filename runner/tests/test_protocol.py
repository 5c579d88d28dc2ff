"""HTTP as clients send it, over raw sockets: heads that are late or too large, upgrades, pipelines, streams."""

import http.client
import itertools
import json
import socket
import time

import pytest
from runner.tests.clients import Connection, answers, ask

HALF = b"GET / HTTP/1.1\r\nhost: te"


def rest(connection):
    """Return all bytes until the connection ends."""
    return answers(connection, 0)[1]


# --- upgrades -------------------------------------------------------------------------------------------

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: test\r\n\r\n"
UPGRADES = {
    "curl": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
    "java": "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\nUpgrade: h2c",
    "websocket": "Connection: keep-alive, upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13",
    "tls": "upgrade: TLS/1.0\r\nconnection: UPGRADE",
    "list": "Connection: Upgrade\r\nUpgrade: h2c, websocket\r\nUpgrade: IRC/6.9",
    "unknown": "Connection: Upgrade\r\nUpgrade: \x80?!",
    "empty": "Connection: Upgrade\r\nUpgrade:",
    "not named": "Upgrade: h2c",
    "nothing": "Connection: Upgrade",
}
BODIES = {
    "length": (b"content-length: %d\r\n\r\n" % len(SMUGGLED), SMUGGLED),
    "chunked": (b"transfer-encoding: chunked\r\n\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)),
    "none": (b"\r\n", b""),
}
PACKETS = {
    "one": lambda head, body, more: [head + body + more],
    "body apart": lambda head, body, more: [head, body, more],
    "body behind": lambda head, body, more: [head + body[:7], body[7:] + more],
    "bytes": lambda head, body, more: [bytes([byte]) for byte in head + body + more],
}


def test_each_upgrade_is_ignored_and_no_body_is_a_request(start, tcp):
    start(sockets=[tcp]).ready()
    for (upgrade, lines), (kind, (length, body)), (way, packets) in itertools.product(
        UPGRADES.items(), BODIES.items(), PACKETS.items()
    ):
        method = b"POST" if body else b"GET"
        head = method + b" /echo HTTP/1.1\r\nhost: test\r\n" + lines.encode("latin-1") + b"\r\nx: y\r\n" + length
        # The same request again on the connection, and then one without an upgrade.
        more = head + body + b"GET /echo?last HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"
        with Connection(tcp) as connection:
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for packet in packets(head, body, more):
                connection.sock.sendall(packet)
                if way.startswith("body"):
                    time.sleep(0.003)
            (*twice, last), behind = answers(connection, 3)
            assert behind == b"", (upgrade, kind, way)
        for status, answer in twice:
            request = json.loads(answer)
            assert status == 200, (upgrade, kind, way)
            assert request["body"] == (SMUGGLED.decode() if body else ""), (upgrade, kind, way)
            assert request["method"].encode() == method
            assert {"host", "x"} <= set(request["names"])
        assert last[0] == 200


REFUSED = [
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT test:443 HTTP/1.1\r\nhost: test\r\ncontent-length: 38\r\n\r\n",
    b"CONNECT / HTTP/1.1\r\nhost: test\r\n\r\n",
    b"CONNECT / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\ntransfer-encoding: gzip\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 3\r\n"
    b"transfer-encoding: chunked\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\ntransfer-encoding: chunked\r\n\r\n",
]


def test_what_can_not_be_parsed_is_refused_behind_the_answers_to_what_can(start, tcp):
    start(sockets=[tcp]).ready()
    for refused, before in itertools.product(REFUSED, (0, 2)):
        with Connection(tcp) as connection:
            whole = b"GET /slow?seconds=0.05 HTTP/1.1\r\nhost: test\r\n\r\n"
            connection.sock.sendall(whole * before + refused + SMUGGLED)
            answered, refusal = answers(connection, before)
        assert answered == [(200, b'"done"')] * before, refused
        assert refusal.count(b"HTTP/1.1") == (not before), refused
        assert refusal.startswith(b"HTTP/1.1 400 Bad Request\r\n") or before, refused


def test_a_body_that_breaks_is_not_answered_within_another_answer(start, tcp):
    start(sockets=[tcp]).ready()
    with Connection(tcp) as connection:
        connection.sock.sendall(
            b"GET /events/plain HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n"
        )
        connection.sock.recv(65536)
        connection.sock.sendall(b"no chunk\r\n")
        assert b"HTTP/1.1" not in rest(connection)


def test_fields_behind_a_body_are_not_among_the_headers(start, tcp):
    start(sockets=[tcp]).ready()
    with Connection(tcp) as connection:
        connection.sock.sendall(
            b"POST /echo HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n"
            b"2\r\nab\r\n0\r\nx-user: root\r\n\r\n"
        )
        status, _, body = connection.receive()
    assert (status, json.loads(body)["names"]) == (200, ["host", "transfer-encoding"])


# --- heads ----------------------------------------------------------------------------------------------


def head_of(size):
    begin, end = b"GET / HTTP/1.1\r\nhost: test\r\n", b"\r\n"
    line = b"x-long: %s\r\n"
    return begin + line % (b"y" * (size - len(begin + line + end) + 2)) + end


LARGE = {
    "a field": [b"GET / HTTP/1.1\r\nx: ", *[b"y" * 4096] * 256, b"\r\n\r\n"],
    "a path": [b"GET /", *[b"y" * 4096] * 256, b" HTTP/1.1\r\n\r\n"],
    "a name": [b"GET / HTTP/1.1\r\n", *[b"y" * 4096] * 256, b": x\r\n\r\n"],
    "many": [b"GET / HTTP/1.1\r\n", *[b"x: y\r\n" * 512] * 256, b"\r\n"],
    "at once": [head_of(2**20)],
    "just too large": [head_of(2**16 + 100)],
    "upgrade": [b"GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n" + head_of(2**17).partition(b"\r\n")[2]],
    "behind a body": [
        b"POST /echo HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n",
        *[b"x: y\r\n" * 512] * 256,
        b"\r\n",
    ],
    "blank lines": [b"\r\n" * 4096] * 256,
}


def test_a_head_that_is_too_large_is_answered_431(start, tcp):
    start(sockets=[tcp]).ready()
    for name, pieces in LARGE.items():
        with Connection(tcp) as connection:
            for piece in pieces:
                connection.sock.sendall(piece)
            assert rest(connection).startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n"), name
    with Connection(tcp) as connection:
        # Bytes that arrive in the same packet as a body do not count.
        for size in (60_000, 300, 60_000):
            connection.sock.sendall(b"POST /early HTTP/1.1\r\nhost: test\r\ncontent-length: 200000\r\n\r\n")
            connection.sock.sendall(b"z" * 200_000 + head_of(size))
        connection.sock.sendall(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")
        assert [status for status, _ in answers(connection, 7)[0]] == [200] * 7


def test_a_head_has_its_time_in_all_and_a_silent_connection_ends(start, tcp):
    start(sockets=[tcp], TEST_HEAD="0.6", TEST_KEEP_ALIVE="2").ready()
    with Connection(tcp) as half, Connection(tcp) as drip, Connection(tcp) as silent, Connection(tcp) as kept:
        assert kept.ask("/")[0] == 200
        began = time.monotonic()
        half.sock.sendall(HALF)
        kept.sock.sendall(b"\r\n")  # an empty line before a request begins no request
        ends = {}
        waiting = {connection.sock: connection for connection in (half, drip, silent)}
        while waiting and time.monotonic() - began < 5:
            time.sleep(0.05)
            for sock in list(waiting):
                sock.setblocking(False)
                try:
                    if sock is drip.sock:
                        sock.send(b"x" if ends.get("begun") else HALF)
                        ends["begun"] = 1
                    ends[sock] = sock.recv(100)
                    del waiting[sock]
                    ends[sock, "at"] = time.monotonic() - began
                except BlockingIOError:
                    pass
        assert not waiting
        for connection, answer in ((half, b"HTTP/1.1 408"), (drip, b"HTTP/1.1 408"), (silent, b"")):
            assert ends[connection.sock].startswith(answer)
            assert 0.5 < ends[connection.sock, "at"] < 1.8
        assert kept.ended()
        assert 1.8 < time.monotonic() - began < 5


def test_each_connection_ends_after_its_time(start, tcp):
    """This holds too for a connection whose request was answered before its body had arrived."""
    start(sockets=[tcp], TEST_HEAD="0.4", TEST_KEEP_ALIVE="1").ready()
    with Connection(tcp) as connection:
        connection.sock.sendall(b"POST /early HTTP/1.1\r\nhost: test\r\ncontent-length: 3\r\n\r\nab")
        assert connection.receive()[0] == 200
        time.sleep(1.3)
        connection.sock.sendall(b"c")
        for _ in range(2):
            connection.send("/slow?seconds=0.6")  # longer than the bound of a head
            connection.sock.sendall(HALF)
            assert connection.receive()[0] == 200
            connection.sock.sendall(b"st\r\n\r\n")
            assert connection.receive()[0] == 200
        began = time.monotonic()
        assert connection.ended()
        assert 0.9 < time.monotonic() - began < 5


def test_half_a_head_is_idle_at_the_stop_and_a_body_is_work(start, tcp):
    service = start(sockets=[tcp], BOOTY_IDLE_SECONDS="0.3").ready()
    halves = [Connection(tcp) for _ in range(6)]
    with Connection(tcp) as used, Connection(tcp) as upload, Connection(tcp) as early:
        assert used.ask("/")[0] == 200
        for connection in (*halves, used):
            connection.sock.sendall(HALF)
        for connection, path in ((upload, b"echo"), (early, b"early")):
            connection.sock.sendall(b"POST /%s HTTP/1.1\r\nhost: test\r\ncontent-length: 3\r\n\r\na" % path)
        assert early.receive()[0] == 200
        began = time.monotonic()
        service.stop()
        for connection in (*halves, used):
            assert connection.ended()
        assert 0.25 < time.monotonic() - began < 5
        time.sleep(0.5)
        for connection in (upload, early):
            connection.sock.sendall(b"b")
            time.sleep(0.1)
            connection.sock.sendall(b"c")
        assert upload.receive()[0] == 200
        assert upload.ended()
        assert early.ended()
    assert service.wait()[0] == 0
    for connection in halves:
        connection.sock.close()


# --- streams --------------------------------------------------------------------------------------------


def test_streams_end_soon_after_the_stop_without_an_event(start, tcp, tracker):
    service = start(
        sockets=[tcp], BOOTY_STREAM_SECONDS="0.4", BOOTY_DRAIN_SECONDS="2.5", SENTRY_DSN=tracker.dsn
    ).ready()
    kinds = ("plain", "plain", "thread", "large", "deaf")
    streams = [Connection(tcp) for _ in kinds]
    with Connection(tcp) as slow, Connection(tcp) as download, Connection(tcp) as head:
        for connection, kind in zip(streams, kinds, strict=True):
            connection.send(f"/events/{kind}")
            if kind == "plain":
                connection.send("/")  # a pipelined request after the stream
        head.send("/events/plain", "HEAD")
        slow.send("/slow?seconds=1.2")
        time.sleep(0.2)
        download.send("/events/download")
        began = time.monotonic()
        service.stop()
        for connection, kind in zip(streams, kinds, strict=True):
            if kind != "large":  # this client does not read
                with pytest.raises(http.client.IncompleteRead):
                    connection.receive()
        assert 0.35 < time.monotonic() - began < 2
        assert slow.receive()[0] == 200
        assert download.receive()[2] == b"x" * 20
    status, stderr = service.wait()
    assert status == 0
    assert 2.4 < time.monotonic() - began < 8  # a stream that ignores http.disconnect is cut
    assert "cutting 1 requests, 0 connections after 2.5 s" in stderr
    assert stderr.count("the events end") == 3
    assert "Traceback" not in stderr
    assert tracker.events == []
    for connection in streams:
        connection.sock.close()


def test_a_stream_that_is_cut_at_once_is_no_event(start, tcp, tracker):
    service = start(sockets=[tcp], BOOTY_DRAIN_SECONDS="0.2", SENTRY_DSN=tracker.dsn).ready()
    with Connection(tcp) as stream, Connection(tcp) as deaf:
        stream.send("/events/plain")
        deaf.send("/events/deaf")
        time.sleep(0.2)
        service.stop()
        status, stderr = service.wait()
    assert (status, tracker.events) == (0, [])
    assert "Traceback" not in stderr


def test_a_client_that_leaves_within_its_request_is_no_event(start, tcp, tracker):
    service = start(sockets=[tcp], SENTRY_DSN=tracker.dsn).ready()
    for path in ("/echo", "/leak/body/1/2", "/events/plain"):
        with Connection(tcp) as connection:
            method = "GET" if path.startswith("/events") else "POST"
            connection.send(path, method, **({} if method == "GET" else {"content-length": "100"}))
            connection.sock.sendall(b"" if method == "GET" else b"begun")
            time.sleep(0.1)
    with Connection(tcp) as connection:  # a pipelined request waits behind the stream whose client leaves
        connection.send("/events/plain")
        connection.send("/")
        time.sleep(0.1)
    time.sleep(0.2)
    assert ask(tcp, "/")[0] == 200
    service.stop()
    status, stderr = service.wait()
    assert (status, tracker.events) == (0, [])
    assert "Traceback" not in stderr
    assert stderr.count("the client left within its request to") == 2
    assert stderr.count("the events end") == 2
