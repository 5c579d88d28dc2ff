"""Nothing is lost: deploys, rollbacks, restarts and failures under load, on a real host."""

from __future__ import annotations

import getpass
import http.client
import re
import socket
import threading
import time
from contextlib import ExitStack, closing
from datetime import datetime
from pathlib import Path

import pytest

from sandbox import demo
from sandbox import hosts as sandbox
from tests.conftest import ROUTES, Site
from tests.load import CLIENTS, Load


@pytest.fixture
def releases(site: Site) -> tuple[str, str]:
    """Return two good releases; the second serves, the first did before."""
    if not site.pair:
        site.pair = site.release(), site.release()
        site.deploy(app_release=site.pair[0])
    site.deploy(app_release=site.pair[1])
    return site.pair


def test_a_plain_restart_loses_requests(site: Site, releases: tuple[str, str]) -> None:
    """The load sees what it is there to see: without a held socket, requests fail."""
    with Load(site.host.address) as load:
        site.run("systemctl restart booty.socket booty.service")
    assert load.report["failed"] > 0
    assert load.report["requests"] > 100


def test_a_deploy_loses_nothing(site: Site, releases: tuple[str, str]) -> None:
    newer = site.release()
    with Load(site.host.address) as load:
        site.deploy()
    assert load.report["failures"] == []
    assert set(load.report["releases"]) == {releases[1], newer}
    assert load.report["requests"] > 100


EVENTS = """
from collections.abc import AsyncIterator
from fastapi.responses import StreamingResponse
@router.get("/events")
async def events() -> StreamingResponse:
    async def forever() -> AsyncIterator[str]:
        while True:
            yield "data: 1\\n\\n"
            await asyncio.sleep(0.1)
    return StreamingResponse(forever(), media_type="text/event-stream")
"""


def test_neither_half_heads_nor_streams_hold_a_deploy(site: Site) -> None:
    site.release(text=ROUTES + EVENTS)
    site.deploy()
    newer, known, last = site.release(text=ROUTES + EVENTS + "# newer"), len(site.tracker.events()), b""
    with ExitStack() as stack:
        half = [stack.enter_context(socket.create_connection((site.host.address, 8000))) for _ in range(6)]
        streams = [stack.enter_context(socket.create_connection((site.host.address, 8000))) for _ in range(3)]
        for sock in half:
            sock.sendall(b"GET / HTTP/1.1\r\nhost: ha")
        for sock in streams:
            sock.sendall(b"GET /events HTTP/1.1\r\nhost: host\r\n\r\n")
        began = time.monotonic()
        site.deploy()
        seconds = time.monotonic() - began
        print(f"{seconds:.1f} s with half heads and streams")
        for sock in streams:
            sock.settimeout(5)
            while more := sock.recv(65536):
                last = more
        assert last.endswith(b"data: 1\n\n\r\n")  # and not the end of a body
    assert seconds < 30  # the drain alone
    assert site.health()["release"] == newer
    assert len(site.tracker.events()) == known


def test_a_rollback_and_its_undoing_lose_nothing(site: Site, releases: tuple[str, str]) -> None:
    old, new = releases
    for sha in releases:
        site.deploy(app_release=sha)
    with Load(site.host.address) as load:
        played = site.play("rollback.yml")
        assert played.status == 0, played.output
        assert site.health()["release"] == old
        played = site.play("rollback.yml")
        assert played.status == 0, played.output
        assert site.health()["release"] == new
    assert load.report["failures"] == []
    assert "booty_artifact" not in played.output


def test_a_rollback_to_a_named_release(site: Site, releases: tuple[str, str]) -> None:
    site.deploy()
    played = site.play("rollback.yml", app_release=releases[0][:12])
    assert played.status == 0, played.output
    assert site.health()["release"] == releases[0]
    gone = site.release()
    for name, message in (("no-such-tag", "names no single commit"), ("main", "has no release main to go back to")):
        played = site.play("rollback.yml", app_release=name)
        assert played.status != 0
        assert message in " ".join(played.output.split())
    assert gone not in site.run("ls /opt/booty/releases")


def test_a_rollback_does_not_ask_what_the_other_release_is_made_from(site: Site, releases: tuple[str, str]) -> None:
    """The app moved since, and the newer release is bad."""
    site.deploy(app_release=releases[0])
    site.deploy(app_release=releases[1])
    played = site.play("rollback.yml", app_path="moved", app_module="moved")
    assert played.status == 0, played.output
    assert site.health()["release"] == releases[0]


