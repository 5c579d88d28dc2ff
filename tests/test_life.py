"""The service between deploys: a dependency fails, the event loop hangs, a start is refused, sockets change."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise

import pytest

from tests.conftest import AWAY, NEEDS, Site


@pytest.fixture(scope="module")
def needy(site: Site) -> Iterator[str]:
    """Deploy a release that needs a dependency at its start, with a short watchdog, and return its SHA."""
    site.variables["app_watchdog_seconds"] = "2"
    sha = site.release(text=NEEDS)
    site.deploy()
    yield sha
    del site.variables["app_watchdog_seconds"]
    site.release()
    site.deploy()


def show(site: Site, name: str, *properties: str) -> list[str]:
    """Return what systemd says of a unit, in the order asked for."""
    return [site.run(f"systemctl show {name} --property={each} --value") for each in properties]


class Waiting(threading.Thread):
    """A client that waits for one answer without a time limit."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.address, self.answer = site.host.address, "none"
        self.start()

    def run(self) -> None:
        try:
            with closing(http.client.HTTPConnection(self.address, 8000, timeout=60)) as connection:
                connection.request("GET", "/health")
                self.answer = str(connection.getresponse().status)
        except (OSError, http.client.HTTPException) as error:
            self.answer = repr(error)


def test_a_dependency_of_the_start_fails_and_returns(site: Site, needy: str) -> None:
    """The sockets stay open and the pauses grow; a start by hand does not wait for them."""
    site.run(f"touch {AWAY}")
    try:
        assert site.host.ssh("systemctl restart booty.service").returncode != 0
        began, waiting = time.monotonic(), Waiting(site)
        site.wait_for("test $(systemctl show booty.service --property=NRestarts --value) = 4")
        # After pauses of 1, 2 and 4 s and those that RestartSec= adds; systemd's own limit was five starts in 10 s.
        assert time.monotonic() - began > 6
        site.wait_for("test $(systemctl show booty.service --property=SubState --value) = start-pre")
        assert show(site, "booty.socket", "ActiveState") == ["active"]
        assert waiting.is_alive()
    finally:
        site.run(f"rm {AWAY}")
        began = time.monotonic()
        site.run("systemctl restart booty.service")
    assert time.monotonic() - began < 4
    waiting.join()
    assert waiting.answer == "200"
    assert show(site, "booty.service", "NRestarts") == ["0"]


@pytest.mark.long
def test_a_failing_service_is_started_again_without_limit(site: Site, needy: str) -> None:
    """The client that connected first gets its answer after all."""
    site.run(f"touch {AWAY}")
    began = site.run("date +@%s")
    try:
        assert site.host.ssh("systemctl restart booty.service").returncode != 0
        waiting = Waiting(site)
        time.sleep(20)
        assert show(site, "booty.socket", "ActiveState") == ["active"]
    finally:
        site.run(f"rm {AWAY}")
    waiting.join()
    assert waiting.answer == "200"
    journal = site.run(f"journalctl --unit=booty.service --since={began} --output=short-unix --no-pager")
    at = [float(line.split()[0]) for line in journal.splitlines() if "restart counter is at" in line]
    site.run("systemctl restart booty.service")  # the pauses begin again
    # Each gap is the pause, and the time until the start fails.
    for gap, pause in zip((later - earlier for earlier, later in pairwise(at)), (1, 2, 4, 8), strict=False):
        assert pause - 0.5 < gap < pause + 3


def ask_for_the_end(site: Site, path: str) -> None:
    """Request a path at which the process ends without an answer, and wait until the next one answers."""
    with closing(http.client.HTTPConnection(site.host.address, 8000, timeout=20)) as connection:
        connection.request("GET", path)
        with pytest.raises((http.client.HTTPException, OSError)):
            connection.getresponse()
    waiting = Waiting(site)
    waiting.join()
    assert waiting.answer == "200"


def test_an_event_loop_that_hangs_is_seen(site: Site, needy: str) -> None:
    assert show(site, "booty.service", "WatchdogUSec") == ["2s"]
    pid = site.pid()
    ask_for_the_end(site, "/hang")
    assert site.pid() != pid
    assert show(site, "booty.service", "NRestarts") == ["1"]
    journal = site.run("journalctl --unit=booty.service --since=-30s --output=cat --no-pager")
    assert "Watchdog timeout (limit 2s)!" in journal
    assert "in hang" in journal
    site.run("systemctl restart booty.service")


