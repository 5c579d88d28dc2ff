"""Telemetry with a stand-in tracker: the content of events, the gate, and requests that never wait for the tracker."""

import base64
import copy
import http.client
import http.server
import json
import re
import socket
import ssl
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from booty_runner.deliveries import Deliveries, describe_error
from booty_runner.events import EVENT_BYTES, Request, clean, shorten
from booty_runner.redact import Redactor

KEY = "0123456789abcdef"
PROXY = "; if only a proxy leads there, set HTTP_PROXY"


def ask(listener, path, method="GET", body=None, headers=None):
    """Return the response's status and headers."""
    with closing(http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=10)) as connection:
        connection.request(method, path, body, headers or {})
        with connection.getresponse() as answer:
            answer.read()
            return answer.status, answer.headers


@pytest.fixture
def prove(start, tcp, tracker):
    """Start the service with the gate; return its exit status and its last line."""

    def prove(**settings):
        service = start(sockets=[tcp], **{"SENTRY_DSN": tracker.dsn, "BOOTY_TELEMETRY_GATE": "true", **settings})
        status, stderr = service.wait()
        assert "serving release" not in stderr
        assert KEY not in stderr
        assert "Traceback" not in stderr
        assert len([line for line in stderr.splitlines() if " ERROR " in line]) == 1
        return status, stderr.splitlines()[-1]

    return prove


def place(dsn):
    return dsn.partition("@")[2].partition("/")[0]


def test_gate_is_passed_by_an_event_that_the_tracker_accepts(start, tcp, tracker):
    service = start(
        sockets=[tcp],
        SENTRY_DSN=tracker.dsn,
        SENTRY_RELEASE="abc",
        SENTRY_SAMPLE_RATE="0.000001",
        BOOTY_TELEMETRY_GATE="true",
    ).ready()
    (event,) = tracker.events
    service.stop()
    assert service.wait()[0] == 0
    assert tracker.events == [event]
    assert (event["level"], event["release"], event["fingerprint"]) == ("info", "abc", ["booty-telemetry-gate"])
    assert event["message"] == "Booty release is being proven"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (401, "refuses the key in SENTRY_DSN (401)"),
        (403, "refuses the key in SENTRY_DSN (403)"),
        (404, "has no such project as SENTRY_DSN names (404)"),
        (413, "finds the event too large (413)"),
        (429, "takes no more events for now (429)"),
        (500, "fails (500)"),
        (503, "fails (503)"),
        (302, "does not accept the event (302)"),
    ],
)
def test_gate_names_the_answer_that_is_no_acceptance(prove, tracker, answer, reason):
    tracker.status = answer
    if answer == 302:
        tracker.headers = {"location": tracker.url}  # a GET of this path would get 200
    status, line = prove()
    assert status == 1
    assert line.endswith(f"refusing to serve: the tracker at {place(tracker.dsn)} {reason}")
    assert tracker.events[0]["fingerprint"] == ["booty-telemetry-gate"]
    assert tracker.requests == []


def test_gate_without_a_dsn(prove):
    status, line = prove(SENTRY_DSN="")
    assert status == 1
    assert line.endswith("refusing to serve: SENTRY_DSN is not set, so no error would be reported")


def test_gate_does_not_wait_for_ever(prove, tracker):
    tracker.ready.clear()
    began = time.monotonic()
    status, line = prove()
    assert status == 1
    assert line.endswith(f"the tracker at {place(tracker.dsn)} is not reached: no answer within 5 s{PROXY}")
    assert 5 < time.monotonic() - began < 9


def test_gate_at_a_port_where_nobody_listens(prove):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        dsn = f"http://{KEY}@127.0.0.1:{sock.getsockname()[1]}/1"
    status, line = prove(SENTRY_DSN=dsn)
    assert status == 1
    assert line.endswith(f"the tracker at {place(dsn)} is not reached: Connection refused{PROXY}")


def test_gate_with_a_name_that_does_not_exist(prove):
    status, line = prove(SENTRY_DSN=f"http://{KEY}@tracker.invalid/1")
    assert status == 1
    assert "the tracker at tracker.invalid:80 is not reached: " in line


