"""The pure core of what is asked of a host."""

from __future__ import annotations

import http.server
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from booty_host import host

DSN = "https://0123456789abcdef@sentry.internal/42"
PLANTED = "hunter2hunter2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SENTRY_RELEASE=abc\nBOOTY_RELEASE_DIR=/x\n", {"SENTRY_RELEASE": "abc", "BOOTY_RELEASE_DIR": "/x"}),
        ("# A=1\n; B=2\n\nno assignment\nC=3=4\n", {"C": "3=4"}),
        ("MainPID=12\nResult=\n", {"MainPID": "12", "Result": ""}),
        ("", {}),
    ],
)
def test_parse_assignments(text: str, expected: dict[str, str]) -> None:
    assert host.parse_assignments(text) == expected


def test_parse_environ_returns_labels_alone() -> None:
    environ = f"SENTRY_DSN={PLANTED}\0SENTRY_RELEASE=abc\0PATH=/bin\0SENTRY_ENVIRONMENT=a=b\0".encode()
    assert host.parse_environ(environ) == {"SENTRY_RELEASE": "abc", "SENTRY_ENVIRONMENT": "a=b"}


TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7001 1
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7002 1
   2: 0100007F:1F91 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 7003 1
"""
TCP6 = """\
  sl  local_address                         remote_address                        st
   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 7004
"""


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (TCP, {("127.0.0.1", 8080): "7001", ("0.0.0.0", 22): "7002"}),
        (TCP6, {("::1", 8080): "7004"}),
        ("header\n", {}),
    ],
)
def test_parse_listeners(table: str, expected: dict[tuple[str, int], str]) -> None:
    assert host.parse_listeners(table) == expected


@pytest.mark.parametrize(
    ("address", "other", "takes_both", "expected"),
    [
        ("0.0.0.0", "0.0.0.0", True, True),
        ("0.0.0.0", "127.0.0.1", True, True),
        ("127.0.0.1", "0.0.0.0", True, True),
        ("127.0.0.1", "10.0.0.1", True, False),
        ("0.0.0.0", "::", True, True),
        ("0.0.0.0", "::", False, False),
        ("127.0.0.1", "::ffff:127.0.0.1", False, True),
        ("0.0.0.0", "::1", True, False),
        ("::", "10.0.0.1", True, True),
        ("::", "10.0.0.1", False, False),
        ("::", "::1", False, True),
        ("fd00::1", "::", True, True),
        ("fd00::1", "::1", True, False),
        ("fd00::1", "0.0.0.0", True, False),
    ],
)
def test_overlaps(address: str, other: str, takes_both: bool, expected: bool) -> None:
    assert host.overlaps(address, other, takes_both) is expected


def listening(address: str, port: int = 0, only_v6: bool = False) -> socket.socket:
    """Return a socket that listens."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if ":" in address:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_v6)
    try:
        sock.bind((address, port))
        sock.listen()
    except OSError:
        sock.close()
        raise
    return sock


@pytest.mark.parametrize("wanted", ["0.0.0.0", "127.0.0.1", "127.0.0.2", "::", "::1"])
@pytest.mark.parametrize(
    ("taken", "only_v6"), [("0.0.0.0", False), ("127.0.0.1", False), ("::", False), ("::", True), ("::1", True)]
)
def test_takers_says_what_the_kernel_does(wanted: str, taken: str, only_v6: bool) -> None:
    with listening(taken, only_v6=only_v6) as sock:
        port = sock.getsockname()[1]
        try:
            listening(wanted, port).close()
            refused = False
        except OSError:
            refused = True
        place = f"[{taken}]:{port}" if ":" in taken else f"{taken}:{port}"
        name = Path("/proc/self/comm").read_text().strip()
        assert host.takers(wanted, port) == (f"{name} (PID {os.getpid()}) on {place}" if refused else "")


def test_socket_options_are_what_only_open_sockets_have() -> None:
    unit = "[Unit]\nA=b\n[Socket]\n# why\nNoDelay=true\nTriggerLimitIntervalSec=0\nFreeBind=true\n{}\n[Install]\nA=b"
    assert host.socket_options(unit.format("Backlog=9")) == {"NoDelay=true", "Backlog=9"}
    assert host.socket_options(unit.format("")) == {"NoDelay=true"}