def test_an_app_that_ends_itself_is_started_again(site: Site, needy: str) -> None:
    """The exit status is 1, as of a refused start. But the service was active, so systemd starts it again."""
    pid, opened = site.pid(), show(site, "booty.socket", "InvocationID")
    ask_for_the_end(site, "/exit")
    assert site.pid() != pid
    assert show(site, "booty.service", "NRestarts") == ["1"]
    assert show(site, "booty.socket", "InvocationID") == opened
    site.run("systemctl restart booty.service")


def test_a_start_that_is_refused_stays_refused(site: Site, needy: str) -> None:
    """The sockets are closed too, because each connection would start the service again."""
    site.run("mv /etc/booty/secrets.env /root/secrets.env; cp -a /etc/booty/release.env /root/release.env")
    site.run("sed -i 's/^SENTRY_ENVIRONMENT=.*/SENTRY_ENVIRONMENT=production/' /etc/booty/release.env")
    try:
        waiting = [Waiting(site) for _ in range(3)]
        site.run("systemctl kill --signal=KILL booty.service")
        site.wait_for("test $(systemctl show booty.service --property=ActiveState --value) = failed")
        site.wait_for("test $(systemctl show booty.socket --property=ActiveState --value) = inactive")
        refused = [Waiting(site) for _ in range(3)]
        for each in waiting + refused:
            each.join()
        assert {each.answer for each in refused} == {"ConnectionRefusedError(111, 'Connection refused')"}
        journal = site.run("journalctl --identifier=booty --since=-20s --output=cat --no-pager")
        assert journal.count("SENTRY_DSN is not set, and production does not run without it") == 1
    finally:
        site.run("mv /root/secrets.env /etc/booty/secrets.env; mv /root/release.env /etc/booty/release.env")
    # A person types this command.
    site.run("systemctl restart booty.service")
    assert site.health()["release"] == needy


def test_sockets_that_were_opened_otherwise_are_opened_anew(site: Site, needy: str) -> None:
    """An interrupted deploy leaves this state: the unit is written, and the open sockets are older."""
    site.run(
        "{ systemctl show booty.socket --property=InvocationID --value;"
        " sed s/NoDelay=true/NoDelay=false/ /etc/systemd/system/booty.socket; } > /run/booty/opened"
    )
    changed = "NoDelay=false, NoDelay=true"
    played = site.play("status.yml", app_drift="true")
    assert played.status != 0
    assert f"booty.socket was opened before {changed} changed" in " ".join(played.output.split())
    before = show(site, "booty.socket", "InvocationID")
    played = site.deploy()
    assert f"booty.socket changed in {changed}: its sockets were opened anew" in " ".join(played.output.split())
    assert show(site, "booty.socket", "InvocationID") != before
    assert site.deploy().recap(site.host.name)["changed"] == 0
    assert site.play("status.yml", app_drift="true").status == 0


def test_a_changed_socket_unit_is_in_force_after_one_deploy(site: Site, needy: str) -> None:
    site.run("sed -i s/NoDelay=true/NoDelay=false/ /etc/systemd/system/booty.socket; systemctl daemon-reload")
    site.run("systemctl restart booty.socket; systemctl start booty.service")
    before = show(site, "booty.socket", "InvocationID")
    played = site.deploy()
    assert "NoDelay=false, NoDelay=true: its sockets were opened anew, and for" in " ".join(played.output.split())
    assert show(site, "booty.socket", "InvocationID") != before
    assert site.deploy().recap(site.host.name)["changed"] == 0
    # An option that needs no new socket leaves it open.
    site.run("sed -i s/FreeBind=true/FreeBind=false/ /etc/systemd/system/booty.socket; systemctl daemon-reload")
    before = show(site, "booty.socket", "InvocationID")
    assert "opened anew" not in site.deploy().output
    assert show(site, "booty.socket", "InvocationID") == before


def test_service_and_candidate_share_one_limit_of_memory(site: Site, needy: str) -> None:
    """No sandbox host has a memory controller, so the test reads the limits that systemd has computed."""
    site.run("systemd-analyze verify system-booty.slice booty.service booty-candidate.service")
    limit = show(site, "system-booty.slice", "MemoryMax", "ActiveState")
    assert limit == [*show(site, "booty.service", "MemoryMax"), "active"]
    assert limit[0].isdecimal()
    for name, adjustment in (("booty.service", "0"), ("booty-candidate.service", "500")):
        assert show(site, name, "Slice", "OOMScoreAdjust") == ["system-booty.slice", adjustment]
    assert "/system-booty.slice/" in site.run(f"cat /proc/{site.pid()}/cgroup")
