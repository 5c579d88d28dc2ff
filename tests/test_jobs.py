"""Jobs of the real service on a real host: no crash loses a job, and without a crash no job runs twice."""

from __future__ import annotations

import http.client
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest

from app.tests.postgres import Cluster
from sandbox import demo
from sandbox import hosts as sandbox
from sandbox.hosts import Host
from tests.conftest import ROOT, Site

JOBS = """

import os
import time

from booty.queue import current


def note(*words: object) -> None:
    with open(os.path.join(os.environ["STATE_DIRECTORY"], "notes"), "a") as file:
        print(*words, file=file, flush=True)
        os.fsync(file.fileno())


@job()
def slow(name: str, seconds: float) -> None:
    # Sleep in the first run only, so that a second run ends at once.
    again = os.path.exists(os.path.join(os.environ["STATE_DIRECTORY"], name))
    open(os.path.join(os.environ["STATE_DIRECTORY"], name), "w").close()
    note("begin", name)
    if not again:
        time.sleep(seconds)
    note("end", name)


@job()
def counted(name: str, seconds: float) -> None:
    # A file on a host makes its jobs take an hour.
    note("begin", name, current().id)
    time.sleep(3600 if os.path.exists(os.path.join(os.environ["STATE_DIRECTORY"], "dawdle")) else seconds)
    note("end", name, current().id)


@job(retries=1, wait=0.1)
def broken(name: str, seconds: float) -> None:
    raise LookupError(name)
"""

ROUTES = """
from fastapi import APIRouter, Request

from booty import jobs

router = APIRouter()


@router.post("/jobs/{kind}")
async def enqueue(request: Request, kind: str, name: str, seconds: float = 0) -> str:
    return await request.state.queue.enqueue(getattr(jobs, kind), name, seconds)
"""


@pytest.fixture(scope="module")
def release(site: Site) -> Iterator[str]:
    """Deploy an app with jobs, and return its SHA."""
    jobs = (ROOT / "app/src/booty/jobs.py").read_text()
    site.release("jobs.py", jobs + JOBS)
    sha = site.release(text=ROUTES)
    site.deploy()
    yield sha
    site.release("jobs.py", jobs)


@pytest.fixture(autouse=True)
def _no_notes(site: Site, release: str) -> None:
    site.run("cd /var/lib/booty && rm -f notes long job-*")


def enqueue(site: Site, kind: str, name: str, seconds: float = 0) -> str:
    url = f"http://127.0.0.1:8000/jobs/{kind}?name={name}&seconds={seconds}"
    identity: str = json.loads(ask(site, f"-X POST '{url}'"))
    return identity


def ask(site: Site, request: str) -> str:
    """Send a request on the host itself, with Python's client: Debian's minimal system has no curl."""
    method, url = ("POST", request.split("'")[1]) if "POST" in request else ("GET", request)
    program = f"import urllib.request as r; print(r.urlopen(r.Request({url!r}, method={method!r})).read().decode())"
    return site.run(f'python3 -c "{program}"')


def noted(site: Site) -> Counter[str]:
    return Counter(site.run("cat /var/lib/booty/notes 2>/dev/null || true").splitlines())


def wait_for_note(site: Site, line: str, seconds: float = 60) -> None:
    site.wait_for(f"grep -qx '{line}' /var/lib/booty/notes", seconds)


def booty(site: Site, command: str) -> tuple[int, str]:
    """Run a command of the running release as root on the host."""
    done = site.host.ssh(f". /etc/booty/release.env && $BOOTY_RELEASE_DIR/bin/serve {command}")
    return done.returncode, done.stdout if done.returncode == 0 else done.stdout + done.stderr


def jobs(site: Site) -> list[dict[str, Any]]:
    status, output = booty(site, "jobs --json")
    assert status == 0, output
    return [job for job in json.loads(output)["jobs"] if job["kind"] != "verify"]


def test_a_job_survives_a_kill_of_the_service(site: Site) -> None:
    enqueue(site, "slow", "long", 600)
    wait_for_note(site, "begin long")
    site.run("systemctl kill --signal=KILL booty.service")
    wait_for_note(site, "end long")
    assert noted(site) == {"begin long": 2, "end long": 1}
    site.wait_for("systemctl is-active booty.service")
    assert jobs(site) == []


@pytest.mark.long
def test_a_job_survives_a_power_cut(site: Site) -> None:
    enqueue(site, "slow", "long", 600)
    wait_for_note(site, "begin long")
    sandbox.stop(site.host.instance, site.host.name)
    sandbox.start(site.host.instance, site.host.name)
    wait_for_note(site, "end long")
    assert noted(site) == {"begin long": 2, "end long": 1}
    assert jobs(site) == []


