"""Sandbox hosts: real systemd machines on this one, up in a second, that SSH reaches like any other.

An instance is a number of hosts and their tracker; all of it lies in one directory of the machine.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from sandbox import base, network, nspawn, tracker
from sandbox.machine import CHECKOUT, SandboxError, as_root, ensure_tools, give, locked, run, say

INSTANCES = Path("/var/lib/booty-sandbox")
INVENTORY = CHECKOUT / "inventory/sandbox/hosts.yml"
LOCK = Path("/run/lock/booty-sandbox.lock")
MOST_HOSTS = 200


@dataclass(frozen=True)
class Host:
    """A host of an instance, running or not."""

    instance: str
    name: str
    address: str

    @property
    def container(self) -> nspawn.Container:
        """What it is made of."""
        directory = INSTANCES / self.instance / "hosts" / self.name
        return nspawn.Container(directory, f"bt{network.digest(self.instance)}-{_number(self.name)}")

    @property
    def running(self) -> bool:
        """Whether it is there; it may still be booting."""
        return self.container.running

    def ssh(self, command: str, input: str = "", timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a shell command on it as root, and return its status and output.

        Raises:
            subprocess.TimeoutExpired: it took longer than `timeout` seconds.
        """
        argv = ["ssh", "-F", "none", *ssh_options(self.instance), f"root@{self.address}", command]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=timeout, input=input)


@dataclass
class _Record:
    """What an instance can't tell from its files: who made it, and of what."""

    checkout: str
    suite: str
    base: str
    subnet: str
    inventory: str | None

    @property
    def network(self) -> network.Network:
        return network.Network(self.subnet)

    def fits(self, suite: str) -> bool:
        """Whether its hosts are as they would be made today, or were in an earlier week."""
        return Path(self.base).is_dir() and Path(self.base).name.startswith(f"{base.recipe(suite)}-")


def up(
    name: str = "default",
    count: int = 1,
    suite: str = base.SUITE,
    with_tracker: bool = True,
    inventory: Path | None = None,
) -> list[Host]:
    """Make an instance have exactly `count` running hosts of a suite, reachable by SSH, and return them.

    Hosts that are there stay as they are; missing ones are made, dead ones started with their disk, surplus
    ones removed, and hosts of another suite replaced.

    Args:
        name: the instance; two checkouts can't share one.
        count: how many hosts.
        suite: Debian's name for its release.
        with_tracker: have a tracker too, which the hosts reach.
        inventory: where Ansible's inventory goes; only `default` has one when this is not named.

    Raises:
        SandboxError: says what is wrong, and the next step.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name):
        raise SandboxError(f"an instance is named with up to 31 of a-z, 0-9 and -, not {name!r}")
    if suite not in base.SUITES or not 1 <= count <= MOST_HOSTS:
        raise SandboxError(f"1 to {MOST_HOSTS} hosts of {' or '.join(base.SUITES)}, not {count} of {suite}")
    if inventory is None and name == "default":
        inventory = INVENTORY
    if os.geteuid():
        place = ["--inventory", str(inventory.absolute())] if inventory else []
        as_root("up", "--name", name, "--hosts", str(count), "--suite", suite, "--no-tracker", *place)
    else:
        LOCK.parent.mkdir(exist_ok=True)
        with locked(LOCK):
            _up(name, count, suite, inventory.absolute() if inventory else None)
    if with_tracker:
        tracker.start(INSTANCES / name / "tracker", str(_record(name).network[1]), preferred_port=8800)
    return hosts(name)


def down(name: str = "default") -> None:
    """Remove an instance and all that belongs to it, whatever state it is in; none is fine too."""
    if not (INSTANCES / name).is_dir():
        return
    if os.geteuid():
        as_root("down", "--name", name)
        return
    with locked(LOCK):
        _check_owner(name)
        tracker.stop(INSTANCES / name / "tracker")
        with suppress(SandboxError):
            _forget_inventory(_record(name))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda host: host.container.power_off(), hosts(name)))
        network.delete(name)
        nspawn.unmount(INSTANCES / name)
        shutil.rmtree(INSTANCES / name)
        with suppress(OSError):
            INSTANCES.rmdir()


def stop(name: str, host: str) -> None:
    """Cut a host's power: no process of it gets to say goodbye. Its disk stays."""
    if os.geteuid():
        as_root("stop", f"{name}/{host}")
        return
    with locked(LOCK):
        _find(name, host).container.power_off()


