"""Sandbox hosts: containers with systemd on this machine, which boot in a second and are reached by SSH.

An instance is a number of hosts and their tracker. All its files are in one directory.
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

from sandbox import acme, base, network, nspawn, tracker
from sandbox.machine import CHECKOUT, SandboxError, as_root, ensure_tools, give, locked, run, say, unmount

INSTANCES = Path("/var/lib/booty-sandbox")
INVENTORY = CHECKOUT / "inventory/sandbox/hosts.yml"
LOCK = Path("/run/lock/booty-sandbox.lock")
MOST_HOSTS = 200


@dataclass(frozen=True)
class Host:
    """A host of an instance, running or stopped."""

    instance: str
    name: str
    address: str

    @property
    def container(self) -> nspawn.Container:
        """The container behind the host."""
        directory = INSTANCES / self.instance / "hosts" / self.name
        return nspawn.Container(directory, f"bt{network.digest(self.instance)}-{_number(self.name)}")

    @property
    def running(self) -> bool:
        """Whether the host runs; it may still be booting."""
        return self.container.running

    def ssh(self, command: str, input: str = "", timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a shell command on the host as root, and return its status and output.

        Raises:
            subprocess.TimeoutExpired: the command took longer than `timeout` seconds.
        """
        argv = ["ssh", "-F", "none", *ssh_options(self.instance), f"root@{self.address}", command]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=timeout, input=input)


@dataclass
class _Record:
    """The contents of `instance.json`: the checkout that made the instance, and what its hosts are made from."""

    checkout: str
    suite: str
    base: str
    subnet: str
    inventory: str | None

    @property
    def network(self) -> network.Network:
        return network.Network(self.subnet)

    def fits(self, suite: str) -> bool:
        """Whether the hosts' root exists and was built by today's recipe, in this week or an earlier one."""
        return Path(self.base).is_dir() and Path(self.base).name.startswith(f"{base.recipe(suite)}-")


def up(
    name: str = "default",
    count: int = 1,
    suite: str = base.SUITE,
    with_tracker: bool = True,
    inventory: Path | None = None,
    with_acme: bool = False,
) -> list[Host]:
    """Bring an instance to exactly `count` running hosts of a suite, reachable by SSH, and return the hosts.

    Running hosts stay as they are. Missing hosts are made, stopped ones are started with their disk, surplus ones are
    removed, and hosts of another suite are replaced.

    Args:
        name: the instance; it belongs to one checkout.
        count: the number of hosts.
        suite: Debian's name for its release.
        with_tracker: start a tracker that the hosts reach.
        with_acme: start a CA that speaks ACME and a name server, which the hosts trust and ask; the inventory then has
            a domain for each host.
        inventory: the path for Ansible's inventory; without it, only the instance `default` gets one.

    Raises:
        SandboxError: names the cause and the next step.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name):
        raise SandboxError(f"an instance is named with up to 31 of a-z, 0-9 and -, not {name!r}")
    if suite not in base.SUITES or not 1 <= count <= MOST_HOSTS:
        raise SandboxError(f"1 to {MOST_HOSTS} hosts of {' or '.join(base.SUITES)}, not {count} of {suite}")
    if inventory is None and name == "default":
        inventory = INVENTORY
    if os.geteuid():
        place = ["--inventory", str(inventory.absolute())] if inventory else []
        as_root("up", "--name", name, "--hosts", str(count), "--suite", suite, "--no-tracker", *place,
                *(["--acme"] if with_acme else []))  # fmt: skip
    else:
        LOCK.parent.mkdir(exist_ok=True)
        with locked(LOCK):
            _up(name, count, suite, inventory.absolute() if inventory else None, with_acme)
    if with_tracker:
        tracker.start(INSTANCES / name / "tracker", str(_record(name).network[1]), preferred_port=8800)
    return hosts(name)


def down(name: str = "default") -> None:
    """Remove an instance in any state: hosts, tracker, network and inventory. Does nothing without such an instance."""
    if not (INSTANCES / name).is_dir():
        return
    if os.geteuid():
        as_root("down", "--name", name)
        return
    with locked(LOCK):
        _check_owner(name)
        tracker.stop(INSTANCES / name / "tracker")
        acme.stop(INSTANCES / name / "acme")
        with suppress(SandboxError):
            _forget_inventory(_record(name))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda host: host.container.power_off(), hosts(name)))
        network.delete(name)
        unmount(INSTANCES / name)
        shutil.rmtree(INSTANCES / name)
        with suppress(OSError):
            INSTANCES.rmdir()


def stop(name: str, host: str) -> None:
    """Kill all processes of a host at once, like a power cut. Its disk stays."""
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
        stopped = _find(name, host)
        _boot(stopped, _record(name))
        _wait_ready(stopped)


def reboot(name: str, host: str) -> None:
    """Shut a host down cleanly, boot it again, and wait until it answers."""
    if os.geteuid():
        as_root("reboot", f"{name}/{host}")
        return
    with locked(LOCK):
        running = _find(name, host)
        running.container.reboot()
        _wait_ready(running)


def point(domain: str, members: list[tuple[str, str]]) -> None:
    """Give a name the addresses of hosts, each an instance and a host, in place of those that it has.

    Raises:
        SandboxError: there is no such host, or its instance has no CA.
    """
    found = [_find(instance or "default", host) for instance, host in members]
    ca = acme.find(INSTANCES / found[0].instance / "acme")
    if not ca:
        raise SandboxError(f"the instance {found[0].instance} has no name server: python -m sandbox up --acme")
    ca.point(domain, [host.address for host in found])


def hosts(name: str = "default") -> list[Host]:
    """Return an instance's hosts, running or stopped; an empty list without such an instance."""
    names = [path.name for path in (INSTANCES / name / "hosts").glob("*booty[1-9]*")]
    try:
        subnet = _record(name).network
    except SandboxError:  # a run crashed before it wrote the record; the hosts can still be removed
        subnet = network.Network("0.0.0.0/24")
    return [_host(name, number, subnet) for number in sorted(map(_number, names))]