def test_a_deploy_during_a_long_job(site: Site, release: str) -> None:
    enqueue(site, "slow", "long", 4)
    wait_for_note(site, "begin long")
    site.release(text=ROUTES + "# another one\n")
    playing = site.start("deploy.yml")
    for number in range(8):
        enqueue(site, "slow", f"job-{number}", 0.1)
    played = playing.end()
    assert played.status == 0, played.output
    for number in range(8):
        wait_for_note(site, f"end job-{number}")
    names = ["long", *(f"job-{number}" for number in range(8))]
    assert noted(site) == Counter(f"{when} {name}" for when in ("begin", "end") for name in names)
    assert jobs(site) == []


@pytest.mark.long
def test_a_deploy_during_a_job_longer_than_the_drain(site: Site, release: str) -> None:
    site.deploy(app_drain_seconds="1")
    enqueue(site, "slow", "long", 600)
    wait_for_note(site, "begin long")
    site.release(text=ROUTES + "# yet another one\n")
    site.deploy(app_drain_seconds="1")
    wait_for_note(site, "end long")
    assert noted(site) == {"begin long": 2, "end long": 1}
    assert "1 jobs go back to the queue" in site.run("journalctl --identifier=booty --output=cat")


def test_a_failing_job_s_events_reach_the_tracker(site: Site, release: str) -> None:
    before = {event["id"] for event in site.tracker.events()}
    site.deploy(app_release=release)
    identity = enqueue(site, "broken", "planned")
    site.wait_for(f". /etc/booty/release.env; $BOOTY_RELEASE_DIR/bin/serve jobs | grep -q '^{identity}.*failed'", 60)
    reported: list[dict[str, Any]] = []

    def events() -> list[dict[str, Any]]:
        new = [event["id"] for event in site.tracker.events() if event["id"] not in before]
        return [site.tracker.event(event).data for event in new]

    for _ in range(100):
        if len(reported := events()) >= 2:
            break
    assert len(reported) == 2
    for event in reported:
        assert event["release"] == release
        assert event["environment"] == "staging"
        assert event["transaction"] == "broken"
        assert event["exception"]["values"][-1]["value"] == "planned"
        assert event["tags"]["job_id"] == identity
        assert event["tags"]["job_kind"] == "broken"
    assert {event["tags"]["job_attempt"] for event in reported} == {"1", "2"}
    assert booty(site, f"jobs --drop {identity}")[0] == 0


def test_booty_verify_on_the_host(site: Site, release: str) -> None:
    site.deploy(app_release=release)
    status, output = booty(site, "verify")
    assert status == 0, output
    assert [line.split()[:2] for line in output.splitlines()] == [
        *([name, "ok"] for name in ("settings", "tracker", "release", "state", "disk", "clock", "queue")),
        ["process", site.pid()],
    ]
    assert release in output
    # Change release.env, so that it names a release that does not run.
    site.run("cp /etc/booty/release.env /root/kept; sed -i s/SENTRY_RELEASE=./SENTRY_RELEASE=x/ /etc/booty/release.env")
    try:
        status, output = booty(site, "verify --json")
    finally:
        site.run("cp /root/kept /etc/booty/release.env")
    assert status == 1, output
    report = json.loads(output)
    assert [check["name"] for check in report["checks"] if not check["ok"]] == ["release"]
    assert report["release"] == release
    site.wait_for("test -e /var/lib/booty/jobs.sqlite3")
    listed = json.loads(booty(site, "jobs --json")[1])["jobs"]
    assert [(job["kind"], job["state"], job["error"]) for job in listed] == [("verify", "waiting", None)]


@pytest.mark.long
def test_a_queue_in_postgresql(site: Site, release: str) -> None:
    """The service connects from its unit's sandbox to a PostgreSQL on the tracker's address."""
    address = urlsplit(site.tracker.url).hostname
    assert address
    secrets, cluster = f"SENTRY_DSN={site.tracker.dsn}\n", Cluster(address)
    try:
        site.place_secrets(f"{secrets}BOOTY_QUEUE_URL={cluster.url}\n")
        site.deploy(app_release=release, app_restart="true")
        enqueue(site, "slow", "long", 600)
        wait_for_note(site, "begin long")
        site.run("systemctl kill --signal=KILL booty.service")
        wait_for_note(site, "end long", 120)
        assert noted(site) == {"begin long": 2, "end long": 1}
        cluster.stop()
        site.release(text=ROUTES + "# not to be\n")
        played = site.play("deploy.yml")
        assert played.status != 0
        assert "queue: connection failed" in " ".join(played.output.split())
        assert site.health()["release"] == release
        for text in (played.output, site.run("journalctl --output=cat")):
            assert "pw-of-queue" not in text
    finally:
        cluster.close()
        site.place_secrets(secrets)
        site.deploy(app_release=release, app_restart="true")


