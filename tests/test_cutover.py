"""Nothing is lost: deploys, rollbacks, restarts and failures under load, on a real host."""

from __future__ import annotations

import getpass
import http.client
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import datetime
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from sandbox import demo
from sandbox import hosts as sandbox
from tests.conftest import INSTANCE, ROUTES, Site
from tests.load import CLIENTS, Load


@pytest.fixture
def releases(site: Site) -> tuple[str, str]:
    """Return two good releases; the second serves, the first did before."""
    return pair(site)


def pair(site: Site) -> tuple[str, str]:
    """Deploy two good releases to a site's host; the second serves, the first did before."""
    # Deploys of other tests may have pruned the first one.
    if not site.pair or site.host.ssh(f"test -d /opt/booty/releases/{site.pair[0]}").returncode:
        site.pair = site.release(), site.release()
        site.deploy(app_release=site.pair[0])
    site.deploy(app_release=site.pair[1])
    return site.pair


def test_a_plain_restart_loses_requests(site: Site, releases: tuple[str, str]) -> None:
    """Control: without a held socket, requests fail, and the load counts them."""
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
    assert "Build the release" not in played.output


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


def test_a_rollback_does_not_wait_for_a_tracker(site: Site, releases: tuple[str, str]) -> None:
    """The bad release may have used up the tracker's quota. A rollback in production still requires a usable DSN."""
    secrets = site.run("cat /etc/booty/secrets.env")
    wrong_key = re.sub(r"//\w+@", "//0123456789abcdef0123456789abcdef@", secrets)
    site.place_secrets(f"{wrong_key}\n")
    try:
        with Load(site.host.address) as load:
            played = site.play("rollback.yml", app_release=releases[0], app_telemetry_gate="true")
        output = " ".join(played.output.split())
        assert played.status == 0, played.output
        assert f"{releases[0]} goes back all the same, although its tracker did not accept an event:" in output
        assert "403" in output
        assert load.report["failures"] == []
        assert site.health()["release"] == releases[0]
        site.place_secrets("# none\n")
        played = site.play("rollback.yml", app_environment="production")
        assert played.status != 0
        assert "Production does not start without a usable SENTRY_DSN" in " ".join(played.output.split())
        assert site.health()["release"] == releases[0]
    finally:
        site.place_secrets(f"{secrets}\n")
    # The gate applies again to the next candidate.
    assert "BOOTY_TELEMETRY_GATE=true" in site.run("cat /etc/systemd/system/booty-candidate.service")


def test_a_rollback_does_not_ask_what_the_other_release_is_made_from(site: Site, releases: tuple[str, str]) -> None:
    """The app moved to another folder since, and the newer release is bad."""
    site.deploy(app_release=releases[0])
    site.deploy(app_release=releases[1])
    played = site.play("rollback.yml", app_path="moved", app_serve="moved:app")
    assert played.status == 0, played.output
    assert site.health()["release"] == releases[0]


def test_the_role_by_itself_deploys(site: Site, tmp_path: Path) -> None:
    """A user's own playbook may list the role."""
    play = "- hosts: booty\n  gather_facts: false\n  become: true\n  roles: [booty.deploy.app]\n"
    (tmp_path / "site.yml").write_text(play)
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


# The host ends its step although no controller waits for it.
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


# The cases marked `long` fail at the same step as the first one, with the same message.
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(how, marks=pytest.mark.long if how in {"exits in its startup", "never becomes ready"} else [])
        for how in BROKEN
    ],
)
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
    # state.json keeps the broken release apart: no rollback goes to it, and its layers may be removed.
    assert f'"{broken}": ' in site.run("cat /opt/booty/state.json")


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r"//\w+@", "//0123456789abcdef0123456789abcdef@", "403"),
        pytest.param(r"@[^/]+/", "@127.0.0.1:9/", "127.0.0.1:9", marks=pytest.mark.long),
        pytest.param(r"/\d+$", "/999", "40", marks=pytest.mark.long),
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


# Each release is healthy as a candidate and fails as the service: at its start, or at its second health request.
ONLY_THE_SERVICE = 'import os\nfrom booty import health\nif "BOOTY_TELEMETRY_GATE" not in os.environ:\n    '
ONCE_MORE = (
    ONLY_THE_SERVICE
    + "asked = []\n    health.directory_flaw = lambda _: asked.append(1) or (len(asked) > 1 and {what})\n"
)
ASKED_TWICE = "asked = []\nhealth.directory_flaw = lambda _: asked.append(1) or len(asked) > 1 and 'no disk any more'\n"
BROKEN_LATER = {
    "exits in its startup": (ONLY_THE_SERVICE + "raise SystemExit(7)\n", "booty.service"),
    "is ready, and dies at the first request": (ONCE_MORE.format(what="os._exit(9)"), "booty.service"),
    "is ready, and says 503": (
        ONCE_MORE.format(what="'no disk any more'"),
        "GET /health answers 503: no disk any more",
    ),
}