def instances() -> list[str]:
    """Return the names of all instances on this machine, of every checkout."""
    return sorted(path.name for path in INSTANCES.glob("*") if path.is_dir())


def suite(name: str) -> str:
    """Return the Debian release of an instance's hosts."""
    return _record(name).suite


def is_ours(name: str) -> bool:
    """Whether an instance was made by this checkout, or by a checkout that no longer exists."""
    checkout = _maker(name)
    return checkout in {"", str(CHECKOUT)} or not Path(checkout).is_dir()


def ssh_options(name: str) -> list[str]:
    """Return ssh's options for an instance's hosts: check their host keys, ignore the user's SSH agent."""
    directory = INSTANCES / name
    options = [f"UserKnownHostsFile={directory}/known_hosts", "StrictHostKeyChecking=yes"]
    options += ["IdentitiesOnly=yes", "BatchMode=yes", "ConnectTimeout=10"]
    return ["-i", f"{directory}/id_ed25519", *(word for option in options for word in ("-o", option))]


def inventory_text(name: str, members: list[Host]) -> str:
    """Return Ansible's inventory of an instance with these hosts; each has a domain if the instance has a CA."""
    options, ca = ssh_options(name), acme.find(INSTANCES / name / "acme")
    lines = [
        f"# The sandbox instance {name}: `python -m sandbox up` writes this file, `down` removes it.",
        "booty:",
        "  hosts:",
        *(
            f"    {host.name}:\n      ansible_host: {host.address}"
            + (f"\n      app_domains: [{domain(host)}]" if ca else "")
            for host in members
        ),
        "  vars:",
        "    ansible_user: root",
        f"    ansible_ssh_private_key_file: {options[1]}",
        f"    ansible_ssh_common_args: {shlex.join(options[2:])}",
        # The app is reached on its own port too, as without a domain.
        *([f"    app_acme_url: {ca.url}", "    host_firewall_ports: [8000]"] if ca else []),
    ]
    return "\n".join(lines) + "\n"


def _up(name: str, count: int, suite: str, inventory: Path | None, with_acme: bool) -> None:
    _check_owner(name)
    ensure_tools()
    directory = INSTANCES / name
    before = _record(name) if (directory / "instance.json").exists() else None
    others = [_record(other) for other in instances() if (INSTANCES / other / "instance.json").exists()]
    # This directory is made first, so that `down` finds the instance even if this function crashes.
    (directory / "tracker").mkdir(parents=True, exist_ok=True, mode=0o700)
    (directory / "checkout").write_text(str(CHECKOUT))
    give(directory / "tracker")
    if before and before.fits(suite):
        root = Path(before.base)
    else:
        root = base.ensure(suite, {other.base for other in others})
        if before:
            say(f"replacing the hosts of {name}: they were made from another root")
        for host in hosts(name):
            _remove(host)
    if before and network.is_up(name, before.network):
        subnet = before.network
    else:
        for host in hosts(name):  # without the bridge they have no network, and their addresses may change
            host.container.power_off()
        used = [other.network for other in others if other != before]
        subnet = network.create(name, before.network if before else None, used)
    if before and before.inventory != str(inventory):
        _forget_inventory(before)
    record = _Record(str(CHECKOUT), suite, str(root), str(subnet), str(inventory) if inventory else None)
    (directory / "instance.json").write_text(json.dumps(asdict(record), indent=2))
    _ensure_limits()
    _ensure_disks(directory / "hosts")
    if not (directory / "id_ed25519").exists():
        _make_key(directory / "id_ed25519", f"booty-{name}")
        give(directory / "id_ed25519")

    members = [_host(name, number, subnet) for number in range(1, count + 1)]
    for host in hosts(name):
        if host not in members:
            _remove(host)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda host: _boot(host, record), members))
    keys = (f"{host.address} {(host.container.directory / 'key.pub').read_text()}" for host in members)
    (directory / "known_hosts").write_text("".join(keys))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_wait_ready, members))
    if with_acme:
        _trust(acme.start(directory / "acme", str(subnet[1])), members)
    _write_inventory(name, members, inventory)