@pytest.fixture
def pair(site: Site, release: str) -> Iterator[tuple[Host, Host]]:
    """Yield two hosts that share a queue in one PostgreSQL."""
    address = urlsplit(site.tracker.url).hostname
    assert address
    hosts, secrets, cluster = (site.host, site.bare), f"SENTRY_DSN={site.tracker.dsn}\n", Cluster(address)
    try:
        played = site.play("bootstrap.yml", on=site.bare)
        assert played.status == 0, played.output
        for host in hosts:
            demo.place_secrets(host, f"{secrets}BOOTY_QUEUE_URL={cluster.url}\n")
        played = site.play("deploy.yml", "--limit", "booty", app_release=release, app_restart="true")
        assert played.status == 0, played.output
        yield hosts
    finally:
        sandbox.start(site.bare.instance, site.bare.name)  # does nothing if the host is running
        site.bare.ssh("rm -f /var/lib/booty/dawdle /var/lib/booty/notes")
        cluster.close()
        for host in hosts:
            demo.place_secrets(host, secrets)
        played = site.play("deploy.yml", "--limit", "booty", app_release=release, app_restart="true")
        assert played.status == 0, played.output


def enqueue_at_once(host: Host, names: Iterable[str], seconds: float) -> dict[str, str]:
    """Enqueue jobs on a host one after the other; return the id of each."""
    identities = {}
    with closing(http.client.HTTPConnection(host.address, 8000, timeout=20)) as connection:
        for name in names:
            connection.request("POST", f"/jobs/counted?name={name}&seconds={seconds}")
            with connection.getresponse() as answer:
                assert answer.status == 200
                identities[name] = json.load(answer)
    return identities


def expected(identities: dict[str, str], again: Iterable[str] = ()) -> Counter[str]:
    """Return the notes of all jobs once they are done; the jobs in `again` began twice."""
    begun = [f"begin {name} {identities[name]}" for name in (*identities, *again)]
    return Counter([*begun, *(f"end {name} {identity}" for name, identity in identities.items())])


def noted_on(*hosts: Host) -> Counter[str]:
    lines = [host.ssh("cat /var/lib/booty/notes").stdout.splitlines() for host in hosts]
    return Counter(line for notes in lines for line in notes)


def wait_until_done(site: Site, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while left := jobs(site):
        assert time.monotonic() < deadline, left


def leave_some(pair: tuple[Host, Host]) -> tuple[dict[str, str], set[str]]:
    """Enqueue jobs, four of which the victim takes and does not end; return all ids and the names of these four."""
    survivor, victim = pair
    for host in pair:
        host.ssh("rm /var/lib/booty/notes")
    victim.ssh("touch /var/lib/booty/dawdle; chmod 0644 /var/lib/booty/dawdle")
    identities = enqueue_at_once(survivor, (f"left-{number}" for number in range(40)), 0.2)
    deadline = time.monotonic() + 30
    while noted_on(survivor).total() < 2 * (40 - 4):
        assert time.monotonic() < deadline
    held = {line.split()[1] for line in noted_on(victim)}
    assert len(held) == 4
    return identities, held


@pytest.mark.long
def test_two_hosts_share_the_work_and_lose_none_when_one_dies(site: Site, pair: tuple[Host, Host]) -> None:
    survivor, victim = pair
    identities = enqueue_at_once(survivor, (f"shared-{number}" for number in range(200)), 0.2)
    wait_until_done(site, 60)
    assert noted_on(*pair) == expected(identities)
    shares = [noted_on(host).total() // 2 for host in pair]
    assert min(shares) > 20
    print(f"of 200 jobs the two ran {shares[0]} and {shares[1]}")

    # The process is killed. Its successor has no claim to the four jobs, and both hosts compete for them.
    identities, held = leave_some(pair)
    victim.ssh("systemctl kill --signal=KILL booty.service; rm /var/lib/booty/dawdle")
    died = time.monotonic()
    wait_until_done(site, 120)
    print(f"after SIGKILL its {len(held)} jobs were done in {time.monotonic() - died:.0f} s")
    assert noted_on(*pair) == expected(identities, held)

    # The whole host stops and stays down.
    identities, held = leave_some(pair)
    sandbox.stop(victim.instance, victim.name)
    died = time.monotonic()
    wait_until_done(site, 120)
    print(f"after a power cut its {len(held)} jobs were done in {time.monotonic() - died:.0f} s")
    assert noted_on(survivor) == expected(identities)