@pytest.mark.parametrize(
    ("stream", "expected"),
    [("0.0.0.0:8000", ("0.0.0.0", 8000)), ("[::]:80", ("::", 80)), ("[fd00::1]:8443", ("fd00::1", 8443))],
)
def test_parse_stream(stream: str, expected: tuple[str, int]) -> None:
    unit = f"[Socket]\n# ListenStream=1\nListenStream={stream}\nListenStream=/run/booty/internal.sock\n"
    assert host.parse_stream(unit) == expected


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"SENTRY_DSN={DSN}\n", None),
        (f"# a comment\n\nOTHER={PLANTED}\nSENTRY_DSN='{DSN}'\n", None),
        (f'SENTRY_DSN="{DSN}"', None),
        (f"SENTRY_DSN={DSN} \n", None),
        ("SENTRY_DSN=http://0a1b@10.0.0.1:8000/1", None),
        ("SENTRY_DSN=https://0a1b:secret@10.0.0.1/a/path/1", None),
        (f"SENTRY_DSN={DSN}\nPEM='-----BEGIN-----\nQUJD=\n-----END-----'\n", None),
        (f'SENTRY_DSN={DSN}\nJSON="{{\\"a\\": 1}}"\n', None),
        (f"SENTRY_DSN={DSN}\nOTHER='{PLANTED}\\'\n", None),
        (f"SENTRY_DSN={DSN}\nEMPTY=\n", None),
        ("", "it is empty"),
        (" \n\n", "it is empty"),
        (f"\ufeffSENTRY_DSN={DSN}\n", "byte order mark"),
        (f"SENTRY_DSN={DSN}\r\n", "Windows line ends (CRLF)"),
        (f"SENTRY_DSN={DSN}\0\n", "a NUL byte"),
        ("# nothing yet\n", "SENTRY_DSN is not set"),
        ("SENTRY_DSN=\n", "SENTRY_DSN is not set"),
        ("SENTRY_DSN=''\n", "SENTRY_DSN is not set"),
        (f"#SENTRY_DSN={DSN}\n", "SENTRY_DSN is not set"),
        (f"OTHER={PLANTED}\n", "SENTRY_DSN is not set"),
        (f"{PLANTED}\nSENTRY_DSN={DSN}\n", "line 1 is not NAME=value"),
        (f"2ND={PLANTED}\nSENTRY_DSN={DSN}\n", "line 1 is not NAME=value"),
        (f"export SENTRY_DSN={DSN}\n", "line 1 begins with export"),
        (f"SENTRY_DSN = {DSN}\n", "line 1 has blanks around its ="),
        (f"SENTRY_DSN= {DSN}\n", "line 1 has blanks around its ="),
        (f"SENTRY_DSN ={DSN}\n", "line 1 has blanks around its ="),
        (f"SENTRY_DSN='{DSN}\n", "line 1 has an unbalanced quote"),
        (f"SENTRY_DSN={DSN}'\n", "line 1 has an unbalanced quote"),
        (f"OTHER='{PLANTED}\nSENTRY_DSN='{DSN}'\n", "line 1 has an unbalanced quote"),
        (f"SENTRY_DSN={DSN}\nOTHER='{PLANTED}'s'\n", "line 2 goes on after its closing quote"),
        (f"SENTRY_DSN={DSN}\nPEM='-----BEGIN-----\nQUJD=\n-----END-----'\nA=b c\nA=\n", "lines 5 and 6"),
        (f'SENTRY_DSN={DSN}\nOTHER="{PLANTED}\\"\n', "line 2 has an unbalanced quote"),
        ("SENTRY_DSN='\n", "line 1 has an unbalanced quote"),
        (f"SENTRY_DSN='{DSN}' # ours\n", "line 1 goes on after its closing quote"),
        (f"SENTRY_DSN={DSN}\nOTHER=a\\{PLANTED}\n", "line 2 has a backslash"),
        (f"SENTRY_DSN={DSN}\nSENTRY_DSN={DSN}\n", "lines 1 and 2 set the same name"),
        (f"SENTRY_DSN={DSN}\nA={PLANTED}\n\nA=\n", "lines 2 and 4 set the same name"),
        (f"SENTRY_DSN={DSN}\nSENTRY_RELEASE={PLANTED}\n", "line 2 sets SENTRY_RELEASE, which is release.env's to say"),
        (f"SENTRY_ENVIRONMENT=x\nSENTRY_DSN={DSN}\n", "line 1 sets SENTRY_ENVIRONMENT"),
        (f"SENTRY_DSN={DSN}\nBOOTY_RELEASE_DIR=/x\n", "line 2 sets BOOTY_RELEASE_DIR"),
        (f"SENTRY_DSN={PLANTED}", "does not begin with http"),
        ("SENTRY_DSN=https://sentry.internal/42", "has no public key"),
        ("SENTRY_DSN=https://0a1b@/42", "has no usable host"),
        ("SENTRY_DSN=https://0a1b@sentry internal/42", "has no usable host"),
        ("SENTRY_DSN=https://0a1b@[2001:db8::1]/42", "an IPv6 address"),
        ("SENTRY_DSN=https://0a1b@sentry.internal/", "has no project id"),
        ("SENTRY_DSN=https://0a1b@sentry.internal", "has no project id"),
        ("SENTRY_DSN=https://0a1b@sentry.internal/project", "project id that is not a number"),
        ("SENTRY_DSN=https://0a1b@[sentry/42", "is not a URL"),
        ("SENTRY_DSN=https://0a1b@sentry.internal:port/42", "is not a URL"),
        ("SENTRY_DSN=CHANGEME", "is a placeholder"),
        ("SENTRY_DSN=<your DSN>", "is a placeholder"),
        ("SENTRY_DSN=https://public@example.com/1", "is a placeholder"),
        ("SENTRY_DSN=https://0a1b@sentry.example.com/1", "is a placeholder"),
        ("SENTRY_DSN=https://examplePublicKey@o0.ingest.sentry.io/0", "is a placeholder"),
        ("SENTRY_DSN=https://your-key@sentry.internal/1", "is a placeholder"),
        ("SENTRY_DSN=https://xxxxxxxx@sentry.internal/1", "is a placeholder"),
        ("SENTRY_DSN={{ sentry_dsn }}", "is a placeholder"),
    ],
)
def test_judge_secrets(text: str, fault: str | None) -> None:
    _, found = host.judge_secrets(text.encode())
    if fault is None:
        assert found is None
    else:
        assert found is not None
        assert fault in found
        assert PLANTED not in found
        assert "0a1b" not in found


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        # systemd reads these as they are written
        (f"A=b#{PLANTED};c\nB='c # d'\nC=\"e ; f\"\nD=#g\nPEM='a\nb # c\n'\n", None),
        ("A=b\tc\nPATH=/usr/bin\nHOME=/x\nLD_SDK_KEY=x\nPYTHONWARNINGS=error\nWEB_CONCURRENCY=auto\n", None),
        (f"A={'x' * 131_069}\n", None),
        (f"SENTRY_RELEASE={PLANTED}\nBOOTY_QUEUE_JOBS=1\n", None),
        ("", None),
        # and these not
        (f"A=1\nB={PLANTED} # ours\n", "line 2 has a comment after its value"),
        (f"B={PLANTED}\t#\n", "line 1 has a comment after its value"),
        (f"B={PLANTED} ; ours\n", "line 1 has a comment after its value"),
        (f"# ours \\\nB={PLANTED}\n", "line 1 is a comment that ends with a backslash"),
        (f"A=\x1b[200~{PLANTED}\n", "line 1 holds a control character"),
        (f"A='\n{PLANTED}\x7f\n'\n", "line 1 holds a control character"),
        (f"A={'x' * 131_070}\n", "line 1 has 131,072 bytes, and Linux takes 131,071"),
        (f"A='{'ü' * 65_535}'\n", "line 1 has 131,072 bytes"),
        ("".join(f"A{number}={'x' * 130_000}\n" for number in range(16)), "its values have 2,080,"),
        (
            "BOOTY_DRAIN_SECONDS=300\n",
            "line 1 sets BOOTY_DRAIN_SECONDS, which the unit sets: remove it, and set app_drain",
        ),
        ("BOOTY_UNIT=x\n", "line 1 sets BOOTY_UNIT, which the unit sets: remove it"),
        ("A=1\nNOTIFY_SOCKET=\n", "line 2 sets NOTIFY_SOCKET, which systemd sets"),
        ("LISTEN_FDS=0\n", "line 1 sets LISTEN_FDS"),
        ("STATE_DIRECTORY=/tmp\n", "line 1 sets STATE_DIRECTORY"),
        (f"PYTHONPATH={PLANTED}\n", "line 1 sets PYTHONPATH, which makes the process load code from outside"),
        (f"LD_PRELOAD={PLANTED}\n", "line 1 sets LD_PRELOAD"),
    ],
)
def test_what_would_not_reach_the_service_as_it_is_written(text: str, fault: str | None) -> None:
    readable, usable = host.judge_secrets(text.encode())
    assert (fault in str(readable)) if fault else readable is None
    assert usable == readable or readable is None
    assert PLANTED not in str(usable)


