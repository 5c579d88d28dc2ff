"""Only the labels and the settings of a process are read."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from booty_host import processes
from booty_host.app import App

PLANTED = "hunter2hunter2"


def test_parse_environ_returns_labels_alone() -> None:
    environ = f"SENTRY_DSN={PLANTED}\0SENTRY_RELEASE=abc\0PATH=/bin\0SENTRY_ENVIRONMENT=a=b\0".encode()
    labels = {"SENTRY_RELEASE": "abc", "SENTRY_ENVIRONMENT": "a=b"}
    assert processes.parse_environ(environ, processes.LABELS) == labels
    settings = {"BOOTY_SETTINGS": "DEBUG,GONE", "DEBUG": "true"}
    environ += b"BOOTY_SETTINGS=DEBUG,GONE\0DEBUG=true\0"
    assert processes.parse_environ(environ, processes.LABELS) == {**labels, **settings}
    assert processes.parse_environ(environ, ("SENTRY_RELEASE",)) == {"SENTRY_RELEASE": "abc"}


def test_an_environment_that_no_start_can_have_is_not_read(tmp_path: Path) -> None:
    """A process can enlarge its own, at no cost for itself."""
    app = App("shop", tmp_path)
    (tmp_path / "proc/12").mkdir(parents=True)
    environ = tmp_path / "proc/12/environ"
    environ.write_bytes(b"SENTRY_RELEASE=abc\0")
    assert processes.labels(app, 12) == {"SENTRY_RELEASE": "abc"}
    os.truncate(environ, 50 * 2**30)
    assert processes.labels(app, 12) == {}


def test_no_value_of_a_process_has_more_lines_than_one() -> None:
    environ = "A=1\nweb2 is broken\0B=1\u2028x\x85y\rz\0C=two words\0".encode()
    mark = "\N{REPLACEMENT CHARACTER}"
    values = processes.parse_environ(environ, ("A", "B", "C"))
    assert values == {"A": f"1{mark}web2 is broken", "B": f"1{mark}x{mark}y{mark}z", "C": "two words"}


def test_directories_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App("shop", tmp_path)
    directories = (app.releases / "a", app.releases / "b", Path("/opt/shop/releases/d"))
    for pid, directory in enumerate(directories, start=10):
        process = tmp_path / f"proc/{pid}"
        process.mkdir(parents=True)
        (process / "environ").write_text(f"PATH=/bin\0BOOTY_RELEASE_DIR={directory}\0")
    (tmp_path / "proc/99").mkdir()
    assert processes.in_use(app, "BOOTY_RELEASE_DIR") == {*directories}
    assert processes.in_use(app, "BOOTY_CONFIG_DIR") == set()
    # The processes are of another user now, and so of another app: it must not keep this app's releases.
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert processes.in_use(app, "BOOTY_RELEASE_DIR") == set()
    app.var.mkdir(parents=True)
    assert processes.in_use(app, "BOOTY_RELEASE_DIR") == {*directories}


def test_a_file_that_came_after_the_start_of_a_process(tmp_path: Path) -> None:
    app, pid, file = App("shop"), os.getpid(), tmp_path / "secrets.env"
    assert not processes.older_than(app, pid, file)
    file.write_text("A=1\n")
    # What is moved there keeps the time of its content.
    os.utime(file, (1, 1))
    assert processes.older_than(app, pid, file)
    assert not processes.older_than(app, 2**22 + 1, file)
    time.sleep(0.1)
    later = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "9")
    try:
        assert not processes.older_than(app, later, file)
    finally:
        os.kill(later, 9)
        os.waitpid(later, 0)


@pytest.mark.parametrize(
    ("program", "maps", "outdated"),
    [
        ("/usr/bin/python3", "7f00-7f01 r-xp 00000000 08:01 5 /usr/lib/libssl.so.3\n", False),
        ("/usr/bin/python3", "7f00-7f01 r-xp 00000000 08:01 5 /usr/lib/libssl.so.3 (deleted)\n", True),
        ("/usr/bin/python3 (deleted)", "", True),
        # A process can map a file as often as it likes: what is behind the limit does not count.
        ("/usr/bin/python3", f"{'x' * 99}\n" * 50_000 + "7f00 /usr/lib/libssl.so.3 (deleted)\n", False),
    ],
)
def test_a_process_that_runs_a_replaced_library(tmp_path: Path, program: str, maps: str, outdated: bool) -> None:
    process = tmp_path / "proc/12"
    process.mkdir(parents=True)
    (process / "exe").symlink_to(program)
    (process / "maps").write_text(maps)
    assert processes.outdated(tmp_path, 12) is outdated
    assert not processes.outdated(tmp_path, 13)