def _write_inventory(name: str, members: list[Host], inventory: Path | None) -> None:
    if inventory:
        inventory.parent.mkdir(parents=True, exist_ok=True)
        inventory.write_text(inventory_text(name, members))
        give(inventory)


def domain(host: Host) -> str:
    """Return the domain that a host has in an instance with a CA."""
    return f"{host.name}.{acme.DOMAIN}"


def _trust(ca: acme.Acme, members: list[Host]) -> None:
    """Have hosts trust the CA and ask its name server, and give each host its domain."""
    for host in members:
        root = host.container.root
        (root / "etc/resolv.conf").write_text(f"nameserver {ca.address}\n")
        shutil.copy(ca.trusted, root / "usr/local/share/ca-certificates/sandbox.crt")
        ca.point(domain(host), [host.address])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda host: host.ssh("update-ca-certificates"), members))


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
    # The host's own name is in /etc/hosts, because sudo and Ansible's facts resolve it.
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {host.name}\n::1 localhost\n")
    keys = host.container.root / "root/.ssh"
    keys.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(INSTANCES / host.instance / "id_ed25519.pub", keys / "authorized_keys")
    key = etc / "ssh/ssh_host_ed25519_key"
    key.unlink(missing_ok=True)
    _make_key(key, host.name)
    shutil.copy(f"{key}.pub", host.container.directory / "key.pub")  # the last step: _boot() takes it for a full disk


def _wait_ready(host: Host) -> None:
    """Wait until sshd answers and the boot is over, even if a unit failed.

    Raises:
        SandboxError: sshd does not answer.
    """
    began = time.monotonic()
    # The first 2 s don't require a process: between two boots there may be none.
    while (waited := time.monotonic() - began) < 60 and (waited < 2 or host.running):
        with suppress(OSError), socket.create_connection((host.address, 22), timeout=0.5) as connection:
            if connection.recv(256).startswith(b"SSH-"):
                host.ssh("systemctl is-system-running --wait")
                return
        time.sleep(0.05)
    lines = " / ".join(host.container.log.read_text(errors="replace").split("\n")[-4:])
    raise SandboxError(f"{host.name} does not answer SSH at {host.address}; end of {host.container.log}: {lines}")


def _make_key(path: Path, comment: str) -> None:
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path)


def _ensure_limits() -> None:
    # Each systemd uses about seven, so the usual limit of 128 allows 17 hosts. The limit is not lowered again: another
    # program may need it by then, and a reboot of the machine resets it.
    inotify = Path("/proc/sys/fs/inotify/max_user_instances")
    if int(inotify.read_text()) < 8192:
        inotify.write_text("8192")


def _ensure_disks(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    kind = run("findmnt", "--noheadings", "--output=FSTYPE", "--target", directory).stdout.strip()
    if kind == "overlay":  # in a container; an overlayfs can't be the upper layer of another one
        say("the hosts' disks are kept in memory: /var/lib is on an overlayfs, which can't hold them")
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
    for member in hosts(name):
        if member.name == host:
            return member
    raise SandboxError(f"there is no host {name}/{host}: `python -m sandbox status` lists them")


def _record(name: str) -> _Record:
    try:
        return _Record(**json.loads((INSTANCES / name / "instance.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise SandboxError(f"there is no instance {name}: python -m sandbox up --name {name}") from error


def _maker(name: str) -> str:
    """Return the checkout that makes or made an instance; "" if a run crashed before it wrote that."""
    try:
        return _record(name).checkout
    except SandboxError:  # the instance is being made: its record comes later
        file = INSTANCES / name / "checkout"
        return file.read_text() if file.exists() else ""


def _check_owner(name: str) -> None:
    if not is_ours(name):
        raise SandboxError(f"the instance {name} belongs to {_maker(name)}: run this there, or choose another --name")