@pytest.mark.parametrize(
    ("mode", "text", "closed", "usable"),
    [
        (0o600, f"SENTRY_DSN={DSN}", None, None),
        (0o400, f"SENTRY_DSN={DSN}", None, None),
        (0o640, f"SENTRY_DSN={DSN}", "is open to others (mode 0640", "is open to others"),
        (0o604, f"SENTRY_DSN={DSN}", "is open to others (mode 0604", "is open to others"),
        (0o600, "", None, "it is empty"),
        (0o600, f"SENTRY_DSN={DSN}\r\n", None, "CRLF"),
        (None, "", None, "is missing"),
    ],
)
def test_secrets_are_judged_where_they_lie(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: int | None,
    text: str,
    closed: str | None,
    usable: str | None,
) -> None:
    path = tmp_path / "secrets.env"
    monkeypatch.setattr(host, "SECRETS", path)
    if mode is not None:
        path.write_bytes(text.encode())
        path.chmod(mode)
        if path.stat().st_uid:
            closed = usable = "is not owned by root"
    verdict = host.secrets()
    for found, expected in ((verdict["closed"], closed), (verdict["usable"], usable)):
        assert (expected in str(found)) if expected else found is None


def test_secrets_that_are_a_link_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").write_text(f"SENTRY_DSN={DSN}")
    monkeypatch.setattr(host, "SECRETS", tmp_path / "secrets.env")
    host.SECRETS.symlink_to(tmp_path / "elsewhere")
    assert "is a symbolic link" in host.secrets()["closed"]
    host.SECRETS.unlink()
    host.SECRETS.mkdir()
    assert "is not a regular file" in host.secrets()["closed"]