def test_gate_with_a_connection_that_is_closed_unanswered(prove):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(10)
        dsn = f"http://{KEY}@127.0.0.1:{sock.getsockname()[1]}/1"

        def close_each():
            for _ in range(2):
                sock.accept()[0].close()

        thread = threading.Thread(target=close_each)
        thread.start()
        status, line = prove(SENTRY_DSN=dsn)
        thread.join()
    assert status == 1
    assert f"the tracker at {place(dsn)} is not reached: " in line


# --- the content of events ------------------------------------------------------------------------------

HEADERS = frozenset(("host", "user-agent"))
SECRET = "hunter2-planted-secret"


def sent(event, headers=HEADERS, request="", route=None):
    before = copy.deepcopy(event)
    result = clean(event, Redactor([SECRET]), headers, Request(request, route) if request or route else None)
    assert event == before
    return result


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"release": "abc", "message": "m"}, {"release": "abc", "message": "m"}),
        ({"release": "", "message": "m"}, {"message": "m"}),
        ({"release": None}, {}),
        ({"message": "m"}, {"message": "m"}),
        ({"message": "m", "_meta": {"request": {"headers": SECRET}}}, {"message": "m"}),
        ({"message": f"is {SECRET}!"}, {"message": "is [Filtered]!"}),
        (
            {"logentry": {"message": "is %s", "formatted": f"is {SECRET}", "params": [SECRET]}},
            {"logentry": {"message": "is %s", "formatted": "is [Filtered]", "params": ["[Filtered]"]}},
        ),
        ({"extra": {SECRET: {"a": [SECRET, 1]}}}, {"extra": {"[Filtered]": {"a": ["[Filtered]", 1]}}}),
        ({"tags": {"a": SECRET}, "user": {"id": SECRET}}, {"tags": {"a": "[Filtered]"}, "user": {"id": "[Filtered]"}}),
        (
            {"contexts": {"trace": {"trace_id": SECRET}, "mine": {"a": SECRET}}},
            {"contexts": {"trace": {"trace_id": SECRET}, "mine": {"a": "[Filtered]"}}},
        ),
        (
            {"breadcrumbs": {"values": [{"message": SECRET, "data": {"a": SECRET}}]}},
            {"breadcrumbs": {"values": [{"message": "[Filtered]", "data": {"a": "[Filtered]"}}]}},
        ),
        (
            {"exception": {"values": [{"type": "E", "value": f"no {SECRET}", "stacktrace": None}]}},
            {"exception": {"values": [{"type": "E", "value": "no [Filtered]", "stacktrace": None}]}},
        ),
        ({"transaction": "/a/{b}", "transaction_info": {"source": "route"}}, None),
        (
            {"transaction": "/a/whatever", "transaction_info": {"source": "url"}},
            {"transaction": "(no route)", "transaction_info": {"source": "url"}},
        ),
    ],
)
def test_clean(event, expected):
    assert sent(event) == (event if expected is None else expected)


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("/{b}", "route", "/a/{b}"),
        ("/a/whatever", "url", "/a/{b}"),
        ("startup", "task", "startup"),
        ("mine", "custom", "mine"),
    ],
)
def test_the_whole_route_is_the_transaction_unless_another_name_was_chosen(name, source, expected):
    event = {"transaction": name, "transaction_info": {"source": source}}
    assert sent(event, route="/a/{b}")["transaction"] == expected


def test_errors_of_one_request_are_one_trace():
    traces = [sent({}, request=request)["contexts"]["trace"] for request in ("one-request", "one-request", "another-1")]
    assert traces[0] == traces[1] != traces[2]
    assert [(len(trace["trace_id"]), len(trace["span_id"])) for trace in traces] == [(32, 16)] * 3
    assert sent({}, request="ab" * 16)["contexts"]["trace"]["trace_id"] == "ab" * 16


@pytest.mark.parametrize("name", ["event_id", "release", "environment", "timestamp", "modules", "server_name"])
def test_labels_and_ids_are_not_touched(name):
    assert sent({name: SECRET}) == {name: SECRET}