def test_the_role_by_itself_deploys(site: Site, tmp_path: Path) -> None:
    """As in a playbook of one's own, which lists the role."""
    (tmp_path / "site.yml").write_text("- hosts: booty\n  gather_facts: false\n  become: true\n  roles: [app]\n")
    sha = site.release()
    played = site.play(str(tmp_path / "site.yml"))
    assert played.status == 0, played.output
    assert site.health()["release"] == sha
    played = site.play(str(tmp_path / "site.yml"))
    assert "changed=0" in played.output


def test_a_restart_loses_nothing(site: Site, releases: tuple[str, str]) -> None:
    pid = site.pid()
    with Load(site.host.address) as load:
        site.deploy(app_release=releases[1], app_restart="true")
    assert site.pid() != pid
    assert load.report["failures"] == []


# The host ends what it has begun although nobody waits for it.
UNLOCKED = "touch /run/booty-deploy.lock; flock --nonblock /run/booty-deploy.lock true"

BROKEN = {
    "does not import": ("import no_such_module\n", "No module named 'no_such_module'"),
    "exits in its startup": (ROUTES + "raise SystemExit(7)\n", "booty-candidate.service"),
    "never becomes ready": (ROUTES + "import time\ntime.sleep(60)\n", "timeout"),
    "dies at its first request": (
        ROUTES + "import os\nfrom booty import health\nhealth.directory_flaw = lambda _: os._exit(9)\n",
        "booty-candidate.service",
    ),
    "says 503": (
        ROUTES + "from booty import health\nhealth.directory_flaw = lambda _: 'no disk today'\n",
        "no disk today",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_release_leaves_what_serves_untouched(site: Site, releases: tuple[str, str], how: str) -> None:
    text, message = BROKEN[how]
    pid = site.pid()
    broken = site.release(text=text)
    with Load(site.host.address) as load:
        played = site.play("deploy.yml", app_start_seconds="3")
    site.release()
    output = " ".join(played.output.split())
    assert played.status != 0
    assert message in output
    assert f"{releases[1]} was not touched" in output
    assert site.health()["release"] == releases[1]
    assert site.pid() == pid
    assert load.report["failures"] == []
    assert site.run("systemctl is-active booty-candidate.service || true") == "inactive"
    # Never one to go back to, nor one whose dependencies count.
    assert f'"{broken}": ' in site.run("cat /opt/booty/state.json")


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r"//\w+@", "//0123456789abcdef0123456789abcdef@", "403"),
        (r"@[^/]+/", "@127.0.0.1:9/", "127.0.0.1:9"),
        (r"/\d+$", "/999", "40"),
        (r"^SENTRY_DSN=.*$", "# none", "SENTRY_DSN"),
    ],
    ids=["a wrong key", "unreachable", "a wrong project", "no DSN"],
)
def test_a_tracker_that_does_not_accept_stops_the_release(
    site: Site, releases: tuple[str, str], pattern: str, replacement: str, message: str
) -> None:
    pid, secrets = site.pid(), site.run("cat /etc/booty/secrets.env")
    site.release()
    site.place_secrets(re.sub(pattern, replacement, secrets, flags=re.MULTILINE) + "\n")
    try:
        with Load(site.host.address) as load:
            played = site.play("deploy.yml", app_telemetry_gate="true")
    finally:
        site.place_secrets(f"{secrets}\n")
    assert played.status != 0
    assert message in played.output
    assert f"{releases[1]} was not touched" in " ".join(played.output.split())
    assert site.pid() == pid
    assert load.report["failures"] == []


def test_a_tracker_that_accepts_lets_the_release_through(site: Site) -> None:
    sha = site.release()
    known = [event["id"] for event in site.tracker.events()]
    site.deploy(app_telemetry_gate="true")
    event = site.tracker.wait_for_event(lambda data: data.get("release") == sha, unless=known)
    assert event.data["level"] == "info"
    assert event.data["environment"] == "staging"


# Each is fine as a candidate and fails as the service; asked once more, or for the first time from outside.
ONLY_THE_SERVICE = 'import os\nfrom booty import health\nif "BOOTY_TELEMETRY_GATE" not in os.environ:\n    '
ONCE_MORE = (
    ONLY_THE_SERVICE
    + "asked = []\n    health.directory_flaw = lambda _: asked.append(1) or (len(asked) > 1 and {what})\n"
)
BROKEN_LATER = {
    "exits in its startup": (ONLY_THE_SERVICE + "raise SystemExit(7)\n", "booty.service"),
    "is ready, and dies at the first request": (ONCE_MORE.format(what="os._exit(9)"), "booty.service"),
    "is ready, and says 503": (ONCE_MORE.format(what="'no disk any more'"), "/health says 503: no disk any more"),
}


