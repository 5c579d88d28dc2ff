"""Sandbox hosts: real systemd machines, booted in a fraction of a second, that SSH reaches like any other.

A host is a systemd-nspawn container: its disk is an overlay on the suite's cached root, its network card hangs
on the instance's bridge. All of an instance lies under one directory, whichever checkout made it.
"""

import hashlib
import ipaddress
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from sandbox import base, tracker
from sandbox.machine import (
    CHECKOUT,
    SandboxError,
    as_root,
    ensure_tools,
    give,
    kill,
    locked,
    processes,
    run,
    say,
    spawn,
    wait_gone,
)

INSTANCES = Path("/var/lib/booty-sandbox")
LOCK = Path("/run/lock/booty-sandbox.lock")
MOST_HOSTS = 200
INVENTORY = CHECKOUT / "inventory/sandbox/hosts.yml"
# RFC 2544 sets this range aside for bench tests: homes, offices, VPNs and container engines use others.
NETWORKS = ipaddress.IPv4Network("198.18.0.0/16")
# A systemd takes about seven; the usual limit of 128 ends at the 18th host. Left raised: it costs nothing,
# another program may count on it by then, and it falls back at the machine's next boot.
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")

# nspawn exits with 133 when the host asked for a reboot. Each boot is put into cgroups of its own first, because
# hosts that share one would meddle with each other's units. "0" is the process that writes.
_BOOT_LOOP = """
while :; do
    ( for group in $CGROUPS; do echo 0 > "$group/cgroup.procs"; done; exec "$@" )
    [ $? -eq 133 ] || exit
done
"""