def test_of_a_request_only_what_is_allowed_is_sent():
    request = {
        "method": "POST",
        "url": f"https://user:other@shop.example/reset/{SECRET}",
        "query_string": "a=b",
        "headers": {"Host": "shop.example", "user-agent": f"x {SECRET}", "x-odd": "y", "cookie": "[Filtered]"},
        "cookies": {"a": "b"},
        "data": {"a": "b"},
        "env": {"REMOTE_ADDR": "192.0.2.1"},
    }
    routed = {"transaction": "/reset/{token}", "transaction_info": {"source": "route"}}
    event = sent({"request": request, **routed}, request="0123abcd")
    assert event["tags"] == {"request_id": "0123abcd"}
    assert event["request"] == {
        "method": "POST",
        "url": "https://shop.example/reset/{token}",
        "headers": {"Host": "shop.example", "user-agent": "x [Filtered]"},
    }
    assert sent({"request": request}, headers=())["request"]["headers"] == {}
    assert sent({"request": {"url": "http://[half/"}, **routed})["request"]["url"] == "/reset/{token}"


def test_source_lines_are_added_and_redacted(tmp_path):
    path = tmp_path / "code.py"
    path.write_text("".join(f"line {number}\n" for number in range(1, 8)) + f"a = '{SECRET}'\n\n")
    frames = [{"abs_path": str(path), "lineno": number} for number in (1, 8, 99, None)]
    frames += [{"abs_path": "<string>", "lineno": 1}, {}]
    event = sent({"exception": {"values": [{"stacktrace": {"frames": frames}}]}})
    first, last, *without = event["exception"]["values"][0]["stacktrace"]["frames"]
    assert (first["pre_context"], first["context_line"]) == ([], "line 1")
    assert first["post_context"] == ["line 2", "line 3", "line 4", "line 5", "line 6"]
    assert last["pre_context"] == ["line 3", "line 4", "line 5", "line 6", "line 7"]
    assert (last["context_line"], last["post_context"]) == ("a = '[Filtered]'", [""])
    assert not any("context_line" in frame for frame in without)


@pytest.mark.parametrize(
    ("crumb", "expected"),
    [
        ({"category": "subprocess", "type": "subprocess", "message": f"psql -p {SECRET}"}, None),
        ({"category": "shop", "type": "log", "message": "m"}, {"category": "shop", "type": "log", "message": "m"}),
        (
            {
                "type": "http",
                "category": "httplib",
                "data": {
                    "url": f"https://user:{SECRET}@api.example:8443/{SECRET}",
                    "http.method": "GET",
                    "http.query": f"token={SECRET}",
                    "http.fragment": SECRET,
                    "status_code": 404,
                    "reason": "Not Found",
                },
            },
            {
                "type": "http",
                "category": "httplib",
                "data": {
                    "url": "https://api.example:8443",
                    "http.method": "GET",
                    "status_code": 404,
                    "reason": "Not Found",
                },
            },
        ),
    ],
)
def test_breadcrumbs(crumb, expected):
    assert sent({"breadcrumbs": {"values": [crumb]}})["breadcrumbs"]["values"] == ([expected] if expected else [])


ENVIRONMENT = {"PLANTED": SECRET, "DATABASE_URL": "postgres://shop:pw-of-db@db.example/shop"}


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_planted_secret_shows_neither_in_an_event_nor_in_a_line(start, tcp, tracker, other_host, log_format):
    service = start(
        sockets=[tcp], SENTRY_DSN=tracker.dsn, BOOTY_LOG_FORMAT=log_format, TEST_OTHER=other_host.url, **ENVIRONMENT
    ).ready()
    body = json.dumps({"a": [{"b": SECRET}], "c": "of-the-client"}).encode()
    headers = {
        "Authorization": f"Bearer {SECRET}",
        "Cookie": f"session={SECRET}",
        "X-Odd": "of-the-client",
        "X-Forwarded-For": "192.0.2.99",
        "X-Request-ID": "from-the-client-1",
    }
    ways = ("settings", "environment", "exception", "database", "body", "log", "subprocess", "outgoing", "thread")
    ways += ("warning", "bad-log", "model")
    for way in ways:
        for kind in ("application/json", "application/x-www-form-urlencoded"):
            path = f"/leak/{way}/{SECRET}/of-the-client?q={SECRET}&r=of-the-client"
            status, answered = ask(tcp, path, "POST", body, {**headers, "Content-Type": kind})
            assert (status, answered["x-request-id"]) == (500, "from-the-client-1")
    service.stop()
    status, stderr = service.wait()
    assert status == 0
    assert {event.get("transaction") for event in tracker.events} == {"/leak/{way}/{a}/{b}"}
    # Two more events if the log record and the thread report an error each.
    assert len(tracker.events) == 2 * (len(ways) + 2)
    assert len([event for event in tracker.events if "tags" not in event]) == 2  # the error in the thread
    assert {event["tags"]["request_id"] for event in tracker.events if "tags" in event} == {"from-the-client-1"}
    for text in (json.dumps(tracker.events), stderr):
        assert "[Filtered]" in text
        for secret in (SECRET, "pw-of-db", "0123456789abcdef", "192.0.2.99"):
            assert secret not in text
        assert "of-the-client" not in text
    assert 'request_id": "from-the-client-1' in stderr if log_format == "json" else "(request from-" in stderr
    assert any("PATH_OF_OTHER" in str(request.path) for request in other_host.requests)
    for request in other_host.requests:
        assert not {"sentry-trace", "baggage"} & {name.lower() for name in request.headers}


