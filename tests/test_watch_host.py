"""A watch on a real host, with a real Bugsink: its results, its actions, and the state after a cut-off."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.conftest import ROUTES, Play, Site, words

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# The tests share a tracker, so each test raises an error of its own, which is new to the tracker.
NUMBERS = itertools.count(1)
PAY = (
    ROUTES
    + """
@router.get("%(route)s")
async def pay() -> dict[str, int]:
    return {"total": total(%(count)d)}
def total(count: int) -> int:
    if not count:
        raise type("Unpaid%(number)s", (Exception,), {})("there is no total")
    return count
"""
)


@pytest.fixture
def tracker(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables that an operator sets, for the sandbox's tracker."""
    for name, value in {
        "SENTRY_URL": site.tracker.url,
        "SENTRY_WATCH_TOKEN": site.tracker.token,
        "SENTRY_PROJECT": str(site.tracker.project),
        "NO_PROXY": "*",
    }.items():
        monkeypatch.setenv(name, value)


@contextmanager
def traffic(site: Site, path: str, pause: float = 0.2) -> Iterator[None]:
    """Request a path of the host again and again."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(pause):
            with suppress(OSError):
                OPENER.open(f"http://{site.host.address}:8000{path}", timeout=5).read()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def pay(site: Site, count: int, route: str = "/pay") -> str:
    """Commit a route that fails if the count is 0; return the commit."""
    return site.release(text=PAY % {"route": route, "count": count, "number": route[4:]} + f"# {time.monotonic()}\n")


@pytest.fixture
def route() -> str:
    """Return a route that no other test has."""
    return f"/pay{next(NUMBERS)}"


def deploy(site: Site, mode: str, seconds: int = 10, *arguments: str, **variables: str) -> Play:
    """Deploy with a watch."""
    return site.play("deploy.yml", *arguments, on=None, app_watch=mode, app_watch_seconds=str(seconds), **variables)


def recorded(site: Site) -> dict[str, str]:
    """Return the newest record of a watch in the host's journal."""
    line = site.run("journalctl -t booty-deploy -o json | grep BOOTY_WATCH | tail -1")
    record: dict[str, str] = json.loads(line)
    return record


def test_a_wave_with_new_errors_goes_back(site: Site, tracker: None, route: str) -> None:
    good = pay(site, 1, route)
    with traffic(site, route, 0.02):
        played = deploy(site, "back", 5)
        assert played.status == 0, played.output
        line = r"watch: clean, no new errors in \d+ requests: fewer than \S+ % meet a new error, 95 % sure"
        assert re.search(line, played.output), played.output
        record = recorded(site)
        assert (record["BOOTY_WATCH"], record["BOOTY_RELEASE"]) == ("clean", good)
        assert record["MESSAGE"].startswith("watch: clean, ")
    with traffic(site, route):
        bad = pay(site, 0, route)
        played = deploy(site, "back")
    assert played.status == 2, played.output
    assert f"watch: bad, {bad} brought a new error, seen" in words(played)
    assert f"Unpaid{route[4:]}: there is no total ({route})" in played.output
    assert f"{site.tracker.url}/issues/issue/" in played.output
    assert re.search(r"booty/routes\.py:\d+ in total", played.output)
    assert f"commit {bad[:7]}" in played.output
    assert "Test: Change routes.py" in played.output
    assert f"Went back to {good}, which serves." in played.output
    assert site.health()["release"] == good
    assert (recorded(site)["BOOTY_WATCH"], recorded(site)["BOOTY_RELEASE"]) == ("bad", bad)

    # From now on the release is refused before any host is changed.
    played = deploy(site, "back")
    assert played.status == 2
    assert f"{bad} was taken back from {site.host.name}: a watch on" in words(played)
    assert f"found Unpaid{route[4:]}" in words(played)
    assert "Nothing was changed." in played.output
    assert site.health()["release"] == good


def test_an_error_in_an_older_issue_is_named_and_no_percentage(site: Site, tracker: None, route: str) -> None:
    """Bugsink makes one issue of errors with one type and value, whichever release or app sends them."""
    pay(site, 0, route)
    played = deploy(site, "off")
    assert played.status == 0, played.output
    with traffic(site, route, 0.1):
        site.tracker.wait_for_event(lambda data: data.get("transaction") == route, timeout=30)
        pay(site, 0, route)
        played = deploy(site, "back", 5)
    assert played.status == 0, played.output
    line = r"watch: clean, no new errors, but at least \d+ events in an older issue in \d+ requests\."
    assert re.search(line, words(played)), played.output
    assert f"Unpaid{route[4:]}: there is no total" in played.output
    assert "95 % sure" not in played.output