@pytest.fixture
def restarts(site: Site) -> Iterator[None]:
    """Give the service a drop-in that the candidate lacks, so that it has to restart."""
    dropin = "/etc/systemd/system/booty.service.d"
    site.run(f"mkdir -p {dropin}; printf '[Service]\nNice=0\n' > {dropin}/nice.conf; systemctl daemon-reload")
    yield
    site.run(f"rm -r {dropin}; systemctl daemon-reload")


@pytest.mark.usefixtures("restarts")
@pytest.mark.parametrize(
    "how",
    [name if number == 0 else pytest.param(name, marks=pytest.mark.long) for number, name in enumerate(BROKEN_LATER)],
)
def test_a_failure_after_the_point_goes_back(site: Site, releases: tuple[str, str], how: str) -> None:
    """Only requests to the process that dies fail. All others get their answers, also one that takes 12 s."""
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
    # The service answers 503 also to clients, until the host detects it.
    assert [failure for failure, _ in load.report["failures"] if "503" not in failure] == []
    assert patient == [200]
    site.deploy()
    assert site.health()["release"] == site.repository.git("rev-parse", "HEAD")


ECHO = """
from fastapi import WebSocket
@router.websocket("/echo")
async def echo(socket: WebSocket) -> None:
    await socket.accept()
    while True:
        await socket.send_text(await socket.receive_text())
"""


def test_a_websocket_is_closed_only_by_a_confirmed_release(site: Site, releases: tuple[str, str]) -> None:
    """A release that fails once the old process has paused leaves it open; the next one closes it with 1012."""

    def echo() -> str | bytes:
        client.send("still here")
        return client.recv(timeout=10)

    served = site.release(text=ROUTES + ECHO)
    site.deploy()
    with connect(f"ws://{site.host.address}:8000/echo") as client:
        site.release(text=ROUTES + ECHO + "from booty import health\n" + ASKED_TWICE)
        played = site.play("deploy.yml")
        assert "GET /health answers 503" in played.output
        assert f"Went back to {served}, which serves" in " ".join(played.output.split())
        assert echo() == "still here"
        site.release(text=ROUTES + ECHO)
        site.deploy()
        with pytest.raises(ConnectionClosed) as closed:
            echo()
        assert closed.value.rcvd
        assert closed.value.rcvd.code == 1012
    site.release()
    site.deploy()


def test_the_process_that_was_proven_is_the_one_that_serves(site: Site, releases: tuple[str, str]) -> None:
    """The candidate is the service in every respect. A restart starts the same release without the candidate's flag."""
    newer = site.release()
    with site.journal() as lines:
        played = site.start("deploy.yml")
        line = next(line for line in lines if line.startswith("handing over to "))
        ended = played.end()
    pid = site.pid()
    assert f"{site.host.name} serves {newer} as staging, process {pid}" in ended.output
    assert line.strip() == f"handing over to {newer}, process {pid}"
    environ = site.run(f"tr '\\0' '\\n' < /proc/{pid}/environ").splitlines()
    pointer = site.run("grep -v '^#' /etc/booty/release.env").splitlines()
    assert {*pointer, *site.run("cat /etc/booty/secrets.env").splitlines(), "BOOTY_CANDIDATE=true"} <= {*environ}
    assert site.run("cat /sys/fs/cgroup/system.slice/system-booty.slice/booty.service/cgroup.procs") == pid
    assert site.run(f"cat /proc/{pid}/oom_score_adj; systemctl is-active booty").split() == ["0", "active"]
    site.run("test ! -e /run/booty/handover")
    assert site.run("systemctl show booty --property=NRestarts --value") == "0"
    assert site.run("systemctl show booty --property=StatusText --value") == "serving"
    # Its log lines now belong to the service, and it can write to the service's /tmp.
    assert (
        site.run(f"nsenter --target {pid} --mount sh -c 'echo > /tmp/still; stat -c %F /tmp/still'") == "regular file"
    )
    assert newer in site.run(f"journalctl _PID={pid} --identifier=booty --output=cat")
    assert site.deploy().recap(site.host.name)["changed"] == 0
    assert site.play("status.yml", app_drift="true").status == 0
    # systemd notices its end, and starts it again.
    site.run(f"kill -KILL {pid}")
    site.wait_for(f"test $(systemctl show booty --property=MainPID --value) -gt 1 && test ! -e /proc/{pid}")
    site.wait_for("systemctl is-active booty")
    assert site.health()["release"] == newer
    assert "BOOTY_CANDIDATE" not in site.run(f"tr '\\0' '\\n' < /proc/{site.pid()}/environ")
    site.run("systemctl restart booty.service")


