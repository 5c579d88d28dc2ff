"""The access log: what each request's line says, and which requests have none."""

import json
import re
import time

import pytest
from runner.tests.clients import Connection, answers, ask
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

LINE = re.compile(r"booty_runner\.access: (\S+) (\S+) (\S+) ([\d.]+) ms (\d+) bytes( aborted)? \(request ([\w.-]+)\)$")


def lines(stderr):
    """Return method, path, status, bytes, whether it was aborted, and the request's id, of each line."""
    found = [LINE.search(line) for line in stderr.splitlines() if "booty_runner.access" in line]
    return [(m[1], m[2], m[3], int(m[5]), bool(m[6]), m[7]) for m in found]


@pytest.fixture
def logged(start, tcp, tmp_path):
    """Return a function that starts an app with the access log, and one that stops it and returns the lines."""

    def logged(app, **settings):
        settings = {"TEST_NOTES": str(tmp_path / "notes"), "BOOTY_ACCESS_LOG": "true", **settings}
        service = start(sockets=[tcp], app=app, **settings).ready()

        def end():
            service.stop()
            return service.wait()[1]

        return end

    return logged


def test_a_line_has_no_query_and_no_control_character(logged, tcp):
    end = logged("web:wsgi", BOOTY_LOG_FORMAT="text")
    ask(tcp, "/environ?token=hunter2", **{"x-request-id": "0123456789"})
    ask(tcp, "/a%0A%1b%20x//..?")
    ask(tcp, "http://other.test/absolute")
    ask(tcp, "/" + "l" * 5000)
    ask(tcp, "/read", "POST")
    with Connection(tcp) as connection:
        connection.send("/path", "HEAD")
        connection.sock.recv(1000)
    stderr = end()
    assert "hunter2" not in stderr
    first, *others, long, post, head = lines(stderr)
    assert first[:3] + first[4:] == ("GET", "/environ", "200", False, "0123456789")
    assert [line[1] for line in others] == ["/a%0A%1b%20x//..", "/absolute"]
    assert long[1] == "/" + "l" * 999 + "…"
    assert post[:4] == ("POST", "/read", "200", 1)
    assert head[:4] == ("HEAD", "/path", "200", 0)


APPS = {
    "web:wsgi": ("/stream?seconds=0.01", "/fail", "/sleep?seconds=0.3"),
    "service:create_app()": ("/events/forever", "/fail/now", "/slow?seconds=0.3"),
}


@pytest.mark.parametrize("app", APPS)
def test_errors_streams_and_clients_that_leave(logged, tcp, app):
    end = logged(app)
    stream, fails, slow = APPS[app]
    with Connection(tcp) as connection:
        connection.send(stream)
        connection.sock.recv(1000)
    ask(tcp, fails)
    with Connection(tcp) as connection:
        connection.send(slow)
        time.sleep(0.1)
    time.sleep(0.5)
    told = {line[1]: line[2:5] for line in lines(end())}
    status, size, aborted = told[stream.partition("?")[0]]
    assert (status, size > 0, aborted) == ("200", True, True)
    assert told[fails][::2] == ("500", False)
    assert told[slow.partition("?")[0]][2]


def test_websockets_have_one_line_at_their_end(logged, tcp):
    end = logged("web:asgi")
    host, port = tcp.getsockname()
    with connect(f"ws://{host}:{port}/?echo=1&secret=hunter2") as client:
        client.send("é")
        client.recv()
        client.send(b"12345")
        client.recv()
    with pytest.raises(InvalidStatus):
        connect(f"ws://{host}:{port}/refuse")
    time.sleep(0.2)
    stderr = end()
    assert "hunter2" not in stderr
    assert [line[:5] for line in lines(stderr)] == [("GET", "/", "101", 3, False), ("GET", "/refuse", "403", 0, False)]


def test_json_has_fields(logged, tcp):
    end = logged("web:wsgi", BOOTY_LOG_FORMAT="json")
    ask(tcp, "/path", **{"x-request-id": "0123456789"})
    (event,) = [json.loads(line) for line in end().splitlines() if "booty_runner.access" in line]
    assert event.pop("milliseconds") > 0
    assert event.pop("time")
    assert event.pop("message").startswith("GET /path 200 ")
    assert event == {
        "level": "info",
        "logger": "booty_runner.access",
        "request_id": "0123456789",
        "method": "GET",
        "path": "/path",
        "status": 200,
        "bytes": 5,
        "aborted": False,
    }


def test_pipelined_requests_have_a_line_each(logged, tcp):
    end = logged("web:wsgi")
    with Connection(tcp) as connection:
        heads = (
            b"GET /%d HTTP/1.1\r\nhost: t\r\nconnection: %s\r\n\r\n" % (n, b"close" if n == 2 else b"")
            for n in range(3)
        )
        connection.sock.sendall(b"".join(heads))
        assert [status for status, _ in answers(connection, 3)[0]] == [200] * 3
    assert [line[1] for line in lines(end())] == ["/0", "/1", "/2"]


def test_the_host_programs_questions_and_the_internal_socket_have_none(start, tcp, unix):
    service = start(
        sockets=[tcp, unix], app="web:asgi", BOOTY_ACCESS_LOG="true", INVOCATION_ID="cafe", TEST_NOTES="/dev/null"
    ).ready()
    with Connection(tcp) as connection:
        answer = connection.ask("/asked", **{"x-booty-ask": "cafe"})
        assert answer[1]["x-booty-pid"]
        connection.ask("/forged", **{"x-booty-ask": "beef"})
    assert ask(unix, "/status")[0] == 200
    service.stop()
    assert [line[1] for line in lines(service.wait()[1])] == ["/forged"]


def test_it_is_off_by_default(start, tcp):
    service = start(sockets=[tcp], app="web:wsgi", TEST_NOTES="/dev/null").ready()
    assert ask(tcp, "/path")[0] == 200
    service.stop()
    assert lines(service.wait()[1]) == []