@pytest.mark.parametrize(
    ("method", "path", "way", "transaction"),
    [
        ("GET", "/fail/1", {}, "/fail/{reason}"),
        ("GET", "/deep/prefix/fail/1", {}, "/deep/{prefix}/fail/{reason}"),
        ("GET", "/deep/prefix/fail/1", {"X-Fail": "1"}, "/deep/{prefix}/fail/{reason}"),
        ("POST", "/fail/1", {"X-Fail": "1"}, "(no route)"),
        ("GET", f"/nowhere/{SECRET}", {"X-Fail": "1"}, "(no route)"),
    ],
)
def test_transaction_is_the_whole_route_also_when_the_middleware_fails(
    start, tcp, tracker, method, path, way, transaction
):
    service = start(sockets=[tcp], SENTRY_DSN=tracker.dsn).ready()
    assert ask(tcp, path, method, headers=way)[0] == 500
    service.stop()
    service.wait()
    (event,) = tracker.events
    assert event["transaction"] == transaction
    assert event["request"]["url"] == f"http://127.0.0.1:{tcp.getsockname()[1]}{transaction}"
    assert SECRET not in str(event)


def test_a_request_without_a_plain_id_gets_one(start, tcp, tracker):
    service = start(sockets=[tcp], SENTRY_DSN=tracker.dsn).ready()
    seen = set()
    for given in ({}, {"X-Request-ID": "no id"}, {"X-Request-ID": "x" * 65}):
        seen.add(ask(tcp, "/fail/1", headers=given)[1]["x-request-id"])
    service.stop()
    service.wait()
    assert seen == {event["tags"]["request_id"] for event in tracker.events}
    assert seen == {event["contexts"]["trace"]["trace_id"] for event in tracker.events}
    assert {len(one) for one in seen} == {32}
    assert len(seen) == 3


# --- events that are too large --------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/fail-large/2000000", "/fail-deep/899"])
def test_an_event_that_is_too_large_arrives_shortened(start, tcp, tracker, path):
    service = start(sockets=[tcp], SENTRY_DSN=tracker.dsn, SENTRY_RELEASE="abc").ready()
    assert ask(tcp, path)[0] == 500
    service.stop()
    status, stderr = service.wait()
    assert status == 0
    assert "not reported" not in stderr
    assert "no longer" not in stderr
    (event,) = tracker.events
    assert len(json.dumps(event).encode()) <= EVENT_BYTES
    assert event["release"] == "abc"
    error = event["exception"]["values"][-1]
    assert error["type"] in {"LookupError", "ValueError"}
    assert "characters left out" in error["value"]
    frames = error["stacktrace"]["frames"]
    assert frames[-1]["function"] in {"fail_large", "fail_deep"}
    assert "raise " in frames[-1]["context_line"]
    assert len(event["tags"]["request_id"]) == 32
    assert re.fullmatch(r"from [\d,]+ bytes", event["extra"]["shortened"])


def frame(number):
    return {"function": f"f{number}", "abs_path": "/x", "lineno": number, "context_line": "c" * 500, "vars": {"a": "b"}}


