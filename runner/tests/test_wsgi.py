"""WSGI apps: the rules of PEP 3333 for servers, clients that are slow or leave, and the threads."""

import json
import re
import socket
import threading
import time
from contextlib import ExitStack

import pytest
from runner.tests.clients import Connection, ask


@pytest.fixture
def notes(tmp_path):
    """Return a function that waits for so many lines of the app's notes."""
    path = tmp_path / "notes"

    def notes(count=0, seconds=5):
        deadline = time.monotonic() + seconds
        while len(lines := path.read_text().splitlines() if path.exists() else []) < count:
            assert time.monotonic() < deadline, lines
            time.sleep(0.01)
        return lines

    return notes


@pytest.fixture
def wsgi(start, tcp, tmp_path):
    def wsgi(threads=4, **settings):
        settings = {"TEST_NOTES": str(tmp_path / "notes"), "BOOTY_THREADS": str(threads), **settings}
        return start(sockets=[tcp], app="web:wsgi", **settings).ready()

    return wsgi


def raw(listener, data, *more, end=True):
    """Send bytes, and return all bytes until the connection ends."""
    with Connection(listener) as connection:
        connection.sock.sendall(data)
        for part in more:
            time.sleep(0.05)
            connection.sock.sendall(part)
        received = b""
        while part := connection.sock.recv(65536):
            received += part
        return received


def get(path, version="1.1", *headers):
    return "\r\n".join([f"GET {path} HTTP/{version}", "host: test", "connection: close", *headers, "", ""]).encode()


# --- the environ ----------------------------------------------------------------------------------------


def test_environ(wsgi, tcp):
    wsgi()
    status, _, body = ask(tcp, "/environ?a=%20b", **{"x-a": "1", "cookie": "a=b", "content-type": "text/x"})
    environ = json.loads(body)
    host, port = tcp.getsockname()
    assert status == 200
    assert environ.pop("REMOTE_PORT").isdecimal()
    assert environ == {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/environ",
        "QUERY_STRING": "a=%20b",
        "RAW_URI": "/environ?a=%20b",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_TYPE": "text/x",
        "HTTP_HOST": "test",
        "HTTP_X_A": "1",
        "HTTP_COOKIE": "a=b",
        "wsgi.url_scheme": "http",
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
    }


def test_headers_that_come_twice_or_have_an_underscore(wsgi, tcp):
    wsgi()
    lines = ["X-A: 1", "x-a: 2", "Cookie: a=b", "Cookie: c=d", "X_Forwarded_For: 1.2.3.4", "X_A: 3", "X-L: \xe9"]
    head, _, body = raw(tcp, get("/environ", "1.0", *lines).decode().encode("latin-1")).partition(b"\r\n\r\n")
    environ = json.loads(body)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert (environ["HTTP_X_A"], environ["HTTP_COOKIE"], environ["HTTP_X_L"]) == ("1,2", "a=b; c=d", "\xe9")
    assert "HTTP_X_FORWARDED_FOR" not in environ
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.0"


@pytest.mark.parametrize(("path", "expected"), [("/%FF", b"/\xff"), ("/%C3%A9", "/é".encode()), ("/a%2Fb", b"/a/b")])
def test_bytes_of_a_path_are_kept(wsgi, tcp, path, expected):
    wsgi()
    assert ask(tcp, path)[2] == expected


# --- request bodies -------------------------------------------------------------------------------------


def post(path, body, chunked=False):
    if chunked:
        coded = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:]) if part) + b"0\r\n\r\n"
        length, body = b"transfer-encoding: chunked", coded
    else:
        length = b"content-length: %d" % len(body)
    return b"POST %s HTTP/1.1\r\nhost: test\r\nconnection: close\r\n%s\r\n\r\n%s" % (path, length, body)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("size", [0, 1, 100_000, 256 * 1024, 256 * 1024 + 1, 5_000_000])