def start(name: str, host: str) -> None:
    """Boot a stopped host from its disk, and wait until it answers."""
    if os.geteuid():
        as_root("start", f"{name}/{host}")
        return
    with locked(LOCK):
        found = _find(name, host)
        _boot(found, _record(name))
        _wait_ready(found)


def reboot(name: str, host: str) -> None:
    """Let a host shut down properly and boot again, and wait until it answers."""
    if os.geteuid():
        as_root("reboot", f"{name}/{host}")
        return
    with locked(LOCK):
        found = _find(name, host)
        found.container.reboot()
        _wait_ready(found)


def hosts(name: str = "default") -> list[Host]:
    """Give an instance's hosts, running or not; none when there is no such instance."""
    found = [path.name for path in (INSTANCES / name / "hosts").glob("*booty[1-9]*")]
    try:
        subnet = _record(name).network
    except SandboxError:  # a run crashed very early; they can still be removed
        subnet = network.Network("0.0.0.0/24")
    return [_host(name, number, subnet) for number in sorted(map(_number, found))]


def instances() -> list[str]:
    """Name the instances on this machine, of every checkout."""
    return sorted(path.name for path in INSTANCES.glob("*") if path.is_dir())


def suite(name: str) -> str:
    """Give the Debian release of an instance's hosts."""
    return _record(name).suite


def is_ours(name: str) -> bool:
    """Whether this checkout made an instance, or one that is gone."""
    try:
        checkout = _record(name).checkout
    except SandboxError:
        return True  # left by a run that crashed before it wrote who it was
    return checkout == str(CHECKOUT) or not Path(checkout).is_dir()


def ssh_options(name: str) -> list[str]:
    """Give what ssh needs to reach an instance's hosts: their keys are checked, your agent's not tried."""
    directory = INSTANCES / name
    options = [f"UserKnownHostsFile={directory}/known_hosts", "StrictHostKeyChecking=yes"]
    options += ["IdentitiesOnly=yes", "BatchMode=yes", "ConnectTimeout=10"]
    return ["-i", f"{directory}/id_ed25519", *(word for option in options for word in ("-o", option))]


def inventory_text(name: str, found: list[Host]) -> str:
    """Write Ansible's inventory of an instance."""
    options = ssh_options(name)
    lines = [
        f"# The sandbox instance {name}: `python -m sandbox up` writes this file, `down` removes it.",
        "booty:",
        "  hosts:",
        *(f"    {host.name}:\n      ansible_host: {host.address}" for host in found),
        "  vars:",
        "    ansible_user: root",
        f"    ansible_ssh_private_key_file: {options[1]}",
        f"    ansible_ssh_common_args: {shlex.join(options[2:])}",
    ]
    return "\n".join(lines) + "\n"


def _up(name: str, count: int, suite: str, inventory: Path | None) -> None:
    _check_owner(name)
    ensure_tools()
    directory = INSTANCES / name
    before = _record(name) if (directory / "instance.json").exists() else None
    others = [_record(other) for other in instances() if (INSTANCES / other / "instance.json").exists()]
    # First of all, so that what a crash from here on leaves is found by `down`.
    (directory / "tracker").mkdir(parents=True, exist_ok=True, mode=0o700)
    give(directory / "tracker")
    if before and before.fits(suite):
        root = Path(before.base)
    else:
        root = base.ensure(suite, {other.base for other in others})
        if before:
            say(f"replacing the hosts of {name}: they were made of another root")
        for host in hosts(name):
            _remove(host)
    if before and network.is_up(name, before.network):
        subnet = before.network
    else:
        for host in hosts(name):  # cut off already if they ran, and perhaps about to have other addresses
            host.container.power_off()
        taken = [other.network for other in others if other != before]
        subnet = network.create(name, before.network if before else None, taken)
    if before and before.inventory != str(inventory):
        _forget_inventory(before)
    record = _Record(str(CHECKOUT), suite, str(root), str(subnet), str(inventory) if inventory else None)
    (directory / "instance.json").write_text(json.dumps(asdict(record), indent=2))
    _ensure_limits()
    _ensure_disks(directory / "hosts")
    if not (directory / "id_ed25519").exists():
        _make_key(directory / "id_ed25519", f"booty-{name}")
        give(directory / "id_ed25519")

    wanted = [_host(name, number, subnet) for number in range(1, count + 1)]
    for host in hosts(name):
        if host not in wanted:
            _remove(host)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda host: _boot(host, record), wanted))
    keys = (f"{host.address} {(host.container.directory / 'key.pub').read_text()}" for host in wanted)
    (directory / "known_hosts").write_text("".join(keys))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_wait_ready, wanted))
    if inventory:
        inventory.parent.mkdir(parents=True, exist_ok=True)
        inventory.write_text(inventory_text(name, wanted))
        give(inventory)


