"""The promise of the proxy under load: no event on the host fails a request or cuts a kept connection.

Each event happens under the same clients, which `Load` runs. They speak TLS and never retry.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox import hosts as sandbox
from tests.conftest import INSTANCE, words
from tests.load import DRIP_SECONDS, IDLE_PAUSE, Load
from tests.test_proxy_host import APP, NAME, OTHER, Front

pytestmark = pytest.mark.long

DOWNLOAD = """
from fastapi.responses import Response
@router.get("/download")
async def download(size: int) -> Response:
    return Response(bytes(size), media_type="application/octet-stream")
"""
# Fresh, kept and idle clients; bodies of 10 kB and 5 MB; a slow upload and a slow download; WebSockets.
CLIENTS: dict[str, Any] = {"bodies": (10_000, 5_000_000), "idle": 4, "drips": 1, "sockets": 4}
# The number of paths that they request.
KINDS = 7


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Boot a host with the proxy and an app that has two releases."""
    directory, name = tmp_path_factory.mktemp("load"), f"{INSTANCE}-load"
    try:
        (host,) = sandbox.up(name, 1, with_tracker=False, with_acme=True, inventory=directory / "inventory/hosts.yml")
        served = Front(host, directory)
        for each in (NAME, OTHER):
            served.ca.point(each, [host.address])
        served.good("bootstrap.yml")
        for _ in range(2):
            deploy(served)
        yield served
    finally:
        sandbox.down(name)


def loaded(front: Front, **service: Any) -> Load:
    """Return all kinds of clients."""
    return Load(front.host.address, host=NAME, port=443, ca=str(front.ca.root), **{**CLIENTS, **service})


def judge(load: Load) -> dict[str, Any]:
    """Check that no client noticed anything, and that clients of each kind had answers; return the report."""
    print(load.report)
    assert load.report["failures"] == []
    assert load.report["closed_idle"] == 0
    assert len(load.report["paths"]) == KINDS
    assert load.report["requests"] > 1000
    return load.report


def commit(front: Front, more: str = "") -> str:
    """Commit a change of the app, and return the SHA."""
    front.repository.write("app/src/booty/routes.py", f"{APP}{DOWNLOAD}# {time.monotonic()}\n{more}")
    return front.repository.commit("Change routes.py")


def deploy(front: Front) -> None:
    commit(front)
    front.good("deploy.yml")


def roll_back(front: Front) -> None:
    front.good("rollback.yml")


def restart(front: Front) -> None:
    for _ in range(3):
        front.run("systemctl restart booty.service")
        time.sleep(2)


def fail_to_deploy(front: Front) -> None:
    commit(front, "raise RuntimeError('not today')\n")
    played = front.play("deploy.yml")
    assert played.status == 2, played.output
    assert "not today" in played.output
    commit(front)  # the next deploy is of a release that starts


def renew(front: Front) -> None:
    """Renew a certificate that is not due, as if another CA had issued it."""

    def serial() -> str:
        with front.connect() as connection:
            return str(connection.getpeercert()["serialNumber"])  # type: ignore[index]

    before = serial()
    front.run("sed -i 's|https:|https://other|' /var/lib/booty-front/renewals.json")
    front.run("systemctl start booty-front-renew.service")
    assert serial() != before


# `restarts`: how often the service's process is replaced, which closes every WebSocket.
@pytest.mark.parametrize(
    ("event", "restarts"), [(deploy, 1), (roll_back, 1), (restart, 3), (fail_to_deploy, 0), (renew, 0)]
)
def test_deploys_and_renewals_touch_no_process_of_the_proxy(
    front: Front, event: Callable[[Front], None], restarts: int
) -> None:
    before = front.instances()
    with loaded(front) as load:
        # The slow upload and download are under way.
        time.sleep(DRIP_SECONDS / 2)
        event(front)
        time.sleep(IDLE_PAUSE)
    assert judge(load)["restarted"] == restarts * CLIENTS["sockets"]
    assert front.instances() == before


def test_maintenance_on_and_off(front: Front) -> None:
    before = front.instances()
    with loaded(front, statuses=(200, 503)) as load:
        time.sleep(DRIP_SECONDS / 2)
        front.good("maintenance.yml", "-e", "maintenance=on")
        time.sleep(IDLE_PAUSE)
        front.good("maintenance.yml", "-e", "maintenance=off")
        time.sleep(IDLE_PAUSE)
    report = judge(load)
    closed = report["releases"].pop("None")  # answers without a release
    assert closed > 100
    assert sum(report["releases"].values()) > 100
    assert (report["restarted"], front.instances()) == (0, before)


def add_a_name(front: Front) -> None:
    front.good("deploy.yml", app_domains=[NAME, OTHER])
    assert front.ask("GET /health", OTHER)[0] == 200


def remove_the_name(front: Front) -> None:
    front.good("deploy.yml")


def upgrade(front: Front) -> None:
    """Install a higher version of Debian's package, as unattended-upgrades does, and let the timer's service see it."""
    front.run(
        "cd /root && rm -rf next next.deb && dpkg-deb -R /srv/apt/nginx_*.deb next"
        " && sed -i 's/^Version: .*/&+booty/' next/DEBIAN/control && dpkg-deb -b next next.deb && dpkg -i next.deb"
    )
    assert "+booty" in front.run("dpkg-query -W -f '${Version}' nginx")
    front.run("systemctl start booty-front-check.service")


