"""The health request, the texts of refusals, and the proof of which process answers."""

import json
import socket

import pytest
from runner.tests.clients import Connection, ask

APP = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    headers = dict(scope["headers"])
    host = headers[b"host"].decode()
    path = scope["path"]
    status, more, body = 200, [], b"fine"
    if path == "/host" and host != "shop.example":
        status, body = 400, b"<h1>Bad Request (400)</h1>"
    if path == "/https" and headers.get(b"x-forwarded-proto") != b"https":
        status, more = 301, [(b"location", b"https://" + host.encode() + b"/https")]
    if path == "/scheme" and scope["scheme"] != "https":
        status, more = 307, [(b"location", b"https://" + host.encode() + b"/scheme")]
    if path == "/canonical" and host != "www.shop.example":
        status, more = 301, [(b"location", b"https://www.shop.example/canonical")]
    if path == "/login":
        status, more = 302, [(b"location", b"/accounts/login/?next=/")]
    if path == "/moved":
        status, more = 302, [(b"location", b"/moved/here")]
    if path[1:].isdecimal():
        status, body = int(path[1:]), b'{"detail": "database"}'
    if path == "/raises":
        raise ConnectionError("no database")
    if path == "/query":
        status, body = (200 if scope["query_string"] == b"full=1" else 404), b""
    if path == "/hang":
        import asyncio
        await asyncio.sleep(60)
    if path == "/silent":
        return
    await send({"type": "http.response.start", "status": status, "headers": more})
    await send({"type": "http.response.body", "body": body})
"""
WSGI = """
import time

def app(environ, start_response):
    if environ["PATH_INFO"] == "/hang":
        time.sleep(60)
    if environ["PATH_INFO"] == "/raises":
        raise ConnectionError("no database")
    start_response("200 OK" if environ["HTTP_HOST"] == "shop.example" else "400 Bad Request", [])
    return [environ["HTTP_X_FORWARDED_PROTO"].encode()]
