"""An app without a framework: its lifespan, the hooks, and the commands."""

import json
import os
import subprocess
import sys

import pytest
from runner.tests.clients import Connection, ask
from runner.tests.conftest import SRC


@pytest.fixture
def plain(start, tcp, unix, tmp_path):
    def plain(kind, **settings):
        return start(
            sockets=[tcp, unix],
            app="plain:app",
            TEST_LIFESPAN=kind,
            TEST_NOTES=str(tmp_path / "notes"),
            SENTRY_RELEASE="a",
            **settings,
        )

    return plain


@pytest.mark.parametrize("kind", ["raises before", "returns before"])
def test_an_app_without_a_lifespan_serves(plain, tcp, kind):
    service = plain(kind).ready()
    assert json.loads(ask(tcp, "/a")[2]) == {"path": "/a", "state": {}}
    service.stop()
    status, stderr = service.wait()
    assert status == 0
    assert "ERROR" not in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        ("raises", 3, "ConnectionError: the database is away"),
        ("says that it failed", 3, "LifespanError: the app's startup failed: no database"),
        ("refuses", 1, ""),
        ("leaves", 1, "the app called sys.exit(0) in "),
    ],
)
def test_a_startup_that_fails_is_told_once(plain, kind, status, words):
    service = plain(kind)
    ended, stderr = service.wait()
    assert ended == status
    assert words in stderr
    assert stderr.count("Traceback") == (status == 3)
    assert "serving release" not in stderr


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        ("leaves", 1, "the app called sys.exit(0) in "),
        ("leaves with a message", 1, "the app called sys.exit('no database') in "),
        ("refuses", 1, ""),
        ("stops", 3, "Stop: here"),
        ("closes", 1, "plain:app closed the sockets that systemd passed to this process when it was imported: "),
        ("reopens", 1, "plain:app closed the sockets that systemd passed to this process when it was imported: "),
    ],
)
def test_an_import_that_ends_the_process_says_why(plain, kind, status, words):
    """A traceback begins with the app's own frames."""
    ended, stderr = plain("none", TEST_IMPORT=kind).wait()
    assert (ended, len([line for line in stderr.splitlines() if line[:1].strip()])) == (
        status,
        bool(words) + (status == 3) * 2,
    ), stderr
    assert words in stderr
    assert "importlib" not in stderr
    assert "booty_runner/" not in stderr


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("ends by itself", "the app's shutdown failed: it ended while the app served"),
        ("dies by itself", "ConnectionError: the database is away"),
    ],
)
def test_a_lifespan_that_ends_while_the_app_serves_drains_and_ends_the_service(plain, tcp, kind, words):
    service = plain(kind).ready()
    with Connection(tcp) as connection:
        assert connection.ask("/")[0] == 200
        service.notifications.expect("STOPPING=1")
        assert connection.ask("/")[1]["connection"] == "close"
    status, stderr = service.wait()
    assert status == 3
    assert words in stderr
    assert stderr.count("Traceback") == 1


def test_a_shutdown_that_fails_ends_with_status_3(plain):
    service = plain("fails at the end").ready()
    service.stop()
    status, stderr = service.wait()
    assert status == 3
    assert "LifespanError: the app's shutdown failed: no flush" in stderr


def test_hooks_are_called_in_order_and_each_request_has_the_state(plain, tcp, tmp_path):
    service = plain("whole").ready()
    for _ in range(2):
        assert json.loads(ask(tcp, "/")[2])["state"] == {"pool": "open"}
    service.stop()
    assert service.wait()[0] == 0
    notes = (tmp_path / "notes").read_text().splitlines()
    assert notes == ["ready {'pool': 'open'}", "drain", "drained False", "shutdown"]


def command(unix, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "booty_runner", "plain:app", *arguments, "--socket", unix.getsockname()],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": SRC},
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "status", "output"),
    [
        (["stock"], 0, "tea: 3\n"),
        (["stock", "--of", "milk"], 1, "milk: 3\n"),
        (["stock", "--of", "a b&c=d"], 0, "a b&c=d: 3\n"),
        (["stock", "--of", "gold"], 1, "booty: no gold is sold\n"),
        (["stock", "--at", "home"], 1, "booty: stock takes --of\n"),
        (["verify", "--of", "tea"], 1, "booty: verify takes no option\n"),
        (["stoke"], 1, "booty: there is no command stoke, but stock, verify\n"),
    ],
)
def test_commands_of_the_app(plain, unix, arguments, status, output):
    plain("whole").ready()
    done = command(unix, *arguments)
    assert (done.returncode, done.stdout + done.stderr) == (status, output)
    assert json.loads(ask(unix, "/status")[2])["stock"]["stock"] == "tea"


def test_a_command_as_json_and_without_a_service(plain, unix):
    assert command(unix, "stock", "--of").returncode == 2
    service = plain("whole").ready()
    done = command(unix, "stock", "--json", "--of", "milk")
    assert json.loads(done.stdout) == {"stock": "milk", "ok": False}
    service.stop()
    service.wait()