def replace_a_library(front: Front) -> None:
    front.run("apt-get install -qy --reinstall libssl3t64 || apt-get install -qy --reinstall libssl3")
    front.run("systemctl start booty-front-check.service")


@pytest.mark.parametrize("event", [add_a_name, remove_the_name, upgrade, replace_a_library])
def test_a_swap_with_its_whole_drain(front: Front, event: Callable[[Front], None]) -> None:
    front.settle()
    before = front.instances()
    with loaded(front) as load:
        time.sleep(DRIP_SECONDS / 2)
        event(front)
        assert len({*front.instances(), *before}) == 2
        stopping = "systemctl list-units --no-legend --state=deactivating 'booty-front@*' | grep -q ."
        front.run(f'timeout 55 sh -c "until {stopping}; do sleep 1; done" || true')
        front.run(f'timeout 55 sh -c "until {stopping}; do sleep 1; done"')
        time.sleep(10)
        # WebSockets stay with the instance that is being replaced, for at most an hour.
        assert len(front.instances()) == 2
    judge(load)


def test_the_clients_see_a_reload(front: Front) -> None:
    front.settle()
    with loaded(front) as load:
        time.sleep(DRIP_SECONDS / 2)
        front.run("systemctl kill --kill-whom=main --signal=HUP 'booty-front@*.service'")
        time.sleep(5)
    print(load.report)
    assert load.report["closed_idle"] + load.report["failed"] > 5


@pytest.fixture
def own_port(tmp_path: Path) -> Iterator[Front]:
    """Boot a host whose app is served on its own port; the proxy comes later."""
    name = f"{INSTANCE}-moving"
    try:
        (host,) = sandbox.up(name, 1, with_tracker=False, with_acme=True, inventory=tmp_path / "inventory/hosts.yml")
        alone = Front(host, tmp_path)
        alone.ca.point(NAME, [host.address])
        del alone.variables["host_firewall_ports"]
        inventory = alone.inventory.read_text().replace("    host_firewall_ports: [8000]\n", "")
        alone.inventory.write_text(inventory)
        alone.good("bootstrap.yml", app_domains=[])
        commit(alone)
        alone.good("deploy.yml", app_domains=[])
        yield alone
    finally:
        sandbox.down(name)


def test_an_app_moves_behind_the_proxy(own_port: Front) -> None:
    def open_ports() -> str:
        return own_port.run("nft list table inet booty | grep 'tcp dport.*accept'")

    names_others_and_changes_nothing(own_port)
    # A port that is listed stays.
    own_port.good("bootstrap.yml", host_firewall_ports=[8000])
    assert "moving" not in own_port.run("cat /etc/booty/firewall.nft")
    with Load(own_port.host.address, **CLIENTS) as load:
        own_port.good("bootstrap.yml")
        deploy(own_port)
        played = own_port.good("deploy.yml")
        time.sleep(DRIP_SECONDS)
    # On its own port, an app closes idle connections at a switch.
    assert load.report["failures"] == []
    assert len(load.report["paths"]) == KINDS
    # Clients still used the port, so it stayed open.
    assert "Port 8000 of booty is still in use, by" in words(played)
    assert "8000" in open_ports()
    assert own_port.ask("GET /health")[0] == 200
    own_port.run("timeout 55 sh -c 'while ss -Htna sport = :8000 | grep -v LISTEN | grep -q 198; do sleep 1; done'")
    own_port.run("timeout 55 sh -c 'while ss -Htna sport = :8000 | grep -v LISTEN | grep -q 198; do sleep 1; done'")
    own_port.run("systemctl start booty-front-check.service")
    assert "8000" not in open_ports()
    with pytest.raises(OSError, match="timed out"):
        socket.create_connection((own_port.host.address, 8000), timeout=1)
    # The firewall is as bootstrap would write it: nothing changes.
    for playbook in ("deploy.yml", "bootstrap.yml"):
        assert own_port.good(playbook).recap(own_port.host.name)["changed"] == 0


def names_others_and_changes_nothing(own_port: Front) -> None:
    """Try to bootstrap the proxy on a host with somebody else's web server, of each kind."""

    def foreign(name: str, port: int) -> tuple[str, str, str]:
        unit = f"/etc/systemd/system/{name}.service"
        text = f"[Service]\\nExecStart=python3 -m http.server {port}\\n[Install]\\nWantedBy=multi-user.target\\n"
        return (
            f"printf '{text}' > {unit} && systemctl enable --now {name}",
            rf"python3 \(PID \d+\) listens on port {port}; {name}.service is enabled",
            f"systemctl disable --now {name} && rm {unit}",
        )

    for begin, named, end in (
        ("apt-get install -qy nginx && systemctl start nginx", r"nginx \(PID \d+\) listens on port 80", "true"),
        ("systemctl stop nginx", "nginx.service is enabled", "apt-get purge -qy nginx nginx-common"),
        foreign("apache2", 80),
        foreign("caddy", 443),
    ):
        own_port.run(f"{begin} && sleep 1 && touch /root/before")
        played = own_port.play("bootstrap.yml")
        assert played.status != 0, played.output
        assert re.search(named, words(played)), played.output
        assert own_port.run("find /etc /usr/sbin /usr/local /var/lib/dpkg/status -newer /root/before -type f") == ""
        own_port.run(end)