def test_a_candidate_that_fails_on_the_real_socket_leaves_what_serves(site: Site, releases: tuple[str, str]) -> None:
    """The host goes back without a start, and no connection to the old process is closed."""
    site.release(text=ROUTES + "from booty import health\n" + ASKED_TWICE)
    pid = site.pid()
    with closing(http.client.HTTPConnection(site.host.address, 8000, timeout=60)) as connection:
        connection.request("GET", "/slow?seconds=0")
        connection.getresponse().read()
        sock = connection.sock
        with Load(site.host.address) as load:
            played = site.play("deploy.yml")
        connection.request("GET", "/slow?seconds=0")
        assert connection.getresponse().status == 200
        assert connection.sock is sock
    site.release()
    output = " ".join(played.output.split())
    assert played.status != 0
    assert "GET /health answers 503: no disk any more" in output
    assert f"Went back to {releases[1]}, which serves" in output
    assert (site.pid(), site.health()["release"]) == (pid, releases[1])
    # Clients share the sockets with the candidate, which answers 503 also to them until the host detects it.
    assert [failure for failure, _ in load.report["failures"] if "503" not in failure] == []
    site.run("test ! -e /run/booty/handover && ! systemctl is-active --quiet booty-candidate.service")


EXTENDS = """
import os, socket, threading, time
def extend():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        while True:
            sock.sendto(b"EXTEND_TIMEOUT_USEC=60000000", os.environ["NOTIFY_SOCKET"])
            time.sleep(1)
threading.Thread(target=extend, daemon=True).start()
time.sleep(3600)
"""


@pytest.mark.long
def test_a_start_that_extends_its_time_without_end_is_killed(site: Site, releases: tuple[str, str]) -> None:
    site.release(text=ROUTES + EXTENDS)
    began = time.monotonic()
    played = site.play("deploy.yml", app_start_seconds="5", app_drain_seconds="1")
    site.release()
    print(f"ended after {time.monotonic() - began:.0f} s")
    assert "s, so it was killed" in played.output
    assert f"{releases[1]} was not touched" in " ".join(played.output.split())
    assert site.health()["release"] == releases[1]
    assert site.play("deploy.yml").status == 0


def test_two_deploys_at_once(site: Site, releases: tuple[str, str]) -> None:
    """The second deploy says who runs the first one and since when; a killed deploy leaves no lock."""
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


@pytest.fixture
def disk_that_fills_up(site: Site, releases: tuple[str, str]) -> Iterator[None]:
    """Give /opt/booty a small file system of its own, which the service's restart fills."""
    dropin = "/etc/systemd/system/booty.service.d"
    fill = "cat /dev/zero > /opt/booty/full; test -s /opt/booty/full"
    size = int(site.run("du -sm /opt/booty").split()[0]) + 250
    site.run(
        f"mkdir -p /run/small {dropin}; mount -t tmpfs -o size={size}m tmpfs /run/small;"
        " cp -a /opt/booty/. /run/small; mount --bind /run/small /opt/booty;"
        f" printf \"[Service]\nExecStartPost=+/bin/sh -c '{fill}'\n\" > {dropin}/fill.conf; systemctl daemon-reload"
    )
    yield
    site.run(
        f"rm -r {dropin}; systemctl daemon-reload; rm /run/small/full; cp -a /run/small /opt/small;"
        " umount -l /opt/booty; mv /opt/booty /opt/large; mv /opt/small /opt/booty; chmod 0755 /opt/booty;"
        " rm -r /opt/large; umount -l /run/small"
    )


@pytest.mark.long
@pytest.mark.usefixtures("disk_that_fills_up")
def test_a_disk_that_is_full_after_the_switch(site: Site, releases: tuple[str, str]) -> None:
    """The release serves, the run says what could not be written, and the host can still be taken back."""
    newer = site.release()
    with Load(site.host.address) as load:
        played = site.play("deploy.yml", app_wave_check="false")
    output = " ".join(played.output.split())
    assert played.status != 0
    assert f"Went back to {releases[1]}, which serves." in output
    assert output.count("But /opt/booty/state.json can't be written: [Errno 28] No space left on device") == 2
    assert site.health()["release"] == releases[1]
    assert load.report["failures"] == []
    site.run("rm /opt/booty/full")
    played = site.deploy()
    assert "But /opt/booty/state.json can't be written" in " ".join(played.output.split())
    assert site.health()["release"] == newer
    site.run("rm /opt/booty/full")
    # The next run writes the missing record.
    newest = site.release()
    site.deploy()
    site.run("rm /opt/booty/full")
    assert site.health()["release"] == newest
    played = site.play("rollback.yml")
    assert played.status == 0, played.output
    assert site.health()["release"] == newer