def test_bodies_are_whole(wsgi, tcp, chunked, size):
    wsgi()
    body = bytes(range(256)) * (size // 256 + 1)
    assert raw(tcp, post(b"/read", body[:size], chunked)).endswith(b"\r\n\r\n%d" % size)
    assert raw(tcp, post(b"/read/sum", body[:size], chunked)).endswith(b"\r\n\r\n%d" % sum(body[:size]))


@pytest.mark.parametrize("size", [100, 1_000_000])
def test_lines_of_a_body(wsgi, tcp, size):
    wsgi()
    body = b"x" * size + b"\ny\nz"
    first = min(size + 1, 65536)
    rest = [size + 1 - first] if size + 1 > first else []
    assert json.loads(raw(tcp, post(b"/readline", body)).partition(b"\r\n\r\n")[2]) == [first, *rest, 2, 1]


def test_slow_small_uploads_take_no_thread(wsgi, tcp):
    wsgi(threads=1)
    with ExitStack() as stack:
        uploads = [stack.enter_context(Connection(tcp)) for _ in range(6)]
        for upload in uploads:
            upload.sock.sendall(b"POST /read HTTP/1.1\r\nhost: test\r\ncontent-length: 4\r\n\r\nab")
        began = time.monotonic()
        assert ask(tcp, "/environ")[0] == 200
        assert time.monotonic() - began < 1
        for upload in uploads:
            upload.sock.sendall(b"cd")
            assert upload.receive()[2] == b"4"


def test_a_client_that_leaves_within_its_upload(wsgi, tcp, notes):
    service = wsgi()
    with Connection(tcp) as upload:
        upload.sock.sendall(
            b"POST /departure HTTP/1.1\r\nhost: test\r\ncontent-length: 900000\r\n\r\n" + b"x" * 300_000
        )
        time.sleep(0.3)
    assert notes(1) == ["reset ClientLeft"]
    assert ask(tcp, "/environ")[0] == 200
    service.stop()
    assert "Traceback" not in service.wait()[1]


def test_a_large_upload_waits_for_the_app(wsgi, tcp):
    """The service reads only as much of the body as the app asks for."""
    wsgi()
    with Connection(tcp) as upload:
        upload.sock.setblocking(False)
        upload.sock.send(b"POST /sleep?seconds=2 HTTP/1.1\r\nhost: test\r\ncontent-length: 90000000\r\n\r\n")
        sent, until = 0, time.monotonic() + 1
        while time.monotonic() < until:
            try:
                sent += upload.sock.send(b"x" * 65536)
            except BlockingIOError:
                time.sleep(0.01)
        assert sent < 12_000_000  # the kernel's buffers hold most of it


# --- responses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "length", "body"),
    [
        ("/write", 200, None, b"one two three"),
        ("/pieces", 200, None, b"one two"),
        ("/empty", 200, "0", b""),
        ("/none", 304, None, b""),
        ("/long", 200, "4", b"abcd"),
        ("/exc_info/before", 503, "5", b"sorry"),
        ("/fail", 500, "21", b"Internal Server Error"),
        ("/twice", 500, "21", b"Internal Server Error"),
        ("/silent", 500, "21", b"Internal Server Error"),
        ("/exit", 500, "21", b"Internal Server Error"),
    ],
)
def test_responses(wsgi, tcp, path, status, length, body):
    wsgi()
    with Connection(tcp) as connection:
        answer = connection.ask(path)
        assert (answer[0], answer[1]["content-length"], answer[2]) == (status, length, body)
    assert ask(tcp, "/environ")[0] == 200


def test_a_response_that_http_does_not_know_becomes_a_500(start, tcp, tracker):
    """The client gets an answer, and the tracker an event for each."""
    service = start(sockets=[tcp], app="web:wsgi", SENTRY_DSN=tracker.dsn).ready()
    queries = [
        *("value=a%0d%0aSet-Cookie:+b", "value=%00", "value=%e2%82%ac", "value=7"),
        *("name=a+b", "name=a%0d%0ab"),
        *("status=99+Low", "status=100+Continue", "status=700+High", "status=OK", "status=20%c2%b2+OK"),
        *(f"name=Content-Length&value={value}" for value in ("-4", "four", "5")),
        *("body=str", "body=strs"),
    ]
    answers = {query: ask(tcp, f"/wrong?{query}") for query in queries}
    assert {query: (status, body) for query, (status, _, body) in answers.items()} == dict.fromkeys(
        queries, (500, b"Internal Server Error")
    )
    assert ask(tcp, "/environ")[0] == 200
    service.stop()
    assert service.wait()[1].count("Traceback") == len(queries) == len(tracker.events)