"""


@pytest.fixture
def shop(start, tcp, tmp_path):
    def shop(code=APP, **settings):
        (tmp_path / "shop.py").write_text(code)
        (tmp_path / "short.py").write_text(
            "from booty_runner import health\nhealth.ANSWER_SECONDS = 0.5\nfrom shop import app\n"
        )
        return start(sockets=[tcp], app="short:app", **settings)

    return shop


@pytest.mark.parametrize(
    "settings",
    [
        {"BOOTY_HEALTH_PATH": "/200"},
        {"BOOTY_HEALTH_PATH": "/204"},
        {"BOOTY_HEALTH_PATH": "/query?full=1"},
        {"BOOTY_HEALTH_PATH": "/host", "BOOTY_HEALTH_HOST": "shop.example"},
        {"BOOTY_HEALTH_PATH": "/https"},
        {"BOOTY_HEALTH_PATH": "/scheme", "BOOTY_TRUSTED_PROXIES": "10.0.0.0/8"},
    ],
)
def test_an_answer_in_the_200s_is_accepted(shop, settings):
    service = shop(**settings).ready()
    service.stop()
    assert "proves little" not in service.wait()[1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"BOOTY_HEALTH_PATH": "/host"},
            "answers 400 Bad Request; if the app checks the Host header (Django's ALLOWED_HOSTS), set "
            "app_health_host to",
        ),
        (
            {"BOOTY_HEALTH_PATH": "/scheme"},
            "answers 307 Temporary Redirect and leads to https://localhost/scheme; the app wants HTTPS and "
            "does not take X-Forwarded-Proto for it: set app_trusted_proxies",
        ),
        (
            {"BOOTY_HEALTH_PATH": "/canonical"},
            "leads to https://www.shop.example/canonical; set app_health_host: www.shop.example",
        ),
        (
            {"BOOTY_HEALTH_PATH": "/login"},
            "answers 302 Found and leads to /accounts/login/; that is a login: set app_health_path to",
        ),
        (
            {"BOOTY_HEALTH_PATH": "/moved"},
            "leads to /moved/here; set app_health_path: /moved/here, if that answers 200",
        ),
        (
            {"BOOTY_HEALTH_PATH": "/401"},
            "answers 401 Unauthorized ({\"detail\": \"database\"}); set app_health_path to a path that "
            "answers without a login",
        ),
        ({"BOOTY_HEALTH_PATH": "/403"}, "set app_health_path to a path that answers without a login"),
        (
            {"BOOTY_HEALTH_PATH": "/404"},
            "answers 404 Not Found ({\"detail\": \"database\"}); set app_health_path to a path that the app "
            "has",
        ),
        ({"BOOTY_HEALTH_PATH": "/405"}, "set app_health_path to a path that takes GET"),
        (
            {"BOOTY_HEALTH_PATH": "/503"},
            "answers 503 Service Unavailable ({\"detail\": \"database\"}); the app's own error is in the "
            "lines above",
        ),
        ({"BOOTY_HEALTH_PATH": ""}, "GET / with Host localhost"),
        ({"BOOTY_HEALTH_PATH": "/raises"}, "GET /raises with Host localhost fails: ConnectionError: no database"),
        ({"BOOTY_HEALTH_PATH": "/hang"}, "GET /hang with Host localhost has no answer after 0.5 s"),
        ({"BOOTY_HEALTH_PATH": "/silent"}, "gets no answer: the app returned without one"),
    ],
)  # fmt: skip
def test_each_refusal_says_what_to_write(shop, settings, words):
    service = shop(APP.replace('[], b"fine"', "[], b\"fine\"\n    if path == '/':\n        status = 500"), **settings)
    status, stderr = service.wait()
    assert status == 1
    line = stderr.splitlines()[-1]
    assert "refusing to serve: GET " in line
    assert words in line
    assert stderr.count("Traceback") == (settings["BOOTY_HEALTH_PATH"] == "/raises")
    assert "serving release" not in stderr


@pytest.mark.parametrize("status", ["200", "302", "404"])
def test_without_a_path_any_status_below_500_counts_and_says_little(shop, status):
    service = shop(
        APP.replace('[], b"fine"', f"[], b\"fine\"\n    if path == '/':\n        status = {status}"),
        BOOTY_HEALTH_PATH="",
    )
    service.ready()
    service.stop()
    assert (
        f"GET / with Host localhost answers {status}. No health path is set, so this proves little" in service.wait()[1]
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"BOOTY_HEALTH_PATH": "/", "BOOTY_HEALTH_HOST": "shop.example"}, None),
        ({"BOOTY_HEALTH_PATH": "/"}, "answers 400 Bad Request (https)"),
        ({"BOOTY_HEALTH_PATH": "/raises"}, "ConnectionError: no database"),
        ({"BOOTY_HEALTH_PATH": "/hang"}, "has no answer after 0.5 s"),
    ],
)
def test_a_wsgi_app_is_asked_through_its_adapter(shop, settings, words):
    service = shop(WSGI, **settings)
    if words is None:
        service.ready()
        return
    status, stderr = service.wait()
    assert status == 1
    assert words in stderr.splitlines()[-1]


# --- which process answers ------------------------------------------------------------------------------

INVOCATION = "0123456789abcdef0123456789abcdef"


def seen(answer):
    return answer[1]["x-booty-release"], answer[1]["x-booty-pid"]


@pytest.mark.parametrize("app", ["web:asgi", "web:wsgi"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_who_answers_is_told_to_those_who_know_the_process(start, tcp, tmp_path, app, workers):
    settings = {"SENTRY_RELEASE": "abc", "BOOTY_WORKERS": workers, "TEST_NOTES": str(tmp_path / "notes")}
    service = start(sockets=[tcp], app=app, INVOCATION_ID=INVOCATION, **settings).ready()
    expected = ("abc", str(service.process.pid))
    for _ in range(10):
        answer = ask(tcp, "/environ", **{"x-booty-ask": INVOCATION})
        assert seen(answer) == expected
        assert b"ooty_ask" not in answer[2].lower().replace(b"-", b"_")
    for wrong in ("", "abc", INVOCATION[:-1], INVOCATION.upper()):
        answer = ask(tcp, "/environ", **{"x-booty-ask": wrong})
        assert seen(answer) == (None, None)
        assert b"ooty_ask" not in answer[2].lower().replace(b"-", b"_")
    assert seen(ask(tcp, "/environ")) == (None, None)
    with Connection(tcp) as connection:  # one connection, with and without the header
        assert seen(connection.ask("/", **{"X-Booty-Ask": INVOCATION})) == expected
        assert seen(connection.ask("/")) == (None, None)
        connection.sock.sendall(f"GET / HTTP/1.0\r\nX-Booty-Ask: {INVOCATION}\r\n\r\n".encode())
        assert seen(connection.receive()) == expected


@pytest.mark.parametrize("path", ["/fail", "/exc_info/before", "/empty", "/none"])
def test_any_response_says_who_answers(start, tcp, tmp_path, path):
    service = start(sockets=[tcp], app="web:wsgi", INVOCATION_ID=INVOCATION, TEST_NOTES=str(tmp_path / "n")).ready()
    assert seen(ask(tcp, path, **{"x-booty-ask": INVOCATION}))[1] == str(service.process.pid)


def test_each_of_two_releases_on_a_socket_answers_to_its_own_id(start, tcp, tmp_path):
    ids = {"old": "1" * 32, "new": "2" * 32}
    for release, invocation in ids.items():
        notes = str(tmp_path / "notes")
        start(sockets=[tcp], app="web:asgi", INVOCATION_ID=invocation, SENTRY_RELEASE=release, TEST_NOTES=notes).ready()
    answers = {release: set() for release in ids}
    for _ in range(60):
        for release, invocation in ids.items():
            answers[release].add(ask(tcp, "/", **{"x-booty-ask": invocation})[1]["x-booty-release"])
    assert answers["old"] <= {"old", None}
    assert answers["new"] <= {"new", None}
    assert {"old", "new"} <= answers["old"] | answers["new"]


def test_a_process_that_systemd_did_not_start_tells_nobody(start, tcp, tmp_path):
    start(sockets=[tcp], app="web:asgi", SENTRY_RELEASE="abc", TEST_NOTES=str(tmp_path / "notes")).ready()
    assert seen(ask(tcp, "/", **{"x-booty-ask": ""})) == (None, None)


# --- known proxies --------------------------------------------------------------------------------------


def scope(listener, **headers):
    shown = json.loads(ask(listener, "/", **headers)[2])
    client = shown["client"] and shown["client"][0]
    return client, shown["scheme"], dict(map(tuple, shown["headers"]))


FORWARDED = {"x-forwarded-for": "1.2.3.4, 5.6.7.8", "x-forwarded-proto": "https"}


@pytest.mark.parametrize(
    ("trusted", "headers", "expected"),
    [
        ("", FORWARDED, ("127.0.0.1", "http")),
        ("10.0.0.0/8", FORWARDED, ("127.0.0.1", "http")),
        ("127.0.0.1", FORWARDED, ("5.6.7.8", "https")),  # the addresses before it may be the client's own
        ("127.0.0.0/8,5.6.7.8", FORWARDED, ("1.2.3.4", "https")),
        ("127.0.0.1", {}, ("127.0.0.1", "http")),
        ("127.0.0.1", {"x-forwarded-for": "nonsense"}, ("127.0.0.1", "http")),
        ("127.0.0.1", {"x-forwarded-for": "1.2.3.4, [2001:db8::1]:443"}, ("2001:db8::1", "http")),
        ("127.0.0.1", {"x-forwarded-for": "1.2.3.4:5555"}, ("1.2.3.4", "http")),
        ("127.0.0.1", {"x-forwarded-for": "::ffff:1.2.3.4", "x-forwarded-proto": "https, http"}, ("1.2.3.4", "http")),
        ("127.0.0.1", {"x-forwarded-proto": "wss"}, ("127.0.0.1", "https")),
        ("127.0.0.1", {"x-forwarded-proto": "gopher"}, ("127.0.0.1", "http")),
    ],
)
def test_only_a_known_proxy_is_believed(start, tcp, tmp_path, trusted, headers, expected):
    notes = str(tmp_path / "notes")
    start(sockets=[tcp], app="web:asgi", BOOTY_TRUSTED_PROXIES=trusted, TEST_NOTES=notes).ready()
    client, scheme, passed = scope(tcp, **headers)
    assert (client, scheme) == expected
    assert headers.items() <= passed.items()


def test_a_wsgi_app_and_a_websocket_get_what_the_proxy_says(start, tcp, tmp_path):
    settings = {"BOOTY_TRUSTED_PROXIES": "127.0.0.1", "TEST_NOTES": str(tmp_path / "notes")}
    start(sockets=[tcp], app="web:wsgi", **settings).ready()
    environ = json.loads(ask(tcp, "/environ", **FORWARDED)[2])
    assert (environ["REMOTE_ADDR"], environ["wsgi.url_scheme"]) == ("5.6.7.8", "https")


def test_an_ipv4_proxy_of_a_socket_for_both_kinds(start, tmp_path):
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both:
        settings = {"BOOTY_TRUSTED_PROXIES": "127.0.0.1", "TEST_NOTES": str(tmp_path / "notes")}
        start(sockets=[both], app="web:asgi", **settings).ready()
        with socket.create_connection(("127.0.0.1", both.getsockname()[1])) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\nx-forwarded-for: 1.2.3.4\r\n\r\n")
            assert b'"client": ["1.2.3.4", 0]' in b"".join(iter(lambda: client.recv(65536), b""))


@pytest.mark.parametrize("order", [1, -1])
def test_the_proxy_s_unix_socket_has_the_app_and_the_internal_one_has_not(start, unix, tmp_path, order):
    with socket.socket(socket.AF_UNIX) as http:
        http.bind(str(tmp_path / "http.sock"))
        http.listen()
        listeners, names = [http, unix][::order], ["http", "internal.socket"][::order]
        notes = str(tmp_path / "notes")
        start(sockets=listeners, app="web:asgi", LISTEN_FDNAMES=":".join(names), TEST_NOTES=notes).ready()
        assert scope(http, **FORWARDED)[:2] == ("5.6.7.8", "https")
        assert scope(http)[:2] == (None, "http")
        assert ask(http, "/status")[2].startswith(b'{"client"')
        assert json.loads(ask(unix, "/status")[2])["pid"]
        assert ask(unix, "/nothing")[0] == 404