@pytest.mark.parametrize(
    "how",
    [name if number == 0 else pytest.param(name, marks=pytest.mark.long) for number, name in enumerate(BROKEN_LATER)],
)
def test_a_failure_after_the_point_goes_back(site: Site, releases: tuple[str, str], how: str) -> None:
    """Who asks what dies gets no answer from it; all others get theirs, one who waits for 12 s included."""
    text, message = BROKEN_LATER[how]
    site.release(text=ROUTES + text)
    patient: list[int] = []

    def wait() -> None:
        connection = http.client.HTTPConnection(site.host.address, 8000, timeout=60)
        with closing(connection):
            connection.request("GET", "/slow?seconds=12")
            patient.append(connection.getresponse().status)

    waiter = threading.Thread(target=wait)
    waiter.start()
    with Load(site.host.address, clients=(0, 0, 4) if "dies" in how else CLIENTS) as load:
        played = site.play("deploy.yml")
    waiter.join()
    site.release()
    output = " ".join(played.output.split())
    assert played.status != 0
    assert message in output
    assert f"Went back to {releases[1]}, which serves" in output
    assert site.health()["release"] == releases[1]
    assert f"SENTRY_RELEASE={releases[1]}\n" in site.run("cat /etc/booty/release.env") + "\n"
    # A service that answers 503 in public does that until it is found out.
    assert [failure for failure, _ in load.report["failures"] if "503" not in failure] == []
    assert patient == [200]
    site.deploy()
    assert site.health()["release"] == site.repository.git("rev-parse", "HEAD")


def test_two_deploys_at_once(site: Site, releases: tuple[str, str]) -> None:
    """The second says who is at it and since when; a killed one leaves nothing to unlock."""
    slow = site.release(text=ROUTES + "import time\ntime.sleep(4)\n")
    first = site.start("deploy.yml", app_release=slow)
    site.wait_for("systemctl is-active booty-candidate.service | grep -q activating")
    second = site.play("deploy.yml", app_release=releases[0])
    assert second.status != 0
    output = " ".join(second.output.split())
    assert f"Another deploy is under way on this host: {getpass.getuser()}@" in output
    assert f"deploys {slow}, since {datetime.now():%Y-}" in output
    first.kill()
    site.wait_for(UNLOCKED)
    site.release()
    site.deploy()
    assert site.health()["release"] == site.repository.git("rev-parse", "HEAD")


@pytest.mark.parametrize(
    ("break_it", "mend", "message"),
    [
        (
            "mount -t tmpfs -o size=20k tmpfs /opt/booty/releases && touch /opt/booty/releases/.x",
            "umount /opt/booty/releases",
            "No space left on device",
        ),
        (
            "mount --bind -o ro /opt /opt && mount -o remount,bind,ro /opt",
            "umount /opt",
            "Read-only file system",
        ),
    ],
    ids=["disk full", "read-only"],
)
def test_a_release_that_cannot_be_staged(
    site: Site, releases: tuple[str, str], break_it: str, mend: str, message: str
) -> None:
    pid = site.pid()
    site.release()
    site.run(break_it)
    try:
        played = site.play("deploy.yml")
    finally:
        site.run(mend)
    assert played.status != 0
    assert message in " ".join(played.output.split())
    assert site.health()["release"] == releases[1]
    assert site.pid() == pid
    assert site.run("find /opt/booty/releases -maxdepth 1 -name '.*'") == ""
    site.deploy()


MOMENTS = [0.3 + 0.15 * number for number in range(12)]