@pytest.mark.parametrize("path", ["/environ", "/write", "/empty", "/file"])
def test_head_has_no_body(wsgi, tcp, path):
    wsgi()
    request = get(path).replace(b"GET", b"HEAD")
    head, _, body = raw(tcp, request).partition(b"\r\n\r\n")
    assert (head[:15], body) == (b"HTTP/1.1 200 OK", b"")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/short", "Response content shorter than Content-Length"),
        ("/exc_info/after", "LookupError: after the body began"),
    ],
)
def test_a_response_that_can_not_be_completed_is_cut(wsgi, tcp, path, line):
    service = wsgi()
    received = raw(tcp, get(path).replace(b"connection: close\r\n", b""))
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert not received.endswith(b"0\r\n\r\n")
    assert b"never" not in received
    service.stop()
    _, stderr = service.wait()
    assert line in stderr
    assert stderr.count("Traceback") == 1


def test_a_file(wsgi, tcp):
    wsgi()
    with open(__file__.replace("test_wsgi", "web"), "rb") as file:
        assert ask(tcp, "/file")[2] == file.read()


def test_errors_go_to_stderr_and_contexts_stay_apart(wsgi, tcp):
    service = wsgi(threads=1)
    assert ask(tcp, "/errors")[0] == 200
    assert [ask(tcp, "/context")[2] for _ in range(3)] == [b"nothing"] * 3
    service.stop()
    assert "to the error stream\n" in service.wait()[1]


# --- clients that are slow or leave ---------------------------------------------------------------------


def test_streams_whose_clients_leave_are_closed(wsgi, tcp, notes):
    wsgi(threads=4)
    for number in range(5):
        with Connection(tcp) as connection:
            connection.send(f"/stream?seconds=0.05&name={number}")
            assert connection.sock.recv(100).startswith(b"HTTP/1.1 200")
    assert len(notes(5, seconds=3)) == 5
    assert ask(tcp, "/environ")[0] == 200


def test_a_stream_waits_for_a_client_that_does_not_read(wsgi, tcp, notes):
    wsgi()
    with Connection(tcp) as connection:
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.send("/stream?seconds=0&size=65536&name=slow")
        time.sleep(1)
    (line,) = notes(1)
    assert int(line.split()[-1]) < 150  # the kernel's buffers hold most of them


# --- threads and the stop -------------------------------------------------------------------------------


def test_threads_are_started_as_they_are_needed(wsgi, tcp):
    service = wsgi(threads=3)

    def count():
        with open(f"/proc/{service.process.pid}/status") as file:
            return int(re.search(r"Threads:\t(\d+)", file.read())[1])

    before = count()
    names, lock = set(), threading.Lock()

    def client():
        name = ask(tcp, "/sleep?seconds=0.4")[2]
        with lock:
            names.add(name)

    began = time.monotonic()
    clients = [threading.Thread(target=client) for _ in range(6)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert 0.8 <= time.monotonic() - began < 1.6
    assert len(names) == 3
    assert count() <= before + 2  # the health request started the first thread


def test_a_stop_finishes_requests_and_ends_streams(wsgi, tcp, notes):
    service = wsgi(BOOTY_STREAM_SECONDS="0.3")
    with Connection(tcp) as slow, Connection(tcp) as stream:
        stream.send("/stream?seconds=0.05&name=at-the-stop")
        slow.send("/sleep?seconds=0.7")
        time.sleep(0.2)
        service.stop()
        assert slow.receive()[1]["connection"] == "close"
    assert service.wait()[0] == 0
    assert notes(1)[0].startswith("closed at-the-stop")


def test_a_thread_that_hangs_does_not_hold_the_exit(wsgi, tcp):
    service = wsgi(BOOTY_DRAIN_SECONDS="0.5")
    with Connection(tcp) as connection:
        connection.send("/sleep?seconds=30")
        time.sleep(0.2)
        began = time.monotonic()
        service.stop()
        assert service.wait()[0] == 0
        assert time.monotonic() - began < 4


def test_a_wsgi_app_has_no_websockets(wsgi, tcp):
    wsgi()
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13", "sec-websocket-key": "a"}
    assert "HTTP_UPGRADE" not in json.loads(ask(tcp, "/environ", **upgrade)[2])