@dataclass(frozen=True)
class Host:
    """A host of an instance, running or not."""

    instance: str
    name: str
    address: str

    @property
    def directory(self) -> Path:
        """Its files on this machine."""
        return INSTANCES / self.instance / "hosts" / self.name

    @property
    def root(self) -> Path:
        """Its root file system, as seen from this machine while it runs."""
        return self.directory / "root"

    @property
    def machine(self) -> str:
        """Its name for nspawn: unique on this machine, and short as "vb-" and it name an interface."""
        return f"bt{_digest(self.instance)}-{_number(self.name)}"

    @property
    def running(self) -> bool:
        """Whether its container is there; it may still be booting."""
        return bool(processes(self.mark))

    @property
    def mark(self) -> str:
        """The argument by which its nspawn, and what keeps that going, is told from all other processes."""
        return f"--directory={self.root}"

    def ssh(
        self, command: str, input: str | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command on the host as root, and return its status and output.

        Raises:
            subprocess.TimeoutExpired: it took longer than `timeout` seconds.
        """
        argv = ["ssh", "-F", "none", *ssh_options(self.instance), f"root@{self.address}", command]
        # Without an input of its own ssh would take ours.
        return subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=timeout, input=input or ""
        )


@dataclass
class _Record:
    """What an instance can't tell from its files: who made it, and of what."""

    checkout: str
    suite: str
    base: str
    subnet: str
    inventory: str | None

    def fits(self, suite: str) -> bool:
        """Whether hosts made then are what would be made today; a root from an earlier week is."""
        return Path(self.base).is_dir() and Path(self.base).name.startswith(f"{base.recipe(suite)}-")


def up(
    name: str = "default",
    count: int = 1,
    suite: str = "bookworm",
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
        with_tracker: start a tracker too, which the hosts reach.
        inventory: where Ansible's inventory goes; only `default` has one when this is not named.
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
            _up(name, count, suite, inventory and inventory.absolute())
    if with_tracker:
        gateway = ipaddress.IPv4Network(_record(name).subnet)[1]
        tracker.start(INSTANCES / name / "tracker", str(gateway), preferred_port=8800)
    return hosts(name)


def down(name: str = "default") -> None:
    """Remove an instance and all that belongs to it, whatever state it is in; none is fine too."""
    if os.geteuid():
        if (INSTANCES / name).exists():
            as_root("down", "--name", name)
        return
    with locked(LOCK):
        _check_owner(name)
        tracker.stop(INSTANCES / name / "tracker")
        with suppress(SandboxError):
            if place := _record(name).inventory:
                Path(place).unlink(missing_ok=True)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(_power_off, _hosts_on_disk(name)))
        bridge = bridge_name(name)
        for link in json.loads(
            run("ip", "-json", "link", "show", "master", bridge, check=False).stdout or "[]"
        ):
            run("ip", "link", "delete", link["ifname"], check=False)
        run("ip", "link", "delete", bridge, check=False)
        _unmount(INSTANCES / name)
        shutil.rmtree(INSTANCES / name, ignore_errors=True)
        if (INSTANCES / name).exists():
            raise SandboxError(
                f"{INSTANCES / name} could not be removed: see what holds it (fuser -vm), try again"
            )
        with suppress(OSError):
            INSTANCES.rmdir()


def stop(name: str, host: str) -> None:
    """Cut a host's power: no process of it gets to say goodbye. Its disk stays."""
    if os.geteuid():
        as_root("stop", f"{name}/{host}")
        return
    with locked(LOCK):
        _power_off(_find(name, host))


def start(name: str, host: str) -> None:
    """Boot a stopped host from its disk, and wait until it answers."""
    if os.geteuid():
        as_root("start", f"{name}/{host}")
        return
    with locked(LOCK):
        _boot(_find(name, host), _record(name))
        _wait_ready([_find(name, host)])


def reboot(name: str, host: str) -> None:
    """Let a host shut down properly and boot again, and wait until it answers."""
    if os.geteuid():
        as_root("reboot", f"{name}/{host}")
        return
    with locked(LOCK):
        found = _find(name, host)
        leader = _leader(found)
        if leader is None:
            raise SandboxError(f"{host} does not run: python -m sandbox start {name}/{host}")
        descriptor = os.pidfd_open(leader)
        try:
            os.kill(leader, signal.SIGRTMIN + 5)  # systemd(1): starts reboot.target
            if not wait_gone(descriptor, time.monotonic() + 60):
                raise SandboxError(
                    f"{host} did not shut down within 60 s: python -m sandbox stop {name}/{host}"
                )
        finally:
            os.close(descriptor)
        _wait_ready([found])


def hosts(name: str = "default") -> list[Host]:
    """Give an instance's hosts, running or not; none when there is no such instance."""
    return sorted(_hosts_on_disk(name), key=lambda host: _number(host.name))


def instances() -> list[str]:
    """Name the instances on this machine, of every checkout."""
    return sorted(path.name for path in INSTANCES.glob("*") if path.is_dir())


def suite(name: str) -> str:
    """Give the Debian release of an instance's hosts."""
    return _record(name).suite


def is_ours(name: str) -> bool:
    """Whether this checkout made an instance, or one that has since been deleted."""
    try:
        checkout = _record(name).checkout
    except SandboxError:
        return True  # left by a run that crashed before it could write who it was
    return checkout == str(CHECKOUT) or not Path(checkout).is_dir()


def ssh_options(name: str) -> list[str]:
    """Give what ssh needs to reach an instance's hosts, their keys checked, your own agent left out of it."""
    directory = INSTANCES / name
    known = [f"UserKnownHostsFile={directory}/known_hosts", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes"]
    waits = ["BatchMode=yes", "ConnectTimeout=10"]
    return ["-i", f"{directory}/id_ed25519", *(word for option in known + waits for word in ("-o", option))]


def bridge_name(name: str) -> str:
    """Name an instance's bridge; an interface name has 15 characters at most."""
    return f"br-booty-{_digest(name)}"


def free_network(taken: Iterable[ipaddress.IPv4Network]) -> ipaddress.IPv4Network:
    """Choose the first /24 that overlaps nothing taken.

    Wider than /8 is not taken: it is the way out, or a VPN's "everything", and a /24 of our own wins over it.
    """
    narrow = [network for network in taken if network.prefixlen >= 8]
    for network in NETWORKS.subnets(new_prefix=24):
        if not any(network.overlaps(other) for other in narrow):
            return network
    raise SandboxError(f"no free /24 in {NETWORKS}: remove an instance, python -m sandbox status lists them")


def inventory_text(name: str, found: list[Host]) -> str:
    """Write Ansible's inventory of an instance."""
    options = ssh_options(name)
    return "\n".join(
        [
            f"# The sandbox instance {name}. `python -m sandbox up` writes this file, `down` removes it.",
            "booty:",
            "  hosts:",
            *(f"    {host.name}:\n      ansible_host: {host.address}" for host in found),
            "  vars:",
            "    ansible_user: root",
            f"    ansible_ssh_private_key_file: {options[1]}",
            f"    ansible_ssh_common_args: {shlex.join(options[2:])}",
            "",
        ]
    )


def _up(name: str, count: int, suite: str, inventory: Path | None) -> None:
    _check_owner(name)
    ensure_tools()
    directory = INSTANCES / name
    record = _record(name) if (directory / "instance.json").exists() else None
    if record and not record.fits(suite):
        for host in _hosts_on_disk(name):
            _remove(host)
        record = None
    root = record.base if record else str(base.ensure(suite, {other.base for other in _records()}))
    network = _ensure_bridge(name, record.subnet if record else None)
    record = _Record(str(CHECKOUT), suite, root, str(network), str(inventory) if inventory else None)
    (directory / "tracker").mkdir(parents=True, exist_ok=True)
    give(directory / "tracker")
    (directory / "instance.json").write_text(json.dumps(asdict(record), indent=2))
    _ensure_disks(directory / "hosts")
    if not (directory / "id_ed25519").exists():
        run(
            "ssh-keygen",
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-C",
            f"booty-{name}",
            "-f",
            directory / "id_ed25519",
        )
        give(directory / "id_ed25519")
    if int(INOTIFY.read_text()) < 8192:
        INOTIFY.write_text("8192")

    wanted = [_host(name, number, network) for number in range(1, count + 1)]
    for host in _hosts_on_disk(name):
        if host.name not in {want.name for want in wanted}:
            _remove(host)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda host: _boot(host, record), wanted))
    known = (f"{host.address} {(host.directory / 'key.pub').read_text()}" for host in wanted)
    (directory / "known_hosts").write_text("".join(known))
    _wait_ready(wanted)
    if inventory:
        inventory.parent.mkdir(parents=True, exist_ok=True)
        inventory.write_text(inventory_text(name, wanted))
        give(inventory)


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:6]