def _boot(host: Host, record: _Record) -> None:
    container = host.container
    if container.running:
        return

    def prepare() -> None:
        if not (container.directory / "key.pub").exists():
            _prepare_disk(host)
        lines = f"[Match]\nName=host0\n\n[Network]\nAddress={host.address}/24\nLinkLocalAddressing=no\n"
        (container.root / "etc/systemd/network/10-host0.network").write_text(lines)

    container.boot(Path(record.base), host.name, network.bridge_name(host.instance), prepare)


def _prepare_disk(host: Host) -> None:
    etc = host.container.root / "etc"
    (etc / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
    (etc / "hostname").write_text(f"{host.name}\n")
    # Without its own name there, each sudo and each gathering of facts would ask for it elsewhere.
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {host.name}\n::1 localhost\n")
    keys = host.container.root / "root/.ssh"
    keys.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(INSTANCES / host.instance / "id_ed25519.pub", keys / "authorized_keys")
    key = etc / "ssh/ssh_host_ed25519_key"
    key.unlink(missing_ok=True)
    _make_key(key, host.name)
    shutil.copy(f"{key}.pub", host.container.directory / "key.pub")  # last: it says that the disk is whole


def _wait_ready(host: Host) -> None:
    """Wait until sshd answers and the boot is over; how well it went is for others to judge."""
    began = time.monotonic()
    # A moment of grace: between two boots there may be no process at all.
    while (waited := time.monotonic() - began) < 60 and (waited < 2 or host.running):
        with suppress(OSError), socket.create_connection((host.address, 22), timeout=0.5) as connection:
            if connection.recv(256).startswith(b"SSH-"):
                host.ssh("systemctl is-system-running --wait")
                return
        time.sleep(0.05)
    said = " / ".join(host.container.log.read_text(errors="replace").split("\n")[-4:])
    raise SandboxError(f"{host.name} does not answer SSH at {host.address}; last on {host.container.log}: {said}")


def _make_key(path: Path, comment: str) -> None:
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path)


def _ensure_limits() -> None:
    # A systemd takes about seven; the usual 128 ends at the 18th host. Left raised: it costs nothing, another
    # program may count on it by then, and it falls back when the machine boots.
    inotify = Path("/proc/sys/fs/inotify/max_user_instances")
    if int(inotify.read_text()) < 8192:
        inotify.write_text("8192")


def _ensure_disks(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    kind = run("findmnt", "--noheadings", "--output=FSTYPE", "--target", directory).stdout.strip()
    if kind == "overlay":  # as in a container: an overlay can't be the upper layer of another
        say("the hosts' disks are kept in memory: /var/lib is on an overlayfs, which can't carry them")
        run("mount", "-t", "tmpfs", "-o", "mode=0755", "booty-sandbox", directory)


def _remove(host: Host) -> None:
    host.container.power_off()
    shutil.rmtree(host.container.directory)


def _forget_inventory(record: _Record) -> None:
    if record.inventory:
        Path(record.inventory).unlink(missing_ok=True)


def _number(host: str) -> int:
    return int(host.rpartition("booty")[2])


def _host(name: str, number: int, subnet: network.Network) -> Host:
    prefix = "" if name == "default" else f"{name}-"
    return Host(name, f"{prefix}booty{number}", str(subnet[10 + number]))


def _find(name: str, host: str) -> Host:
    _check_owner(name)
    for found in hosts(name):
        if found.name == host:
            return found
    raise SandboxError(f"there is no host {name}/{host}: `python -m sandbox status` lists them")


def _record(name: str) -> _Record:
    try:
        return _Record(**json.loads((INSTANCES / name / "instance.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise SandboxError(f"there is no instance {name}: python -m sandbox up --name {name}") from error


def _check_owner(name: str) -> None:
    if not is_ours(name):
        there = _record(name).checkout
        raise SandboxError(f"the instance {name} belongs to {there}: run this there, or choose another --name")