def test_write_atomically_replaces_and_keeps_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "release.env"
    for text in ("one\n", "two\n"):
        host.write_atomically(path, text)
        assert path.read_text() == text
        assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomically_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "release.env"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        host.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


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
    assert host.health("0.0.0.0", server.server_address[1]) == expected


def test_health_of_nobody() -> None:
    answer = host.health("127.0.0.1", 1)
    assert answer["status"] == 0
    assert "no answer on 127.0.0.1:1: " in answer["reason"]


WANTED = {
    "SENTRY_RELEASE": "a" * 40,
    "SENTRY_ENVIRONMENT": "staging",
    "BOOTY_RELEASE_DIR": "/opt/booty/releases/a",
}
HEALTHY = {"status": 200, "release": "a" * 40, "environment": "staging"}


@pytest.mark.parametrize(
    ("running", "health", "expected"),
    [
        (WANTED, HEALTHY, None),
        ({}, HEALTHY, "SENTRY_RELEASE is None"),
        ({**WANTED, "BOOTY_UNIT": "2b"}, HEALTHY, "BOOTY_UNIT is 2b, not 1a"),
        ({**WANTED, "SENTRY_RELEASE": "b"}, HEALTHY, "SENTRY_RELEASE is b, not aaaa"),
        ({**WANTED, "BOOTY_RELEASE_DIR": "/b"}, HEALTHY, "BOOTY_RELEASE_DIR is /b"),
        (WANTED, {"status": 0, "reason": "refused"}, "/health says 0: refused"),
        (WANTED, {"status": 503}, "/health says 503: no reason given"),
        (WANTED, {**HEALTHY, "release": None}, "/health answers None for SENTRY_RELEASE"),
        (
            WANTED,
            {**HEALTHY, "environment": "production"},
            "/health answers production for SENTRY_ENVIRONMENT",
        ),
    ],
)
def test_fault_names_what_differs(running: dict[str, str], health: dict[str, Any], expected: str | None) -> None:
    wanted = host.Release(
        "".join(f"{name}={value}\n" for name, value in WANTED.items()), {host.SERVICE: "BOOTY_UNIT=1a"}
    )
    found = host.fault(wanted, {"BOOTY_UNIT": "1a", **running}, health)
    assert (expected in str(found)) if expected else found is None