LARGE = {
    "a text": {"message": "m" * 3_000_000},
    "many frames": {"exception": {"values": [{"type": "E", "stacktrace": {"frames": [*map(frame, range(3000))]}}]}},
    "many errors": {"exception": {"values": [{"type": "E", "stacktrace": {"frames": [*map(frame, range(50))]}}] * 200}},
    "many steps": {"breadcrumbs": {"values": [{"message": "s" * 5000}] * 100}},
    "many names": {"extra": {f"name {number}": number for number in range(100_000)}},
    "deep data": {"extra": {str(a): {str(b): ["x" * 300] * 10 for b in range(10)} for a in range(90)}},
    "a long name": {"extra": {"n" * 2_000_000: 1}},
}


@pytest.mark.parametrize("large", LARGE.values(), ids=LARGE)
def test_shortened_is_small_enough_and_keeps_what_matters(large):
    error = {"type": "E", "value": "why", "stacktrace": {"frames": [frame(1), frame(2)]}}
    labels = {"event_id": "e" * 32, "release": "abc", "environment": "staging", "modules": {"fastapi": "1"}}
    event = {**labels, "tags": {"request_id": "0123"}, "exception": {"values": [error]}, **large}
    before = copy.deepcopy(event)
    result = shorten(event, 3_000_000)
    assert event == before
    assert len(json.dumps(result).encode()) <= EVENT_BYTES
    assert {key: result[key] for key in labels} == labels
    assert result["tags"] == {"request_id": "0123"}
    assert result["extra"]["shortened"] == "from 3,000,000 bytes"
    assert result["exception"]["values"][-1]["type"] == "E"
    if "exception" in large:
        frames = [frame["function"] for frame in result["exception"]["values"][-1]["stacktrace"]["frames"]]
        whole = [frame["function"] for frame in large["exception"]["values"][-1]["stacktrace"]["frames"]]
        assert (frames[0], frames[-4:]) == (whole[0], whole[-4:])


def test_an_event_that_is_refused_all_the_same_is_told_as_one(start, tcp, tracker):
    tracker.limit = 1
    service = start(sockets=[tcp], SENTRY_DSN=tracker.dsn).ready()
    for number in range(3):
        assert ask(tcp, f"/fail/{number}")[0] == 500
    time.sleep(0.5)
    tracker.limit = 2**20
    assert ask(tcp, "/fail/4")[0] == 500
    service.stop()
    lines = [
        line.partition("booty_runner.telemetry: ")[2] for line in service.wait()[1].splitlines() if " WARNING " in line
    ]
    assert lines == [f"an error was not reported: the tracker at {place(tracker.dsn)} finds the event too large (413)"]
    assert len(tracker.events) == 1