@pytest.fixture(scope="module")
def strict(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Return a host whose logind kills the processes of a login that ends. Deploys log in as a user with sudo."""
    name, directory = f"{INSTANCE}-strict", tmp_path_factory.mktemp("strict")
    inventory = directory / "inventory" / "hosts.yml"
    try:
        (host,) = sandbox.up(name, 1, with_tracker=False, inventory=inventory)
        made = Site([host, host], site.tracker, site.repository, directory)
        key = (sandbox.INSTANCES / name / "id_ed25519.pub").read_text().strip()
        # The test's own commands still run as root.
        (inventory.parent / "login.yml").write_text(
            f"booty: {{vars: {{host_deploy_keys: ['{key}'], host_ssh_root: true}}}}\n"
        )
        played = made.play("bootstrap.yml")
        assert played.status == 0, played.output
        made.run("DEBIAN_FRONTEND=noninteractive apt-get install -qy libpam-systemd")
        made.run("mkdir -p /etc/systemd/logind.conf.d")
        made.run("printf '[Login]\nKillUserProcesses=yes\n' > /etc/systemd/logind.conf.d/kill.conf")
        made.run("systemctl restart systemd-logind")
        made.variables["ansible_user"] = "deploy"
        yield made
    finally:
        sandbox.down(name)


# Patterns of the journal's lines at ten moments of a cutover, in their order.
MOMENTS = {
    "the cutover begins": ".* deploys .*, in booty-cutover-.*scope",
    "proving": "proving ",
    "the candidate starts": "Starting booty-candidate.service",
    "the candidate serves": "booty_runner.server: serving release",
    "the candidate is proven": "Started booty-candidate.service",
    "handing over": "handing over to ",
    "pointing": "pointing to ",
    "the candidate's unit stops": "Stopping booty-candidate.service",
    "the old process drains": "booty_runner.server: stopping",
    "the candidate's unit has stopped": "Stopped booty-candidate.service",
}
WAYS = {"root": "site", "sudo, KillUserProcesses": "strict"}


@pytest.mark.parametrize(
    "moment", [pytest.param(name, marks=() if name == "pointing" else pytest.mark.long) for name in MOMENTS]
)
@pytest.mark.parametrize("way", ["root", pytest.param("sudo, KillUserProcesses", marks=pytest.mark.long)])
def test_a_killed_controller(request: pytest.FixtureRequest, way: str, moment: str) -> None:
    """When the controller and its connections die, a proven release serves under its own label, and nothing is lost.

    The host ends its cutover: before the rename of release.env the old release stays, after it the new one serves.
    """
    site: Site = request.getfixturevalue(WAYS[way])
    older = pair(site)[1]
    newer = site.release()
    with Load(site.host.address) as load, site.journal() as lines:
        played = site.start("deploy.yml")
        next(line for line in lines if re.match(MOMENTS[moment], line))
        played.kill()
        site.wait_for(UNLOCKED)
    answer, number = site.health(), [*MOMENTS].index(moment)
    assert load.report["failures"] == []
    # When the candidate becomes ready, the host checks whether its controller is still alive, so both results can be.
    assert answer["release"] in ({older} if number < 3 else {newer} if number > 4 else {older, newer})
    ended = site.run(f"journalctl -t booty-deploy BOOTY_RELEASE={newer} --output=cat --output-fields=BOOTY_RESULT")
    assert ended == ("switched" if answer["release"] == newer else "not switched")
    assert site.run("systemctl is-active booty-candidate.service || true") == "inactive"
    assert site.run("systemctl list-units --no-legend 'booty-*.scope'") == ""
    if number % 3 == 0:
        sandbox.reboot(site.host.instance, site.host.name)
        assert site.health() == answer
    environ = site.run(f"tr '\\0' '\\n' < /proc/{site.pid()}/environ")
    assert f"BOOTY_RELEASE_DIR=/opt/booty/releases/{answer['release']}\n" in environ + "\n"
    assert "interrupted" not in site.deploy().output
    assert site.health()["release"] == newer


@pytest.mark.long
@pytest.mark.parametrize("seconds", [0.3, 0.6, 0.9])
def test_a_controller_that_is_killed_while_it_prepares(site: Site, releases: tuple[str, str], seconds: float) -> None:
    newer = site.release()
    played = site.start("deploy.yml")
    time.sleep(seconds)
    played.kill()
    assert site.health()["release"] == releases[1]
    site.deploy()
    assert site.health()["release"] == newer


@pytest.mark.long
def test_a_host_that_dies_during_the_cutover(site: Site, releases: tuple[str, str]) -> None:
    """Power is cut during the cutover; a proven release serves after the boot, and the next deploy works as usual."""
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