@pytest.mark.long
def test_a_forced_release_stays_and_can_be_rolled_back(site: Site, tracker: None, route: str) -> None:
    good = pay(site, 1, route)
    assert deploy(site, "off").status == 0
    bad = pay(site, 0, route)
    with traffic(site, route):
        assert deploy(site, "back").status == 2
        forced = deploy(site, "back", 10, "-e", "app_watch_force=true")
        assert forced.status == 2
        assert "The wave stays on it, since app_watch_force is set." in forced.output
        assert site.health()["release"] == bad
        status = json.loads(site.play("status.yml", "-e", "status_format=json").output.partition("\n[")[0])
        (row,) = status["hosts"]
        assert row["watch"]["result"] == "bad"
        assert any(note.startswith("watch: bad") for note in row["notes"])

        # watch.yml watches the running release; its exit status is the result.
        played = site.play("watch.yml")
        assert played.status == 10
        assert "watch: bad" in played.output
        assert site.play("rollback.yml").status == 0
        assert site.health()["release"] == good
        time.sleep(8)
        played = site.play("watch.yml")
        assert played.status == 0, played.output
        assert "watch: clean" in played.output


@pytest.mark.long
def test_report_and_hold_keep_the_release(site: Site, tracker: None, route: str) -> None:
    pay(site, 1, route)
    assert deploy(site, "off").status == 0
    with traffic(site, route):
        bad = pay(site, 0, route)
        played = deploy(site, "report")
        assert played.status == 0
        assert "back would have taken this wave back" in played.output, played.output
        assert site.health()["release"] == bad
        again = pay(site, 0, route)
        played = deploy(site, "hold")
        # The same error as before, so this release did not bring it.
        assert played.status == 0, played.output
        assert site.health()["release"] == again


@pytest.mark.long
def test_never_across_a_release_command(site: Site, tracker: None, route: str) -> None:
    pay(site, 1, route)
    assert deploy(site, "off").status == 0
    bad = pay(site, 0, route)
    with traffic(site, route):
        played = deploy(site, "back", 10, "-e", '{"app_release_command": ["echo migrated"]}')
    assert played.status == 2, played.output
    assert "The wave stays on it, since its release command has run" in words(played)
    assert site.health()["release"] == bad


