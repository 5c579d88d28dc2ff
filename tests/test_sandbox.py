"""The sandbox leaves nothing behind, survives crashes, and never touches what isn't its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import urllib.request
import uuid
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest
import yaml

from sandbox import acme, hosts, machine, network, tracker
from sandbox.machine import SandboxError
from tests.conftest import INSTANCE

NAME = f"{INSTANCE}-sandbox"


@pytest.mark.parametrize(
    ("taken", "preferred", "chosen"),
    [
        ([], None, "198.18.0.0/24"),
        (["198.18.0.0/24", "198.18.1.128/25"], None, "198.18.2.0/24"),
        (["198.18.0.7/32"], None, "198.18.1.0/24"),
        (["0.0.0.0/1", "128.0.0.0/1"], None, "198.18.0.0/24"),  # a VPN that takes "everything"
        ([], "198.18.9.0/24", "198.18.9.0/24"),
        (["198.18.9.0/24"], "198.18.9.0/24", "198.18.0.0/24"),
    ],
)
def test_an_unused_network_is_chosen(taken: list[str], preferred: str | None, chosen: str) -> None:
    wish = IPv4Network(preferred) if preferred else None
    assert network.free_network(map(IPv4Network, taken), wish) == IPv4Network(chosen)


def test_no_free_network_is_an_error_with_a_next_step() -> None:
    with pytest.raises(SandboxError, match="remove an instance"):
        network.free_network([IPv4Network("198.18.0.0/15")])


@pytest.mark.parametrize("name", ["default", "a" * 31])
def test_interface_names_fit_and_differ_by_instance(name: str) -> None:
    host = hosts.Host(name, f"{name}-booty{hosts.MOST_HOSTS}", "198.18.0.210")
    assert len(network.bridge_name(name)) <= 15
    assert len(f"vb-{host.container.machine}") <= 15
    assert network.bridge_name(name) != network.bridge_name("other")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "Ünfug"}, "an instance is named"),
        ({"name": "../x"}, "an instance is named"),
        ({"count": 0}, "1 to 200 hosts"),
        ({"suite": "buster"}, "bookworm or trixie"),
    ],
)
def test_bad_input_is_refused_before_anything_is_touched(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(SandboxError, match=message):
        hosts.up(**arguments)  # type: ignore[arg-type]


def test_the_inventory_checks_host_keys() -> None:
    pair = [hosts.Host("x", "x-booty1", "198.18.0.11"), hosts.Host("x", "x-booty2", "198.18.0.12")]
    group = yaml.safe_load(hosts.inventory_text("x", pair))["booty"]
    assert group["hosts"] == {
        "x-booty1": {"ansible_host": "198.18.0.11"},
        "x-booty2": {"ansible_host": "198.18.0.12"},
    }
    assert group["vars"]["ansible_ssh_private_key_file"].endswith("/x/id_ed25519")
    assert "StrictHostKeyChecking=yes" in group["vars"]["ansible_ssh_common_args"]


def test_the_roots_of_an_earlier_start_of_the_ca_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acme.Acme, "point", lambda *arguments: None)
    for root in (b"one\n", b"two\n"):
        opener = urllib.request.OpenerDirector()
        monkeypatch.setattr(opener, "open", lambda *_, root=root, **__: io.BytesIO(root))
        monkeypatch.setattr(urllib.request, "build_opener", lambda *_, opener=opener: opener)
        acme._wait(acme.Acme(tmp_path, "127.0.0.1"))
    assert (tmp_path / "root.pem").read_bytes() == b"one\ntwo\n"


def test_a_name_needs_an_instance_with_a_name_server() -> None:
    with pytest.raises(SandboxError, match="there is no"):
        hosts.point("shop.booty.test", [("no-such-instance", "booty1")])


def test_another_checkouts_instance_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"checkout": "/", "suite": "bookworm", "base": "", "subnet": "198.18.0.0/24", "inventory": None}
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/instance.json").write_text(json.dumps(record))
    monkeypatch.setattr(hosts, "INSTANCES", tmp_path)
    with pytest.raises(SandboxError, match="belongs to /:"):
        hosts._find("theirs", "booty1")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/checkout").write_text("/")
    with pytest.raises(SandboxError, match="belongs to /:"):
        hosts._check_owner("begun")
    record["checkout"] = str(tmp_path / "deleted")
    (tmp_path / "theirs/instance.json").write_text(json.dumps(record))
    assert hosts.is_ours("theirs")


def test_only_the_process_with_the_same_argument_is_killed(tmp_path: Path) -> None:
    mark = f"--directory={tmp_path}"
    for argument in (mark, f"{mark}/other"):
        machine.spawn(["sh", "-c", "while :; do sleep 60; done", "sh", argument], tmp_path / "log")
    try:
        assert machine.processes(mark)
        machine.kill(mark)
        assert not machine.processes(mark)
        assert machine.processes(f"{mark}/other")
    finally:
        machine.kill(f"{mark}/other")


def test_a_failed_build_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "built"

    def fail(work: Path) -> None:
        (work / "half").touch()
        raise SandboxError("no")

    with pytest.raises(SandboxError):
        machine.build_once(target, fail)
    assert [path.name for path in target.parent.iterdir()] == [".lock"]
    machine.build_once(target, lambda work: (work / "whole").touch())
    machine.build_once(target, fail)
    assert [path.name for path in target.iterdir()] == ["whole"]


def left_of(name: str) -> list[str]:
    """List all interfaces, mounts, processes, cgroups and files of an instance."""
    digest = network.digest(name)
    links = subprocess.run(["ip", "-brief", "link"], check=True, capture_output=True, text=True).stdout
    mounts = Path("/proc/self/mounts").read_text()
    running = [machine.arguments(int(path.name)) for path in Path("/proc").glob("[0-9]*")]
    return [
        *(line for line in links.splitlines() if digest in line),
        *(line for line in mounts.splitlines() if f"/{name}/" in line),
        *(" ".join(arguments) for arguments in running if any(f"/{name}/" in word for word in arguments)),
        *map(str, Path("/sys/fs/cgroup").rglob(f"*{digest}*")),
        *map(str, Path("/run/systemd/nspawn").rglob(f"*{digest}*")),
        *map(str, hosts.INSTANCES.glob(name)),
    ]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[hosts.Host]:
    """Yield a new host; check afterwards that nothing of its instance is left."""
    hosts.down(NAME)
    inventory = tmp_path / "hosts.yml"
    (booted,) = hosts.up(NAME, inventory=inventory)
    assert inventory.exists()
    yield booted
    hosts.down(NAME)
    assert left_of(NAME) == []
    assert not inventory.exists()
    hosts.down(NAME)


def test_a_host_survives_a_second_up_a_reboot_and_a_crash(host: hosts.Host) -> None:
    def boot() -> str:
        return host.ssh("cat /proc/sys/kernel/random/boot_id").stdout

    assert (
        host.ssh("systemctl is-system-running; cat; hostname", input="in\n").stdout == f"running\nin\n{NAME}-booty1\n"
    )
    first = boot()
    assert host.ssh("echo kept > /root/file; ip route show default").stdout == ""

    hosts.up(NAME)
    assert boot() == first, "up a second time leaves it alone"

    hosts.reboot(NAME, host.name)
    rebooted = boot()
    assert rebooted not in ("", first)

    # As after a crash of the machine: the host's processes and the bridge are gone, and its files remain.
    hosts.stop(NAME, host.name)
    network.delete(NAME)
    assert not host.running
    hosts.up(NAME)
    assert boot() not in ("", first, rebooted)
    assert host.ssh("cat /root/file; journalctl --list-boots | grep -c UTC").stdout == "kept\n3\n"


def test_a_hosts_error_reaches_the_tracker(host: hosts.Host) -> None:
    local = tracker.find(hosts.INSTANCES / NAME / "tracker")
    assert local
    event = uuid.uuid4().hex
    key, _, address = local.dsn.removeprefix("http://").partition("@")
    lines = [{"event_id": event}, {"type": "event"}, {"event_id": event, "message": "hello", "release": "r" * 40}]
    url = f"http://{address.replace('/', '/api/')}/envelope/?sentry_key={key}"
    send = f"import sys, urllib.request as u; print(u.urlopen({url!r}, sys.stdin.buffer.read()).status)"
    sent = host.ssh(f'python3 -c "{send}"', input="\n".join(map(json.dumps, lines)))
    assert sent.stdout == "200\n", sent.stderr

    received = local.wait_for_event(lambda data: data["release"] == "r" * 40)
    assert received.event_id == event
    with pytest.raises(TimeoutError, match="r" * 40):
        local.wait_for_event(lambda data: False, timeout=0.1)

    again = tracker.start(local.directory, local.url.split("/")[2].split(":")[0])
    assert again == local, "it runs already"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{local.url}/accounts/login/") as page:
        assert page.status == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a mount")
def test_a_build_that_was_killed_leaves_nothing_that_stops_the_next(tmp_path: Path) -> None:
    """A killed build of a root leaves mounts, and a directory with a mount inside can't be removed."""
    leftover = tmp_path / ".tmp-killed" / "proc"
    leftover.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", leftover], check=True)
    built = machine.build_once(tmp_path / "root", lambda work: (work / "file").touch())
    assert (built / "file").is_file()
    assert not leftover.parent.exists()
