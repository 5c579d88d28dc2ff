"""Several workers on a real host: one service to systemd and to deploy, and nothing lost."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from tests.conftest import AWAY, NEEDS, ROUTES, Site
from tests.load import Load

WHO = (
    ROUTES
    + """
import os
@router.get("/who")
async def who(seconds: float = 0) -> int:
    await asyncio.sleep(seconds)
    return os.getpid()
@router.get("/fail")
async def fail() -> None:
    raise RuntimeError(f"of {os.getpid()}")
"""
)
# Kill a process with SIGKILL, as the OOM killer does. Then send requests for 3 s, each on a new connection.
KILL = """
import http.client, os, signal, time
os.kill({}, signal.SIGKILL)
until, answers = time.monotonic() + 3, []
while time.monotonic() < until:
    connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=10)
    connection.request("GET", "/who", headers=dict(Connection="close"))
    answer = connection.getresponse()
    answers.append(answer.read().decode() if answer.status == 200 else f"status {{answer.status}}")
print(*sorted(set(answers)))
"""


@pytest.fixture(scope="module")
def pair(site: Site) -> Iterator[str]:
    """Deploy a release that serves with two workers, and return its SHA."""
    site.variables["app_workers"] = "2"
    sha = site.release()
    site.deploy()
    yield sha
    del site.variables["app_workers"]


def workers(site: Site) -> list[str]:
    main = site.pid()
    return site.run(f"cat /proc/{main}/task/{main}/children").split()


def test_a_deploy_and_a_restart_lose_nothing(site: Site, pair: str) -> None:
    assert len(workers(site)) == 2
    newer = site.release()
    with Load(site.host.address) as load:
        site.deploy()
        site.deploy(app_restart="true")
    assert load.report["failures"] == []
    assert set(load.report["releases"]) == {pair, newer}
    assert load.report["requests"] > 100
    assert len(workers(site)) == 2
    assert site.deploy().recap(site.host.name)["changed"] == 0


def test_a_worker_that_the_kernel_kills_is_replaced_and_the_other_serves_on(site: Site, pair: str) -> None:
    """SIGKILL stands for the OOM killer: without cgroup memory accounting, a sandbox host can't trigger that.

    `OOMPolicy=` decides whether systemd then stops the unit, so the test checks it.
    """
    sha, before = site.release(text=WHO), {event["id"] for event in site.tracker.events()}
    site.deploy()
    assert site.run("systemctl show booty.service --property=OOMPolicy --value") == "continue"
    main, (victim, other) = site.pid(), workers(site)
    with ExitStack() as stack:
        # Open requests to each worker, on connections that this worker has answered before.
        kept: dict[str, list[http.client.HTTPConnection]] = {victim: [], other: []}
        for _ in range(200):
            connection = stack.enter_context(closing(http.client.HTTPConnection(site.host.address, 8000, timeout=20)))
            connection.request("GET", "/who")
            kept[connection.getresponse().read().decode()].append(connection)
            if min(map(len, kept.values())) >= 5:
                break
        for connection in (connection for found in kept.values() for connection in found):
            connection.request("GET", "/who?seconds=2")
        answers = site.run(f"python3 - <<'END'\n{KILL.format(victim)}\nEND").split()
        assert [connection.getresponse().read().decode() for connection in kept[other]] == [other] * len(kept[other])
        for connection in kept[victim]:
            with pytest.raises((http.client.HTTPException, OSError)):
                connection.getresponse()
    (successor,) = set(workers(site)) - {other}
    assert sorted(answers) == sorted([other, successor])
    assert site.run("systemctl show booty.service --property=MainPID,NRestarts,ActiveState").splitlines() == [
        f"MainPID={main}",
        "NRestarts=0",
        "ActiveState=active",
    ]
    for _ in range(20):
        with closing(http.client.HTTPConnection(site.host.address, 8000, timeout=20)) as connection:
            connection.request("GET", "/fail")
            assert connection.getresponse().status == 500

    def is_successor_s(event: dict[str, Any]) -> bool:
        return f"of {successor}" in json.dumps(event["exception"]) if "exception" in event else False

    event = site.tracker.wait_for_event(is_successor_s, timeout=20, unless=before)
    assert (event.data["release"], event.data["environment"]) == (sha, "staging")


@pytest.mark.long
def test_another_number_of_workers_loses_nothing(site: Site, pair: str) -> None:
    with Load(site.host.address) as load:
        for number in (1, 3, 2):
            site.deploy(app_workers=str(number))
            assert len(workers(site)) == (number if number > 1 else 0)
    assert load.report["failures"] == []


@pytest.mark.long
def test_production_without_a_dsn_does_not_start(site: Site, pair: str) -> None:
    site.deploy()
    site.run("mv /etc/booty/secrets.env /root/secrets.env; cp -a /etc/booty/release.env /root/release.env")
    try:
        site.run("sed -i 's/^SENTRY_ENVIRONMENT=.*/SENTRY_ENVIRONMENT=production/' /etc/booty/release.env")
        assert site.host.ssh("systemctl restart booty.service").returncode != 0
        properties = site.run("systemctl show booty.service --property=ActiveState,Result,ExecMainStatus")
        assert properties.splitlines() == ["Result=exit-code", "ExecMainStatus=1", "ActiveState=failed"]
        invocation = site.run("systemctl show booty.service --property=InvocationID --value")
        lines = site.run(f"journalctl _SYSTEMD_INVOCATION_ID={invocation} --output=cat --no-pager").splitlines()
        assert len(lines) == 1, lines
        assert "SENTRY_DSN is not set, and production does not run without it" in lines[0]
    finally:
        site.run("mv /root/secrets.env /etc/booty/secrets.env; mv /root/release.env /etc/booty/release.env")
        site.run("systemctl reset-failed booty.service booty.socket; systemctl start booty.socket booty.service")


def test_a_worker_that_can_t_be_replaced_leaves_the_other_serving(site: Site, pair: str) -> None:
    """The runner goes on trying to start the worker, and status.yml says that it is missing."""
    site.release(text=f"{NEEDS}# with workers\n")
    site.deploy()
    main, (victim, other) = site.pid(), workers(site)
    site.run(f"touch {AWAY}; kill -KILL {victim}")
    try:
        text = "serving with 1 of 2 workers"
        site.wait_for(f"systemctl show booty.service --property=StatusText --value | grep -q '{text}, [2-9] failed'")
        assert other in workers(site)
        assert site.health()["status"] == "ok"
        played = site.play("status.yml")
        assert f"booty.service is {text}" in " ".join(played.output.split())
    finally:
        site.run(f"rm {AWAY}")
    site.wait_for("systemctl show booty.service --property=StatusText --value | grep -qx 'serving with 2 workers'")
    assert site.pid() == main
    assert len(workers(site)) == 2


@pytest.mark.long
def test_no_worker_outlives_a_killed_supervisor(site: Site, pair: str) -> None:
    site.deploy()
    main, orphans = site.pid(), workers(site)
    site.run(f"kill -KILL {main}")
    site.wait_for(f"systemctl is-active booty.service && test $(systemctl show booty.service -P MainPID) != {main}")
    assert site.health()["release"] == site.repository.git("rev-parse", "HEAD")
    assert len(workers(site)) == 2
    assert site.run(f"ls -d {' '.join(f'/proc/{pid}' for pid in orphans)} 2>/dev/null || true") == ""