@pytest.mark.long
def test_little_traffic_is_quiet(site: Site, tracker: None) -> None:
    pay(site, 1)
    played = deploy(site, "back", 2)
    assert played.status == 0
    assert "watch: quiet, no new errors in 0 requests, which is too little traffic to say more." in played.output
    assert recorded(site)["BOOTY_WATCH"] == "quiet"
    assert site.play("watch.yml").status == 11


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("SENTRY_WATCH_TOKEN", "0" * 40, "answers 401"),
        ("SENTRY_PROJECT", "999", "SENTRY_PROJECT"),
        ("SENTRY_URL", "http://127.0.0.1:9", "Connection refused"),
    ],
)
def test_a_tracker_that_can_not_be_asked_is_blind(
    site: Site, tracker: None, monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    pay(site, 1)
    monkeypatch.setenv(name, value)
    played = deploy(site, "back", 2)
    assert played.status == 0
    assert "watch: blind, errors of" in played.output
    assert reason in words(played)
    assert recorded(site)["BOOTY_WATCH"] == "blind"
    assert site.play("watch.yml").status == 12
    held = pay(site, 1)
    played = deploy(site, "hold", 2)
    assert played.status == 2
    assert site.health()["release"] == held


@pytest.mark.long
def test_a_host_that_reports_only_some_errors_is_blind(site: Site, tracker: None) -> None:
    pay(site, 1)
    played = deploy(site, "back", 2, "-e", '{"app_settings": {"SENTRY_SAMPLE_RATE": "0.5"}}')
    assert "reports only 50% of its errors (sample rate)" in words(played)
    assert recorded(site)["BOOTY_WATCH"] == "blind"


@pytest.mark.long
def test_a_host_whose_events_are_lost_is_blind(site: Site, tracker: None, route: str) -> None:
    """The host reaches the tracker when the release is proven, and no longer when users meet its errors."""
    good = pay(site, 1, route)
    assert deploy(site, "off").status == 0
    bad = pay(site, 0, route)
    site.run("apt-get install -qy nftables")
    run = site.start("deploy.yml", app_watch="report", app_watch_seconds="15")
    site.wait_for(f"journalctl -t booty-deploy -o cat -n 20 | grep -q 'serving {bad}'", seconds=90)
    port = urllib.parse.urlsplit(site.tracker.dsn).port
    site.run(f"nft 'add table inet cut; add chain inet cut out {{ type filter hook output priority 0; }};"
             f" add rule inet cut out tcp dport {port} reject'")  # fmt: skip
    try:
        with traffic(site, route):
            played = run.end()
    finally:
        site.run("nft delete table inet cut")
    assert "watch: blind" in played.output, played.output
    assert "lost" in played.output
    assert recorded(site)["BOOTY_WATCH"] == "blind"
    assert good != bad == site.health()["release"]


@pytest.mark.long
def test_a_host_whose_clock_differs_from_the_trackers_is_blind(site: Site, tracker: None) -> None:
    """A server in front of the tracker passes all on, and says that it is ten minutes later."""

    class Ahead(BaseHTTPRequestHandler):
        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(time.time() + 600, usegmt=True)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept = {name: value for name, value in self.headers.items() if name.lower() not in {"host", "connection"}}
            with OPENER.open(urllib.request.Request(f"{site.tracker.url}{self.path}", body, kept)) as answer:
                self.send_response(answer.status)
                text = answer.read()
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    dsn = urllib.parse.urlsplit(site.tracker.dsn)
    with ThreadingHTTPServer((str(dsn.hostname), 0), Ahead) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            pay(site, 1)
            site.place_secrets(f"SENTRY_DSN={site.tracker.dsn.replace(f':{dsn.port}', f':{server.server_port}')}\n")
            played = deploy(site, "back", 2)
        finally:
            site.place_secrets(f"SENTRY_DSN={site.tracker.dsn}\n")
            server.shutdown()
    assert "watch: blind" in played.output, played.output
    assert re.search(r"clock: it is (599|60\d) s behind the tracker's", words(played)), played.output
    assert recorded(site)["BOOTY_WATCH"] == "blind"


@pytest.mark.long
def test_a_host_without_a_dsn_and_one_with_a_wrong_key_are_blind(site: Site, tracker: None) -> None:
    try:
        site.place_secrets("A=b\n")
        pay(site, 1)
        assert "it can't report errors: it has no SENTRY_DSN" in words(deploy(site, "back", 2))
        key = site.tracker.dsn.partition("//")[2].partition("@")[0]
        site.place_secrets(f"SENTRY_DSN={site.tracker.dsn.replace(key, '0' * 32)}\n")
        pay(site, 1)
        played = deploy(site, "back", 2)
        assert "watch: blind" in played.output
        assert "refuses the key in SENTRY_DSN" in words(played)
    finally:
        site.place_secrets(f"SENTRY_DSN={site.tracker.dsn}\n")


@pytest.mark.long
def test_without_a_token_report_is_off_and_back_is_refused(
    site: Site, tracker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SENTRY_WATCH_TOKEN")
    pay(site, 1)
    played = deploy(site, "report")
    assert played.status == 0
    assert "watch:" not in played.output
    assert "New errors are not watched: there is no SENTRY_WATCH_TOKEN" in words(played)
    sha = pay(site, 1)
    played = deploy(site, "back")
    assert played.status == 2
    assert "app_watch is back, and the tracker can't be asked" in words(played)
    assert site.health()["release"] != sha


@pytest.mark.long
def test_a_controller_that_dies_in_a_watch_leaves_the_release(site: Site, tracker: None) -> None:
    sha = pay(site, 1)
    run = site.start("deploy.yml", app_watch="back", app_watch_seconds="600")
    deadline = time.monotonic() + 60
    while recorded(site).get("BOOTY_RELEASE") != sha:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    run.kill()
    assert site.health()["release"] == sha
    assert recorded(site)["BOOTY_WATCH"] == "began"
    status = site.play("status.yml", "-e", "status_format=json").output
    assert json.loads(status.partition("\n[")[0])["hosts"][0]["watch"]["result"] == "began"
    # After its longest time, a watch without a result was cut off.
    release = f"BOOTY_APP=booty\\nBOOTY_WATCH=began\\nBOOTY_RELEASE={sha}\\nBOOTY_UNTIL=1\\n"
    site.run(f"printf 'MESSAGE=x\\nSYSLOG_IDENTIFIER=booty-deploy\\n{release}' | logger --journald")
    time.sleep(1)
    played = site.play("status.yml")
    assert "its watch, begun on" in played.output
    assert "was cut off" in played.output
    # The next deploy needs no cleaning.
    assert deploy(site, "off").status == 0
