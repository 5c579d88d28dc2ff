"""The kernel decides who listens where; the host program names the listener that is in the way."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from booty_host import sockets
from booty_host.app import App

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
    assert sockets.parse_listeners(table) == expected


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
    assert sockets.overlaps(address, other, takes_both) is expected


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
        assert sockets.takers(App(), wanted, port) == (f"{name} (PID {os.getpid()}) on {place}" if refused else "")


def test_socket_options_are_what_only_open_sockets_have() -> None:
    unit = "[Unit]\nA=b\n[Socket]\n# why\nNoDelay=true\nTriggerLimitIntervalSec=0\nFreeBind=true\n{}\n[Install]\nA=b"
    assert sockets.options(unit.format("Backlog=9")) == {"NoDelay=true", "Backlog=9"}
    assert sockets.options(unit.format("")) == {"NoDelay=true"}


@pytest.mark.parametrize(
    ("stream", "expected"),
    [("0.0.0.0:8000", ("0.0.0.0", 8000)), ("[::]:80", ("::", 80)), ("[fd00::1]:8443", ("fd00::1", 8443))],
)
def test_parse_stream(stream: str, expected: tuple[str, int]) -> None:
    unit = f"[Socket]\n# ListenStream=1\nListenStream={stream}\nListenStream=/run/booty/internal.sock\n"
    assert sockets.parse_stream(unit) == expected


def test_a_file_that_a_process_closes_meanwhile_hides_no_socket(tmp_path: Path) -> None:
    """Systemd opens and closes files all the time; the sockets of an app were taken for its service's own."""
    for pid in (1, 70):
        folder = tmp_path / f"proc/{pid}/fd"
        folder.mkdir(parents=True)
        (folder / "9").symlink_to("socket:[4711]")
    for number in range(9):
        (tmp_path / f"proc/1/fd/{number}").touch()  # readlink(2) fails, as on a file that is closed
    assert sockets.holder(App("booty", tmp_path), "4711") == 1