# --- the way to the tracker -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Make a self-signed certificate of 127.0.0.1."""
    path = tmp_path_factory.mktemp("tls") / "tracker.pem"
    subject = ("-subj", "/CN=tracker", "-addext", "subjectAltName=IP:127.0.0.1")
    command = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    subprocess.run([*command, *subject, "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def tls(tracker, certificate):
    """Serve the tracker with TLS, and return its DSN."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    tracker.server.socket = context.wrap_socket(tracker.server.socket, server_side=True)
    return tracker.dsn.replace("http:", "https:")


class Proxy(http.server.BaseHTTPRequestHandler):
    """A real HTTP proxy. It forwards plain HTTP, tunnels TLS, and may ask for a password."""

    def do_CONNECT(self):
        if self.refuses():
            return
        host, port = self.path.split(":")
        with socket.create_connection((host, int(port))) as there:
            self.send_response(200)
            self.end_headers()
            thread = threading.Thread(target=self.pass_on, args=(there, self.connection))
            thread.start()
            self.pass_on(self.connection, there)
            thread.join()

    def do_POST(self):
        if self.refuses():
            return
        host, _, path = self.path.removeprefix("http://").partition("/")
        headers = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
        with closing(http.client.HTTPConnection(host)) as there:
            there.request("POST", f"/{path}", self.rfile.read(int(self.headers["content-length"])), headers)
            with there.getresponse() as answer:
                self.send_response(answer.status)
                self.end_headers()
                self.wfile.write(answer.read())

    def refuses(self):
        self.server.asked.append(self.path)
        if self.server.login and self.headers["proxy-authorization"] != f"Basic {self.server.login}":
            self.send_error(407)
            return True
        return False

    @staticmethod
    def pass_on(source, target):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)

    def log_message(self, *args):
        pass


@pytest.fixture
def proxy():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        server.asked, server.login = [], None
        server.handle_error = lambda *_: None
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_a_certificate_whose_ca_is_not_known_is_refused_with_what_to_do(prove, tls):
    status, line = prove(SENTRY_DSN=tls)
    assert status == 1
    assert line.endswith(
        f"the tracker at {place(tls)} is not reached: its certificate is not accepted: self-signed certificate; add its"
        " CA to the host's (update-ca-certificates), or set SSL_CERT_FILE to a file that has it"
    )


def test_a_ca_without_key_usage_is_refused_with_what_to_do():
    """Python 3.13 and newer raise this error, in these words."""
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = 92, "CA cert does not include key usage extension"
    assert describe_error(error) == (
        "its certificate is not accepted: CA cert does not include key usage extension; Python 3.13 and newer want it:"
        " make the CA's certificate anew with keyUsage=critical,keyCertSign"
    )


def test_a_certificate_of_another_name_is_refused_for_that(prove, tls, certificate):
    status, line = prove(SENTRY_DSN=tls.replace("127.0.0.1", "localhost"), SSL_CERT_FILE=str(certificate))
    assert status == 1
    assert "its certificate is not accepted: Hostname mismatch" in line
    assert "SSL_CERT_FILE" not in line


def test_a_ca_s_file_can_be_named(start, tcp, tracker, tls, certificate):
    start(sockets=[tcp], SENTRY_DSN=tls, BOOTY_TELEMETRY_GATE="true", REQUESTS_CA_BUNDLE=str(certificate)).ready()
    assert len(tracker.events) == 1
    assert ask(tcp, "/fail/1")[0] == 500


def test_a_ca_s_file_that_is_not_there_is_named(prove, tls):
    status, line = prove(SENTRY_DSN=tls, REQUESTS_CA_BUNDLE="/nowhere.pem")
    assert status == 1
    assert line.endswith("since REQUESTS_CA_BUNDLE names a file that can't be read: No such file or directory")


def place_of_proxy(proxy):
    return f"127.0.0.1:{proxy.server_port}"


def test_events_take_the_proxy_of_the_environment(start, tcp, tracker, tls, certificate, proxy):
    proxy.login = base64.b64encode(b"shop:p@ss").decode()
    environment = {"https_proxy": f"http://shop:p%40ss@{place_of_proxy(proxy)}", "SSL_CERT_FILE": str(certificate)}
    start(sockets=[tcp], SENTRY_DSN=tls, BOOTY_TELEMETRY_GATE="true", **environment).ready()
    assert proxy.asked == [place(tls)]
    assert len(tracker.events) == 1


def test_plain_events_take_the_other_proxy_unless_no_proxy_names_the_tracker(start, tcp, tracker, proxy):
    environment = {"SENTRY_DSN": tracker.dsn, "HTTP_PROXY": f"http://{place_of_proxy(proxy)}"}
    start(sockets=[tcp], BOOTY_TELEMETRY_GATE="true", **environment).ready()
    assert len(proxy.asked) == 1
    start(BOOTY_TELEMETRY_GATE="true", NO_PROXY="127.0.0.1", args=("--port=0",), **environment).ready()
    assert len(proxy.asked) == 1
    assert len(tracker.events) == 2


def test_a_proxy_that_refuses_is_named_without_its_password(prove, tls, proxy):
    proxy.login = "other"
    status, line = prove(SENTRY_DSN=tls, HTTPS_PROXY=f"http://shop:hunter2@{place_of_proxy(proxy)}")
    assert status == 1
    assert line.endswith(
        f"the tracker at {place(tls)} (by the proxy {place_of_proxy(proxy)} of HTTPS_PROXY) is not reached: Tunnel"
        " connection failed: 407 Proxy Authentication Required"
    )
    assert "hunter2" not in line


def test_a_proxy_that_is_away_is_named(prove, tls):
    status, line = prove(SENTRY_DSN=tls, HTTPS_PROXY="http://127.0.0.1:9")
    assert status == 1
    assert line.endswith("(by the proxy 127.0.0.1:9 of HTTPS_PROXY) is not reached: Connection refused")


@pytest.mark.parametrize("value", ["proxy.internal:3128", "ftp://proxy.internal"])
def test_a_proxy_that_is_no_url_is_refused(prove, tls, value):
    status, line = prove(SENTRY_DSN=tls, HTTPS_PROXY=value)
    assert status == 1
    assert line.endswith("refusing to serve: HTTPS_PROXY must be a URL: http://HOST:PORT")


def test_a_socks_proxy_that_can_t_be_used_is_said(prove):
    status, line = prove(SENTRY_DSN=f"https://{KEY}@127.0.0.1:9/1", HTTPS_PROXY="socks5h://127.0.0.1:1080")
    assert status == 1
    assert (
        "127.0.0.1:9 (not by the SOCKS proxy of HTTPS_PROXY, since the app does not depend on PySocks) is not" in line
    )


# --- requests never wait for the tracker ----------------------------------------------------------------


def test_one_line_when_losses_begin_and_one_when_they_are_over():
    deliveries = Deliveries("tracker:80")
    lines = [
        deliveries.record(outcome, drained, now)
        for now, (outcome, drained) in enumerate([(200, True), (500, True), (500, True), (200, False), (200, True)])
    ]
    begin, over = "errors are no longer reported: the tracker at tracker:80 fails (500)", "errors are reported again; "
    assert lines == [None, begin, None, None, f"{over}2 were lost"]
    assert deliveries.status == {"status": 200, "since": "1970-01-01T00:00:03+00:00", "dropped": 2}


def test_a_tracker_that_comes_and_goes_is_one_pair_of_lines_a_minute():
    deliveries = Deliveries("tracker:80")
    lines = [deliveries.record(500 if now % 2 else 200, True, now) for now in range(180)]
    assert [now for now, line in enumerate(lines) if line] == [1, 2, 61, 62, 121, 122]
    assert lines[62] == "errors are reported again; 1 were lost"
    assert deliveries.status["dropped"] == 90


BEGIN, OVER = "errors are no longer reported: ", "errors are reported again; "


@pytest.fixture
def place_of(tracker):
    """Return the host and port of a tracker that misbehaves in the way that `kind` says."""
    sockets = []

    def place_of(kind):
        if kind == "refused":
            with socket.create_server(("127.0.0.1", 0)) as sock:
                return f"127.0.0.1:{sock.getsockname()[1]}"
        if kind == "unresolvable":
            return "tracker.invalid:80"
        if kind == "black hole":  # its queue is full, so the kernel ignores a third connection
            listener = socket.create_server(("127.0.0.1", 0), backlog=0)
            sockets.append(listener)
            for _ in range(2):
                sockets.append(socket.socket())
                sockets[-1].setblocking(False)
                sockets[-1].connect_ex(listener.getsockname())
            return f"127.0.0.1:{listener.getsockname()[1]}"
        if kind == "hanging":
            tracker.ready.clear()
        elif kind == "slow":
            tracker.seconds = 1
        else:
            tracker.status = int(kind)
            tracker.headers = {"retry-after": "1"}
        return place(tracker.dsn)

    yield place_of
    for sock in sockets:
        sock.close()


def memory(service):
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{service.process.pid}/status").read_text())[1])


def internal(unix, path):
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.connect(unix.getsockname())
        sock.sendall(f"GET {path} HTTP/1.1\r\nhost: test\r\n\r\n".encode())
        with http.client.HTTPResponse(sock) as response:
            response.begin()
            return json.loads(response.read())


@pytest.mark.parametrize(
    "kind", ["refused", "unresolvable", "black hole", "hanging", "slow", "403", "429", "500"], ids=lambda kind: kind
)
def test_a_bad_tracker_is_never_in_the_way(start, tcp, unix, tracker, place_of, kind):
    service = start(sockets=[tcp, unix], SENTRY_DSN=f"http://{KEY}@{place_of(kind)}/1").ready()
    before = memory(service)
    took = []
    for number in range(160):
        began = time.monotonic()
        assert ask(tcp, f"/fail/{number}")[0] == 500
        took.append(time.monotonic() - began)
    # A request that waited would take 1 s with a slow tracker, and 10 s with one that does not answer.
    assert max(took) < 1
    assert memory(service) - before < 20_000
    assert ask(tcp, "/health")[0] == 200
    if mended := kind not in {"refused", "unresolvable", "black hole"}:
        tracker.status, tracker.seconds = 200, 0
        tracker.ready.set()
        time.sleep(1.2)  # the Retry-After of the 429
        assert ask(tcp, "/fail/after")[0] == 500
    telemetry = internal(unix, "/status")["telemetry"]
    assert telemetry["dropped"] > 20
    began = time.monotonic()
    service.stop()
    status, stderr = service.wait()
    assert time.monotonic() - began < 2
    assert status == 0
    lines = [line for line in stderr.splitlines() if " WARNING " in line]
    assert [line.partition("booty_runner.telemetry: ")[2][: len(BEGIN)] for line in lines[:1]] == [BEGIN]
    assert [OVER in line for line in lines[1:]] == ([True] if mended else [])
    if mended:
        assert "/fail/{reason}" in str(tracker.events[-1]["transaction"])
        assert f"{OVER}{telemetry['dropped']} were lost" in lines[1]


def test_status_shows_what_became_of_the_errors(start, tcp, unix, tracker):
    service = start(sockets=[tcp, unix], SENTRY_DSN=tracker.dsn).ready()
    telemetry = internal(unix, "/status")["telemetry"]
    assert re.fullmatch(r"the app's client \(made in .*main\.py:\d+\)", telemetry.pop("client"))
    assert telemetry == {"status": None, "since": None, "dropped": 0}
    ask(tcp, "/fail/1")
    deadline = time.monotonic() + 5
    while not (telemetry := internal(unix, "/status")["telemetry"])["status"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (telemetry["status"], telemetry["dropped"]) == (200, 0)
    assert telemetry["since"].endswith("+00:00")
    service.stop()
    assert service.wait()[0] == 0


@pytest.mark.parametrize("settings", [{}, {"BOOTY_WORKERS": "2"}], ids=["1-worker", "2-workers"])
def test_the_stop_keeps_its_bound_also_with_a_request_a_tracker_and_a_database_that_hang(
    start, tcp, tracker, place_of, settings
):
    tracker.ready.clear()
    settings |= {"BOOTY_QUEUE_URL": f"postgresql://booty:pw-of-queue@{place_of('black hole')}/booty"}
    service = start(sockets=[tcp], SENTRY_DSN=tracker.dsn, BOOTY_DRAIN_SECONDS="0.5", **settings).ready()
    assert ask(tcp, "/fail/1")[0] == 500
    with closing(http.client.HTTPConnection("127.0.0.1", tcp.getsockname()[1], timeout=10)) as connection:
        connection.request("GET", "/blocked?seconds=30")
        time.sleep(0.2)
        began = time.monotonic()
        service.stop()
        assert service.wait()[0] == 0
        assert 0.5 < time.monotonic() - began < 2.5


@pytest.mark.parametrize(("drain", "arrived"), [("30", range(10, 11)), ("0.5", range(2, 8))])
def test_a_slow_tracker_is_waited_for_while_the_drain_lasts(start, tcp, tracker, drain, arrived):
    tracker.seconds = 0.4
    service = start(sockets=[tcp], SENTRY_DSN=tracker.dsn, BOOTY_DRAIN_SECONDS=drain).ready()
    for number in range(10):
        assert ask(tcp, f"/fail/{number}")[0] == 500
    service.stop()
    assert service.wait()[0] == 0
    assert len(tracker.events) in arrived


def test_an_event_on_a_connection_that_was_just_closed_is_sent_again(start, tcp):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def close_then_accept():
            for answer in (b"", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"):
                with listener.accept()[0] as sock:
                    sock.recv(65536)
                    sock.sendall(answer)

        thread = threading.Thread(target=close_then_accept)
        thread.start()
        dsn = f"http://{KEY}@127.0.0.1:{listener.getsockname()[1]}/1"
        service = start(sockets=[tcp], SENTRY_DSN=dsn, BOOTY_TELEMETRY_GATE="true").ready()
        thread.join()
    service.stop()
    assert "no longer reported" not in service.wait()[1]