@pytest.mark.parametrize(
    "moment",
    [MOMENTS[6], *(pytest.param(moment, marks=pytest.mark.long) for moment in MOMENTS if moment != MOMENTS[6])],
)
def test_a_killed_controller(site: Site, releases: tuple[str, str], moment: float) -> None:
    """Whenever the controller dies, a proven release serves under its own label, and the next deploy goes as usual."""
    newer = site.release()
    with Load(site.host.address) as load:
        played = site.start("deploy.yml")
        time.sleep(moment)
        played.kill()
        site.wait_for(UNLOCKED)
    answer = site.health()
    assert answer["release"] in {releases[1], newer}
    assert load.report["failures"] == []
    if MOMENTS.index(moment) % 3 == 0:
        sandbox.reboot(site.host.instance, site.host.name)
        assert site.health() == answer
    environ = site.run(f"tr '\\0' '\\n' < /proc/{site.pid()}/environ")
    assert f"BOOTY_RELEASE_DIR=/opt/booty/releases/{answer['release']}\n" in environ + "\n"
    site.deploy()
    assert site.health()["release"] == newer


@pytest.mark.long
def test_a_host_that_dies_during_the_cutover(site: Site, releases: tuple[str, str]) -> None:
    """Power is cut in the middle of it; a proven release serves after the boot, and the next deploy goes as usual."""
    for moment in (0.1, 0.6, 1.0):
        before, newer = site.health()["release"], site.release()
        played = site.start("deploy.yml")
        site.wait_for("systemctl is-active booty-candidate.service | grep -q activating", pause=0.02)
        time.sleep(moment)
        sandbox.stop(site.host.instance, site.host.name)
        played.end()
        sandbox.start(site.host.instance, site.host.name)
        site.wait_for("systemctl is-active --quiet booty.service")
        answer = site.health()
        assert answer["release"] in {before, newer}
        assert f"SENTRY_RELEASE={answer['release']}" in site.run("cat /etc/booty/release.env")
        site.deploy()
        assert site.health()["release"] == newer


def test_a_candidate_that_is_killed(site: Site, releases: tuple[str, str]) -> None:
    site.release(text=ROUTES + "import time\ntime.sleep(2)\n")
    played = site.start("deploy.yml")
    site.wait_for("systemctl is-active booty-candidate.service | grep -q activating")
    site.run("systemctl kill --signal=KILL booty-candidate.service")
    assert played.end().status != 0
    assert site.health()["release"] == releases[1]
    site.release()
    site.deploy()


@pytest.mark.long
def test_old_releases_are_removed(site: Site) -> None:
    shas = [site.release() for _ in range(4)]
    for sha in shas:
        site.deploy(app_release=sha, app_keep_releases="2")
    kept = site.run("ls /opt/booty/releases").split()
    assert set(shas) & set(kept) == set(shas[-2:])
    assert len(kept) == 2
    played = site.play("rollback.yml")
    assert played.status == 0, played.output
    assert site.health()["release"] == shas[-2]
    site.deploy()


def test_what_an_interrupted_deploy_left_is_said(site: Site, releases: tuple[str, str]) -> None:
    site.run("cp /etc/booty/release.env /run/booty/candidate.env; systemctl start booty-candidate.service")
    played = site.deploy(app_release=releases[1])
    assert "An interrupted deploy had left booty-candidate.service running" in " ".join(played.output.split())
    assert site.run("systemctl is-active booty-candidate.service || true") == "inactive"
    assert site.deploy(app_release=releases[1]).recap(site.host.name)["changed"] == 0


@pytest.mark.long
def test_the_rest_of_the_wave_goes_back_too(site: Site, releases: tuple[str, str]) -> None:
    """One host's candidate fails; the other one, which had switched, serves what it served before."""
    for playbook in ("bootstrap.yml", "deploy.yml"):
        played = site.play(playbook, on=site.bare, app_release=releases[1])
        assert played.status == 0, played.output
    newer = site.release()
    dropin = "/etc/systemd/system/booty-candidate.service.d"
    site.bare.ssh(
        f"mkdir -p {dropin}; printf '[Service]\nExecStartPre=/bin/sleep 3\nExecStartPre=/bin/false\n' > {dropin}/x.conf"
    )
    site.bare.ssh("systemctl daemon-reload")
    try:
        with Load(site.host.address) as load:
            played = site.play("deploy.yml", "--limit", "booty", app_canary="0")
    finally:
        site.bare.ssh(f"rm -r {dropin}; systemctl daemon-reload")
    assert played.status != 0
    assert newer in load.report["releases"]
    assert load.report["failures"] == []
    output = " ".join(played.output.split())
    assert "Another host of this wave failed, or the wave was judged to be bad, so this one goes back too." in output
    assert f"Went back to {releases[1]}, which serves" in output
    for host in (site.host, site.bare):
        assert demo.health(host)["release"] == releases[1]
    played = site.play("rollback.yml")
    assert site.health()["release"] != newer
    site.deploy()