def _number(host: str) -> int:
    return int(host.rpartition("booty")[2])


def _host(name: str, number: int, network: ipaddress.IPv4Network) -> Host:
    prefix = "" if name == "default" else f"{name}-"
    return Host(name, f"{prefix}booty{number}", str(network[10 + number]))


def _hosts_on_disk(name: str) -> list[Host]:
    try:
        network = ipaddress.IPv4Network(_record(name).subnet)
    except SandboxError:  # a run crashed very early: still found, to be removed
        network = NETWORKS
    found = (INSTANCES / name / "hosts").glob("*booty[1-9]*")
    return [_host(name, _number(path.name), network) for path in found]


def _find(name: str, host: str) -> Host:
    _check_owner(name)
    for found in _hosts_on_disk(name):
        if found.name == host:
            return found
    raise SandboxError(f"there is no host {name}/{host}: python -m sandbox status lists them")


def _record(name: str) -> _Record:
    try:
        return _Record(**json.loads((INSTANCES / name / "instance.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise SandboxError(f"there is no instance {name}: python -m sandbox up --name {name}") from error


def _records() -> list[_Record]:
    found = []
    for name in instances():
        with suppress(SandboxError):
            found.append(_record(name))
    return found


def _check_owner(name: str) -> None:
    if not is_ours(name):
        raise SandboxError(
            f"the instance {name} belongs to {_record(name).checkout}: "
            f"name another one, or run `python -m sandbox down --name {name}` there"
        )


def _ensure_disks(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    kind = run("findmnt", "--noheadings", "--output=FSTYPE", "--target", directory).stdout.strip()
    if kind == "overlay":  # as in a container: an overlay can't be the upper layer of another
        say("the hosts' disks are kept in memory: /var/lib is on an overlayfs, which can't carry them")
        run("mount", "-t", "tmpfs", "-o", "mode=0755", "booty-sandbox", directory)


def _ensure_bridge(name: str, subnet: str | None) -> ipaddress.IPv4Network:
    bridge = bridge_name(name)
    if (
        subnet
        and f" {ipaddress.IPv4Network(subnet)[1]}/24 "
        in run("ip", "addr", "show", bridge, check=False).stdout
    ):
        return ipaddress.IPv4Network(subnet)
    run("ip", "link", "delete", bridge, check=False)
    shown = json.loads(run("ip", "-json", "-4", "route", "show", "table", "all").stdout or "[]")
    taken = [ipaddress.IPv4Network(route["dst"]) for route in shown if route["dst"] != "default"]
    taken += [ipaddress.IPv4Network(other.subnet) for other in _records() if other.subnet != subnet]
    preferred = ipaddress.IPv4Network(subnet) if subnet else None
    free = preferred and not any(preferred.overlaps(other) for other in taken if other.prefixlen >= 8)
    network = preferred if preferred and free else free_network(taken)
    # A bridge's own address is by default one of its ports': it would change when a host comes or goes, and
    # the others would talk to the old one for a while.
    digest = _digest(name)
    mac = f"02:b0:07:{digest[:2]}:{digest[2:4]}:{digest[4:]}"
    run("ip", "link", "add", bridge, "address", mac, "type", "bridge")
    run("ip", "addr", "add", f"{network[1]}/24", "dev", bridge)
    run("ip", "link", "set", bridge, "up")
    return network


def _boot(host: Host, record: _Record) -> None:
    if host.running:
        return
    _power_off(host)  # what a crash may have left
    for part in ("upper", "work", "root"):
        (host.directory / part).mkdir(parents=True, exist_ok=True)
    host.directory.chmod(0o700)  # the root has set-user-ID programs, and files that only root may read
    layers = f"lowerdir={record.base},upperdir={host.directory}/upper,workdir={host.directory}/work"
    run("mount", "-t", "overlay", "-o", layers, host.machine, host.root)
    if not (host.directory / "key.pub").exists():
        _prepare_disk(host)
    network = f"[Match]\nName=host0\n\n[Network]\nAddress={host.address}/24\nLinkLocalAddressing=no\n"
    (host.root / "etc/systemd/network/10-host0.network").write_text(network)
    nspawn = [
        "systemd-nspawn",
        "--quiet",
        "--boot",
        "--keep-unit",
        "--register=no",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        f"--machine={host.machine}",
        f"--hostname={host.name}",
        f"--network-bridge={bridge_name(host.instance)}",
        host.mark,
    ]
    log = host.directory / "console.log"
    if _under_systemd():
        # A service and not a scope of the caller's session: it outlives the session, and only so may nspawn keep
        # the unit, whose cgroup is delegated to it. As in systemd-nspawn@.service, 133 asks for a boot.
        properties = ["Delegate=yes", "KillMode=mixed", "TasksMax=16384", "StartLimitIntervalSec=0"]
        properties += ["RestartForceExitStatus=133", "SuccessExitStatus=133", f"StandardOutput=append:{log}"]
        unit = [f"--unit={_unit(host)}", "--collect", *(f"--property={value}" for value in properties)]
        run("systemd-run", "--quiet", *unit, *nspawn)
    else:
        groups = _cgroups(host)
        for group in groups:
            group.mkdir(parents=True, exist_ok=True)
        spawn(
            ["sh", "-c", _BOOT_LOOP, "booty-sandbox", *nspawn],
            log,
            CGROUPS=" ".join(map(str, groups)),
            SYSTEMD_NSPAWN_UNIFIED_HIERARCHY="1",
        )


def _prepare_disk(host: Host) -> None:
    etc = host.root / "etc"
    (etc / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
    (etc / "hostname").write_text(f"{host.name}\n")
    # Without its own name there, each sudo and each gathering of facts would ask for it elsewhere.
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {host.name}\n::1 localhost\n")
    ssh = host.root / "root/.ssh"
    ssh.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(INSTANCES / host.instance / "id_ed25519.pub", ssh / "authorized_keys")
    key = etc / "ssh/ssh_host_ed25519_key"
    key.unlink(missing_ok=True)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", host.name, "-f", key)
    shutil.copy(f"{key}.pub", host.directory / "key.pub")  # last: says that the disk is whole


def _wait_ready(booting: list[Host]) -> None:
    """Wait until each host's sshd answers and its boot is over; how well it went is for others to judge."""

    def wait(host: Host) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and host.running:
            with suppress(OSError), socket.create_connection((host.address, 22), timeout=1) as connection:
                if connection.recv(256).startswith(b"SSH-"):
                    host.ssh("systemctl is-system-running --wait")
                    return
            time.sleep(0.05)
        log = (host.directory / "console.log").read_text(errors="replace").strip().splitlines()[-3:]
        raise SandboxError(
            f"{host.name} does not answer SSH at {host.address}; its console says: {' / '.join(log)}"
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(wait, booting))


def _leader(host: Host) -> int | None:
    """Give the process that is the host's PID 1."""
    for pid in processes(host.mark):
        with suppress(OSError, ValueError):
            if Path(f"/proc/{pid}/comm").read_text() == "systemd-nspawn\n":
                return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    return None


def _power_off(host: Host) -> None:
    if _under_systemd():
        run("systemctl", "kill", "--signal=SIGKILL", _unit(host), check=False)
        run("systemctl", "stop", _unit(host), check=False)
    kill(host.mark)
    for group in _cgroups(host):
        _remove_cgroup(group)
        with suppress(OSError):
            group.parent.rmdir()
    run(
        "ip", "link", "delete", f"vb-{host.machine}", check=False
    )  # else it lingers a moment and stops the next boot
    with suppress(OSError):  # what a killed nspawn leaves
        root = host.root.stat()
        (Path("/run/systemd/nspawn/locks") / f"inode-{root.st_dev}:{root.st_ino}").unlink()
    for kind in ("propagate", "unix-export"):
        with suppress(OSError):
            (Path("/run/systemd/nspawn") / kind / host.machine).rmdir()
    _unmount(host.directory)


def _remove(host: Host) -> None:
    _power_off(host)
    shutil.rmtree(host.directory)


def _unmount(directory: Path) -> None:
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in sorted(mounted, reverse=True):
        if point.startswith(f"{directory}/") and run("umount", point, check=False).returncode:
            run("umount", "--lazy", point)


def _under_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()  # sd_booted(3)


def _unit(host: Host) -> str:
    return f"booty-sandbox-{host.machine}.service"


def _cgroups(host: Host) -> list[Path]:
    """Name the cgroups of a host where no systemd makes them: in each hierarchy that tracks processes."""
    if _under_systemd():
        return []
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    roots = [Path(m[1]) for m in mounts if m[2] == "cgroup2" or (m[2] == "cgroup" and "name=systemd" in m[3])]
    return [root / "booty-sandbox" / host.machine for root in roots]


def _remove_cgroup(group: Path) -> None:
    deadline = time.monotonic() + 10
    for directory, _, _ in os.walk(group, topdown=False):
        while Path(directory).exists():
            with suppress(OSError):
                Path(directory).rmdir()
                break
            # What survived its PID 1 has no other way out.
            for pid in (Path(directory) / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            if time.monotonic() > deadline:
                raise SandboxError(
                    f"{directory} can't be removed: see its cgroup.procs, end them and try again"
                )
            time.sleep(0.02)
