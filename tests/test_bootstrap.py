"""Bootstraps of real hosts, from a provider's image to ready for a release, with the command that a user types."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.booty.deploy.plugins.module_utils.controller import host_files

from sandbox import hosts as sandbox
from sandbox.base import SUITE, SUITES
from sandbox.hosts import Host
from tests.conftest import ROOT, Play, words

pytestmark = pytest.mark.long


def of(text: str, mode: str = "644") -> str:
    """Return a host's description of a file of root's with this text."""
    return f"root {mode} file {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    ("entry", "host", "state", "difference"),
    [
        ({"path": "/d"}, "root 755 directory", None, ""),
        ({"path": "/d", "mode": "0700"}, "root 700 directory", None, ""),
        ({"path": "/d"}, None, "directory", "make the directory /d: root, 0755"),
        ({"path": "/d"}, "root 777 directory", "directory", "make the directory /d: root, 0755 (it is root, 0777)"),
        ({"path": "/d"}, "deploy 755 directory", "directory", "(it is deploy, 0755)"),
        ({"path": "/d"}, "root 777 link", "directory", "(it is root, 0777)"),
        ({"path": "/f", "text": "a\n"}, of("a"), "file", "write /f: root, 0644"),
        ({"path": "/f", "text": "a\n"}, of("a\n"), None, ""),
        ({"path": "/f", "text": "a\n"}, of("b\n"), "file", "-b\n+a"),
        ({"path": "/f", "text": "a\n"}, None, "file", "--- /dev/null\n+++ /f\n@@ -0,0 +1 @@\n+a"),
        ({"path": "/f", "text": "a\n", "mode": "0440"}, of("a\n", "440"), None, ""),
        ({"path": "/f", "text": "a\n", "present": False}, None, None, ""),
        ({"path": "/f", "text": "a\n", "present": False}, of("b\n"), "absent", "-b"),
        ({"path": "/f", "text": "a\n", "present": False, "keep": True}, of("b\n"), None, ""),
    ],
)
def test_stale_files_are_found(entry: dict[str, Any], host: str | None, state: str | None, difference: str) -> None:
    on_host = {f"file {entry['path']}": host} if host else {}
    stale = host_files.stale([{"part": "base", **entry}], on_host)
    assert [each["state"] for each in stale] == ([state] if state else [])
    assert all(difference in each["difference"] for each in stale)


def test_the_answer_of_a_host_is_parsed() -> None:
    text = "a banner\r\nsystem=debian 12\r\nfile /x=root 644 file QT09Qg==\r\n"
    assert host_files.host_values(text) == {"system": "debian 12", "file /x": "root 644 file QT09Qg=="}


class New:
    """A new host, and the command that a user bootstraps it with."""

    def __init__(self, host: Host, directory: Path) -> None:
        self.host, self.directory = host, directory
        self.options: list[str] = []
        self.environment: dict[str, str] = {}
        key = sandbox.INSTANCES / host.instance / "id_ed25519.pub"
        self.deploy = {"ansible_user": "deploy", "host_deploy_keys": [key.read_text().strip()]}

    def start(self, *arguments: str, **variables: Any) -> subprocess.Popen[str]:
        """Start a bootstrap with these variables in the inventory, and with the environment of `self.environment`."""
        inventory = self.directory / "inventory"
        (inventory / "group_vars").mkdir(parents=True, exist_ok=True)
        (inventory / "hosts.yml").write_text(sandbox.inventory_text(self.host.instance, [self.host]))
        variables = {"app_environment": "staging", **variables}
        (inventory / "group_vars/booty.yml").write_text(yaml.safe_dump(variables))
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "bootstrap.yml", "-i", str(inventory)]
        environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "COLUMNS": "200", **self.environment}
        return subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def bootstrap(self, *arguments: str, **variables: Any) -> Play:
        """Run a bootstrap to its end."""
        with self.start(*arguments, **variables) as process:
            output, _ = process.communicate(timeout=300)
        return Play(process.returncode, output)

    def ready(self, *arguments: str, **variables: Any) -> Play:
        """Run a bootstrap; fail the test if the exit status is not 0."""
        played = self.bootstrap(*arguments, **variables)
        assert played.status == 0, played.output
        return played

    def ssh(self, command: str, user: str = "root", input: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command as a user, over a new connection."""
        options = [*sandbox.ssh_options(self.host.instance), *self.options]
        argv = ["ssh", "-F", "none", *options, f"{user}@{self.host.address}", command]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, input=input)

    def run(self, command: str, user: str = "root") -> str:
        """Run a command that must succeed."""
        done = self.ssh(command, user)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def changes(self) -> str:
        """Return a digest of everything on the disk that a bootstrap could change."""
        return self.run("find /etc /opt /home /usr/bin /var/lib/dpkg -printf '%p %m %u %s %T@\n' | sort | sha256sum")


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], New]]:
    """Return a function that boots one more new host of a suite."""
    count = dict.fromkeys(SUITES, 0)

    def boot(suite: str = SUITE) -> New:
        count[suite] += 1
        hosts = sandbox.up(f"new-{suite}", count[suite], suite, with_tracker=False)
        return New(hosts[-1], tmp_path_factory.mktemp(hosts[-1].name))

    try:
        yield boot
    finally:
        for suite in count:
            sandbox.down(f"new-{suite}")


@pytest.fixture
def new(another: Callable[[str], New]) -> New:
    """Return a new host, for one test."""
    return another(SUITE)


# As /etc/os-release of the suite says it.
VERSION = {"bookworm": 12, "trixie": 13}[SUITE]
# With these variables a bootstrap installs only the firewall: apt takes most of a bootstrap's time.
QUICK = {"host_time_sync": False, "host_security_updates": False, "host_journal": False}


def answers(address: str, port: int) -> str:
    """Connect, and return `open`, `refused` (no program listens) or `nothing` (a firewall drops the packets)."""
    try:
        socket.create_connection((address, port), timeout=1).close()
    except TimeoutError:
        return "nothing"
    except ConnectionRefusedError:
        return "refused"
    return "open"


@pytest.mark.parametrize("suite", SUITES)
def test_from_root_to_a_deploy_user(another: Callable[[str], New], suite: str) -> None:
    new = another(suite)
    new.run("printf 'PasswordAuthentication yes\n' > /etc/ssh/sshd_config.d/50-cloud-init.conf")
    before = new.changes()
    checked = new.ready("--check", "--diff", **new.deploy)
    assert "+deploy ALL=(ALL:ALL) NOPASSWD: ALL" in checked.output
    assert new.changes() == before

    began = time.monotonic()
    first = new.ready(**new.deploy)
    assert time.monotonic() - began < 60
    assert "deploy@" in first.output  # in the command that places the secrets
    assert "root@" not in first.output
    began = time.monotonic()
    again = new.ready(**new.deploy)
    assert time.monotonic() - began < 15
    assert again.recap(new.host.name)["changed"] == 0
    assert "UNREACHABLE" not in again.output

    assert "Permission denied" in new.ssh("true").stderr
    assert new.run("id -un; sudo -n id -un", "deploy").split() == ["deploy", "root"]
    effective = new.run("sudo sshd -T", "deploy")
    for line in ("passwordauthentication no", "kbdinteractiveauthentication no", "permitrootlogin no"):
        assert line in effective.splitlines()
    assert answers(new.host.address, 22) == "open"
    assert answers(new.host.address, 8000) == "refused"
    assert answers(new.host.address, 8001) == "nothing"
    assert "500M" in new.run("systemd-analyze cat-config systemd/journald.conf", "deploy")
    dumped = new.run("apt-config dump Unattended-Upgrade", "deploy")
    assert 'Automatic-Reboot "false"' in dumped
    assert re.findall(r'Origins-Pattern:: "(.*)"', dumped) == [
        "origin=Debian,codename=${distro_codename}-security,label=Debian-Security"
    ]
    for unit in ("systemd-timesyncd", "unattended-upgrades", "apt-daily-upgrade.timer", "booty-firewall"):
        assert new.run(f"systemctl is-enabled {unit}", "deploy") == "enabled"
    # unattended-upgrades accepts the pattern of the security archive.
    new.run("sudo unattended-upgrade --dry-run", "deploy")


@pytest.mark.parametrize(
    ("fake", "message"),
    [
        ("sed -i 's/^VERSION_ID=.*/VERSION_ID=\"11\"/' /etc/os-release", "is debian 11 on amd64"),
        ("sed -i 's/^ID=.*/ID=alpine/' /etc/os-release", f"is alpine {VERSION} on amd64"),
        (
            "printf '#!/bin/sh\necho armhf\n' > /usr/local/bin/dpkg; chmod +x /usr/local/bin/dpkg",
            f"is debian {VERSION} on armhf",
        ),
    ],
)
def test_an_unknown_system_is_refused_before_any_change(
    another: Callable[[str], New], fake: str, message: str, unknown: list[New]
) -> None:
    if not unknown:
        unknown.append(another(SUITE))
        unknown[0].run("cp /etc/os-release /root/")
    new = unknown[0]
    new.run(fake)
    before = new.changes()
    try:
        for arguments in (["--check"], []):
            played = new.bootstrap(*arguments, **new.deploy)
            assert played.status != 0
            assert message in words(played)
            assert "Nothing was changed" in words(played)
        assert new.changes() == before
    finally:
        new.run("cat /root/os-release > /etc/os-release; rm -f /usr/local/bin/dpkg")


def test_ubuntu_is_named_as_untested(new: New) -> None:
    """The host only pretends to be Ubuntu. The summary says that Booty was never tested on it."""
    new.run("sed -i 's/^ID=.*/ID=ubuntu/; s/^VERSION_ID=.*/VERSION_ID=\"24.04\"/' /etc/os-release")
    played = new.ready(**{**QUICK, "host_security_updates": True})
    assert "ubuntu 24.04, which Booty was never tested on" in words(played)
    assert re.findall(r'Origins-Pattern:: "(.*)"', new.run("apt-config dump Unattended-Upgrade")) == [
        "origin=Ubuntu,archive=${distro_codename}-security,label=Ubuntu"
    ]


@pytest.fixture(scope="module")
def unknown() -> list[New]:
    """Return a list for the host of the tests of unknown systems, so that it boots only once."""
    return []


def test_a_key_that_does_not_work_closes_nothing(new: New) -> None:
    key = f"ssh-ed25519 {'A' * 68} somebody else's"
    played = new.bootstrap(**{**QUICK, **new.deploy, "host_deploy_keys": [key]})
    assert played.status != 0
    assert "deploy can't log in with a key and become root, so nothing was closed" in words(played)
    assert "are as they were before" in words(played)
    assert new.run("sshd -T | grep ^passwordauth; ls /etc/sudoers.d/booty 2>&1 || true").startswith(
        "passwordauthentication yes"
    )
    assert new.ssh("ls /etc/sudoers.d/booty /run/booty-undo").returncode != 0


def test_a_firewall_that_shuts_us_out_is_taken_back(new: New) -> None:
    wrong = json.dumps({"__host_ssh_ports": [2222], "host_close_listeners": True})
    played = new.bootstrap("-e", wrong, **QUICK)
    assert played.status != 0
    assert "would not let this machine in any more" in words(played)
    assert new.ssh("nft list table inet booty").returncode != 0
    assert new.ssh("ls /etc/ssh/sshd_config.d/00-booty.conf /run/booty-undo").returncode != 0
    new.ready(**QUICK)
    # The second run finds a firewall of Booty's on the host, and must go back to it.
    loaded = new.run("nft list table inet booty")
    played = new.bootstrap("-e", wrong, **QUICK)
    assert played.status != 0
    assert new.run("nft list table inet booty") == loaded
    assert new.ready(**QUICK).recap(new.host.name)["changed"] == 0


def test_a_bootstrap_that_dies_half_way_is_taken_back(new: New) -> None:
    # With -v the callback prints a task's name when the task starts.
    wrong = json.dumps({"__host_ssh_ports": [2222], "host_close_listeners": True, "__host_undo_seconds": 8})
    with new.start("-v", "-e", wrong, **QUICK) as process:
        assert process.stdout
        for line in process.stdout:
            if "Log in as the" in line and "before" not in line:
                process.send_signal(signal.SIGKILL)
                break
    pending = new.bootstrap(**QUICK)  # fails: the firewall shuts it out, or the timer for the way back is still armed
    assert pending.status != 0
    deadline = time.monotonic() + 20
    while new.ssh("test ! -e /run/booty-undo").returncode and time.monotonic() < deadline:
        time.sleep(0.5)
    assert new.ssh("ls /etc/ssh/sshd_config.d/00-booty.conf /run/booty-undo").returncode != 0
    new.ready(**QUICK)


def test_match_blocks(new: New) -> None:
    new.run("printf 'Match User root\n  PasswordAuthentication yes\n' >> /etc/ssh/sshd_config")
    played = new.bootstrap(**QUICK)
    assert played.status != 0
    assert 'sshd would still allow "root: passwordauthentication yes"' in words(played)
    assert "/etc/ssh/sshd_config:" in words(played)
    assert new.ssh("ls /etc/ssh/sshd_config.d/00-booty.conf").returncode != 0
    new.run("sed -i 's/^Match User root/Match Group sftp/' /etc/ssh/sshd_config")
    assert "its Match blocks open stays open: /etc/ssh/sshd_config:" in words(new.ready(**QUICK))
    assert new.ready(**QUICK).recap(new.host.name)["changed"] == 0


def test_an_sshd_that_ignores_drop_ins(new: New) -> None:
    new.run("sed -i '1i PasswordAuthentication yes' /etc/ssh/sshd_config")
    played = new.bootstrap(**QUICK)
    assert "nobody: passwordauthentication yes" in words(played)
    assert "before its Include" in words(played)
    assert "off" in words(new.ready(**QUICK, host_close_ssh=False))


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("mkdir -p /etc/ufw; echo ENABLED=yes > /etc/ufw/ufw.conf", "ufw"),
        (
            "apt-get install -qy nftables && nft add table inet site && "
            "nft 'add chain inet site input { type filter hook input priority 0; policy accept; }' && "
            "nft add rule inet site input tcp dport 23 drop",
            "the nftables table inet site",
        ),
        (
            "apt-get install -qy --no-install-recommends iptables && iptables -A INPUT -p tcp --dport 23 -j DROP",
            "iptables",
        ),
    ],
)
def test_another_firewall_is_left_alone(new: New, command: str, name: str) -> None:
    new.run(command)
    rules = new.run("command -v nft >/dev/null && nft list ruleset || true")
    played = new.ready(**QUICK)
    assert f"left alone, there is another one: {name}" in words(played)
    assert new.run("command -v nft >/dev/null && nft list ruleset || true") == rules
    assert new.ready(**QUICK).recap(new.host.name)["changed"] == 0


def test_each_part_can_be_switched_off(new: New) -> None:
    new.ready()
    off = {f"host_{name}": False for name in ("close_ssh", "firewall", "time_sync", "security_updates", "journal")}
    played = new.ready(**off)
    assert played.recap(new.host.name)["changed"] > 0
    assert new.ssh("nft list table inet booty").returncode != 0
    assert "passwordauthentication yes" in new.run("sshd -T")
    assert new.run("find /etc -name '*booty*' -not -path '/etc/hostname'") == "/etc/booty"
    assert new.ready(**off).recap(new.host.name)["changed"] == 0


def test_a_sudo_user_with_a_password(new: New) -> None:
    new.run("apt-get install -qy sudo; useradd -m -s /bin/bash -G sudo debian; echo debian:s3cret | chpasswd")
    new.run("cp -a ~root/.ssh /home/debian/ && chown -R debian: /home/debian/.ssh && rm -r ~root/.ssh; true")
    login = {**QUICK, "ansible_user": "debian", "host_deploy_keys": new.deploy["host_deploy_keys"]}
    played = new.bootstrap(**login)
    assert played.status != 0
    assert "password" in played.output
    played = new.ready("-e", json.dumps({"ansible_become_password": "s3cret"}), **login)
    assert "Set `ansible_user: deploy` in the inventory" in words(played)
    # The second bootstrap does not need the password of the first user.
    assert new.ready(**login).recap(new.host.name)["changed"] == 0


def test_the_firewall_outlives_a_restart_of_nftables_service(new: New) -> None:
    new.ready(**QUICK)
    new.run("systemctl enable nftables")
    for verb in ("restart", "reload"):
        new.run(f"systemctl {verb} nftables")
        assert "policy drop" in new.run("sleep 0.5; nft list table inet booty"), verb


def test_another_deploy_user(new: New) -> None:
    """Bootstrap logs in as the old deploy user, and revokes that user's access once the new user's login works."""
    new.ready(**QUICK, **new.deploy)
    another = {**QUICK, **new.deploy, "ansible_user": "ops", "host_deploy_user": "ops", "host_first_user": "deploy"}
    checked = new.ready("--check", **another)
    assert "Would remove /home/deploy/.ssh/authorized_keys" in words(checked)
    assert new.run("sudo -n id -un", "deploy") == "root"
    new.ready(**another)
    assert "Permission denied" in new.ssh("true", "deploy").stderr
    assert new.run("sudo -n id -un; sudo cat /etc/sudoers.d/booty | grep -c deploy || true", "ops") == "root\n0"
    assert new.run("sudo ls -A ~deploy/.ssh", "ops") == ""
    assert new.ready(**another).recap(new.host.name)["changed"] == 0


def test_the_former_deploy_user_stays_until_the_new_one_works(new: New) -> None:
    new.ready(**QUICK, **new.deploy)
    key = f"ssh-ed25519 {'A' * 68} somebody else's"
    played = new.bootstrap(
        **{**QUICK, "ansible_user": "ops", "host_deploy_user": "ops", "host_first_user": "deploy"},
        host_deploy_keys=[key],
    )
    assert played.status != 0
    assert "ops can't log in with a key and become root, so nothing was closed" in words(played)
    assert new.run("sudo -n id -un", "deploy") == "root"
    assert new.ssh("sudo ls /run/booty-undo", "deploy").returncode != 0


def test_deploy_keys_are_removed(new: New) -> None:
    """An empty list revokes the keys, but is refused while Ansible logs in as the deploy user."""
    new.ready(**QUICK, **new.deploy)
    before = new.run("sudo find /etc /home -printf '%p %m %u %s %T@\n' | sort | sha256sum", "deploy")
    played = new.bootstrap(**QUICK, ansible_user="deploy")
    assert played.status != 0
    assert "host_deploy_keys is empty, which revokes the keys of deploy; but that is who logs in" in words(played)
    assert "host_ssh_root: true" in words(played)
    assert new.run("sudo find /etc /home -printf '%p %m %u %s %T@\n' | sort | sha256sum", "deploy") == before
    # The message's advice: first allow root's login, then remove the keys.
    new.ready(**QUICK, **new.deploy, host_ssh_root=True)
    new.ready(**QUICK, ansible_user="root")
    assert "Permission denied" in new.ssh("true", "deploy").stderr
    assert new.ssh("ls /etc/sudoers.d/booty").returncode != 0
    assert new.ready(**QUICK, ansible_user="root").recap(new.host.name)["changed"] == 0


def place_as_printed(played: Play) -> None:
    """Run the command that a bootstrap printed for placing the secrets."""
    (command,) = re.findall(r"^ *(ssh .*secrets\.env'\")$", played.output, re.MULTILINE)
    done = subprocess.run(
        command, shell=True, input="SENTRY_DSN=x\n", capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_a_host_behind_a_jump_host(another: Callable[[str], New], tmp_path: Path) -> None:
    """The trial logins and the printed command for the secrets use the jump host, whichever setting names it."""
    jump, target = another(SUITE), another(SUITE)
    # A blackhole route drops the target's packets to this machine, so only the jump host can reach the target.
    gateway = target.host.address.rpartition(".")[0] + ".1"
    later = "systemd-run --quiet --on-active=1 --timer-property=AccuracySec=100ms"
    target.run(f"{later} ip route add blackhole {gateway}/32")
    time.sleep(2)
    key, *options = sandbox.ssh_options(target.host.instance)[1:]
    hop = f"ProxyCommand ssh -F none -i {key} {' '.join(options)} -W %h:%p root@{jump.host.address}"
    config = tmp_path / "ssh_config"
    lines = "".join(f"  {option.replace('=', ' ', 1)}\n" for option in options[1::2])
    config.write_text(
        f"Host jump\n  HostName {jump.host.address}\n  User root\n"
        f"Host {target.host.address}\n  ProxyJump jump\nHost *\n  IdentityFile {key}\n{lines}"
    )
    target.options = ["-o", hop]
    assert target.run("echo $SSH_CONNECTION").startswith(f"{jump.host.address} ")
    quoted = f'-o "{hop}"'
    checked = " ".join(options)
    ways: list[tuple[dict[str, str], dict[str, str]]] = [
        ({"ansible_ssh_args": f"-F {config}"}, {}),
        ({"ansible_ssh_args": quoted}, {}),
        ({"ansible_ssh_common_args": f"{checked} {quoted}"}, {}),
        ({"ansible_ssh_extra_args": quoted}, {}),
        ({}, {"ANSIBLE_SSH_ARGS": f"-o ControlMaster=auto -o ControlPersist=2s -F {config}"}),
    ]
    try:
        for number, (variables, target.environment) in enumerate(ways):
            # A new port in each run, so that each bootstrap changes the firewall and tries the logins.
            common = {
                **QUICK,
                **target.deploy,
                "host_firewall_ports": [8000 + number],
                "ansible_ssh_common_args": checked,
            }
            played = target.ready(**{**common, **variables})
            assert played.recap(target.host.name)["changed"] > 0
            place_as_printed(played)
            assert target.run("sudo cat /etc/booty/secrets.env", "deploy") == "SENTRY_DSN=x"
            target.run("sudo rm /etc/booty/secrets.env", "deploy")
    finally:  # other tests add hosts to this instance, and wait until all of its hosts answer
        target.environment = {}
        target.run(f"sudo ip route delete blackhole {gateway}/32", "deploy")


def test_a_host_that_bootstraps_itself(another: Callable[[str], New]) -> None:
    """Without SSH there is no trial login, so bootstrap leaves sshd unchanged, and the summary says why."""
    new = another("trixie")
    packages = Path(yaml.__file__).parent.parent
    tree = ["ansible.cfg", "bootstrap.yml", "playbooks", "roles", "plugins", "collections"]
    # Ansible and its dependencies, without compiled modules: each of them also runs in pure Python.
    names = ["ansible", "ansible_core-*", "jinja2", "jinja2-*", "yaml", "markupsafe", "packaging", "resolvelib"]
    parts = [path.name for name in names for path in packages.glob(name)]
    copied = subprocess.run(
        f"tar -c --exclude=*.so --exclude=__pycache__ -C {ROOT} {' '.join(tree)} -C {packages} {' '.join(parts)} |"
        f" ssh -F none {' '.join(sandbox.ssh_options(new.host.instance))} root@{new.host.address}"
        " 'mkdir /srv/booty && tar -x -C /srv/booty'",
        shell=True,
        check=False,
        capture_output=True,
        text=True,
    )
    assert copied.returncode == 0, copied.stderr
    variables = {**QUICK, "app_environment": "staging", "ansible_connection": "local"}
    inventory = {"booty": {"hosts": {"here": {}}, "vars": variables}}

    def bootstrap(user: str = "root", become: str = "") -> str:
        new.ssh(f"{become}tee /srv/booty/hosts.yml", user, yaml.safe_dump(inventory))
        command = f"{become}env ANSIBLE_NOCOLOR=1 python3 -m ansible.cli.playbook bootstrap.yml -i hosts.yml"
        return " ".join(new.run(f"cd /srv/booty && {command}", user).split())

    output = bootstrap()
    assert "sshd is as it was, and no key was revoked: only logins over SSH prove" in output
    assert "ansible_connection is local" in output
    assert " sh -c 'umask 077" in output
    assert "ssh root@" not in output
    assert "passwordauthentication yes" in new.run("sshd -T")
    assert "policy drop" in new.run("nft list table inet booty")
    variables |= new.deploy
    assert "sshd is as it was" in bootstrap()
    assert new.run("sudo -n id -un", "deploy") == "root"
    assert "passwordauthentication yes" in new.run("sshd -T")
    # A bootstrap over SSH closes password logins, and a later one on the host itself keeps them closed.
    new.ready(**QUICK, **new.deploy)
    output = bootstrap("deploy", "sudo ")
    assert "changed=0" in output
    assert "passwordauthentication no" in new.run("sudo sshd -T", "deploy")


# Listeners beside sshd: a web server, a database on a bridge of containers, a VXLAN tunnel of the kernel, a name
# server, a heartbeat over IP protocol 112; and a web server on loopback, which only the host itself reaches.
LISTENERS = """
ip link add docker0 type bridge && ip addr add 172.17.0.1/16 dev docker0 && ip link set docker0 up
ip link add tunnel type vxlan id 7 dstport 4789 dev host0 && ip link set tunnel up
systemd-run --quiet python3 -m http.server 8080
systemd-run --quiet python3 -m http.server 5432 --bind 172.17.0.1
systemd-run --quiet python3 -m http.server 6000 --bind 127.0.0.1
systemd-run --quiet python3 -c '
import socket
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 112)
names = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
names.bind(("::", 53))
while True:
    names.sendto(*names.recvfrom(512))'
until [ $(ss -Hltn | grep -cE ':(8080|5432|6000) ') = 3 ] && ss -Hlun | grep -q ':53 '; do sleep 0.1; done
"""


def echoed(address: str, port: int) -> bool:
    """Return whether a UDP packet comes back."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(1)
        client.sendto(b"?", (address, port))
        try:
            return client.recv(512) == b"?"
        except TimeoutError:
            return False


def test_what_listens_is_named_before_it_is_closed(new: New) -> None:
    new.run(LISTENERS)
    before = new.changes()
    for arguments in (["--check"], []):
        played = new.bootstrap(*arguments, **QUICK)
        assert played.status != 0
        for text in (
            "TCP 5432 on 172.17.0.1 (python3); TCP 8080 (python3); UDP 53 (python3);",
            "UDP 4789 (a socket of the kernel, such as WireGuard has)",
            "IP protocol 112 (python3)",
            "set host_firewall_ports: [8000, 5432, 8080] and host_firewall_udp_ports: [53, 4789].",
            "set host_close_listeners: true",
            "Nothing was changed",
        ):
            assert text in words(played)
        assert "TCP 22" not in played.output
        assert "6000" not in played.output
    assert new.changes() == before

    kept = {**QUICK, "host_firewall_ports": [8000, 8080], "host_firewall_udp_ports": [53, 4789]}
    closed = new.ready(**kept, host_close_listeners=True)
    assert "lets in TCP 22, 8000, 8080, UDP 53, 4789; closed what listened: IP protocol 112" in words(closed)
    assert answers(new.host.address, 8080) == "open"
    assert echoed(new.host.address, 53)
    again = new.ready(**kept)
    assert again.recap(new.host.name)["changed"] == 0
    assert "closed what listened" not in again.output
    new.ready(**{**kept, "host_firewall_udp_ports": []})
    assert not echoed(new.host.address, 53)
    new.ready(**QUICK, host_firewall_ports=[])
    assert answers(new.host.address, 8080) == "nothing"


def test_containers_reach_the_services_port_elsewhere(new: New) -> None:
    """The host translates the addresses of containers (NAT), which needs connection tracking."""
    new.ready(**QUICK)
    gateway = new.host.address.rpartition(".")[0] + ".1"
    new.run(
        "ip netns add box && ip link add veth0 type veth peer name eth0 netns box && "
        "ip addr add 10.99.0.1/24 dev veth0 && ip link set veth0 up && "
        "ip -n box addr add 10.99.0.2/24 dev eth0 && ip -n box link set eth0 up && "
        "ip -n box route add default via 10.99.0.1 && sysctl -qw net.ipv4.ip_forward=1 && nft add table ip site && "
        "nft 'add chain ip site out { type nat hook postrouting priority srcnat; }' && "
        "nft add rule ip site out ip saddr 10.99.0.0/24 masquerade"
    )
    with socket.create_server((gateway, 8000)):
        code = f'import socket; socket.create_connection(("{gateway}", 8000), timeout=3)'
        new.run(f"ip netns exec box python3 -c '{code}'")
    # Connections to the same port of this host are untracked, and work too.
    new.run("systemd-run --quiet python3 -m http.server 8000 && sleep 1")
    assert answers(new.host.address, 8000) == "open"


# This drop-in makes apt-daily.service hold the lock of the package lists for some seconds, and do nothing else.
APT_DAILY = """[Service]
ExecStartPre=
ExecStart=
ExecStart=/usr/bin/python3 -c 'import fcntl, time; lock = open("/var/lib/apt/lists/lock", "w"); \\
    fcntl.lockf(lock, fcntl.LOCK_EX); time.sleep({seconds})'
"""


def test_apt_and_cloud_init_are_waited_for(new: New) -> None:
    def daily(seconds: int) -> None:
        new.run("mkdir -p /etc/systemd/system/apt-daily.service.d")
        new.ssh("cat > /etc/systemd/system/apt-daily.service.d/x.conf", input=APT_DAILY.format(seconds=seconds))
        new.run("systemctl stop apt-daily; systemctl daemon-reload; systemctl start --no-block apt-daily; sleep 0.5")

    daily(60)
    played = new.bootstrap("-e", "__host_wait_seconds=2", **QUICK)
    assert played.status != 0
    assert "busy with apt-daily.service, which may hold apt's locks; waiting up to 2 s" in words(played)
    assert "apt's lock was not free for 2 s" in words(played)
    assert re.search(
        r"Could not get lock /var/lib/apt/lists/lock. It is held by process \d+ \(python3\)", words(played)
    )
    daily(6)
    new.ready(**QUICK)

    # The sandbox's repository lacks cloud-init. This script answers the one command that bootstrap calls.
    fake = "#!/bin/sh\n[ \"$*\" = 'status --wait' ] && sleep {seconds}; exit 2\n"
    more = {**QUICK, "host_security_updates": True}
    new.ssh("cat > /usr/local/bin/cloud-init; chmod +x /usr/local/bin/cloud-init", input=fake.format(seconds=60))
    played = new.bootstrap("-e", "__host_wait_seconds=2", **more)
    assert played.status != 0
    assert "cloud-init has not finished after 2 s" in words(played)
    new.ssh("cat > /usr/local/bin/cloud-init", input=fake.format(seconds=2))
    new.ready(**more)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("AllowUsers root", 'AllowUsers is "root", which lacks deploy'),
        ("AllowUsers root@* admin@10.0.0.*", 'AllowUsers is "root@* admin@10.0.0.*", which lacks deploy'),
        ("DenyUsers de*", "DenyUsers has deploy"),
        ("AllowGroups root ssh-users", 'AllowGroups is "root ssh-users", which lacks a group of deploy\'s (deploy)'),
        ("AuthorizedKeysFile /etc/ssh/keys/%u", 'is "/etc/ssh/keys/%u", which lacks /home/deploy/.ssh/authorized_keys'),
        ("AuthenticationMethods publickey,password", 'is "publickey,password", so that a key alone is not enough'),
    ],
)
def test_an_sshd_that_refuses_the_deploy_user(unknown: list[New], line: str, reason: str) -> None:
    (new,) = unknown
    new.run(
        "mkdir -p /etc/ssh/keys && cp /root/.ssh/authorized_keys /etc/ssh/keys/root && "
        f"cp /etc/ssh/sshd_config /root/ && echo '{line}' >> /etc/ssh/sshd_config"
    )
    try:
        before = new.changes()
        # Ansible's open connection still works, although sshd now refuses new logins.
        with new.start(**QUICK, **new.deploy) as process:
            assert process.stdout
            played = Play(process.wait(timeout=120), process.stdout.read())
        assert played.status != 0
        assert "sshd does not let deploy in with a key: " in words(played)
        assert reason in words(played)
        assert "Change that in /etc/ssh/sshd_config:" in words(played)
        assert "Nothing was changed" in words(played)
        assert new.changes() == before
    finally:
        new.run("cat /root/sshd_config > /etc/ssh/sshd_config")


def test_sshd_behind_its_socket(new: New) -> None:
    """ssh.socket sets the port, not sshd_config. Bootstrap closes password logins and leaves ssh.socket unchanged."""

    def switch(commands: str, user: str) -> None:
        """Run commands half a second later, because they stop the sshd of this connection."""
        later = "systemd-run --quiet --on-active=0.5 --timer-property=AccuracySec=10ms"
        new.run(f"{'' if user == 'root' else 'sudo '}{later} sh -c '{commands}'", user)
        time.sleep(2)

    new.run(
        "mkdir -p /etc/systemd/system/ssh.socket.d && "
        "printf '[Socket]\nListenStream=\nListenStream=2222\n' > /etc/systemd/system/ssh.socket.d/port.conf && "
        "systemctl disable --quiet ssh.service && systemctl enable --quiet ssh.socket && systemctl daemon-reload"
    )
    switch("systemctl stop ssh.service; systemctl start ssh.socket", "root")
    alias = f"-o HostKeyAlias={new.host.address}"
    new.options = ["-p", "2222", *alias.split()]
    login = {**QUICK, **new.deploy, "ansible_port": 2222, "ansible_ssh_extra_args": alias}
    assert "lets in TCP 22, 2222, 8000" in words(new.ready(**login))
    assert "passwordauthentication no" in new.run("sudo sshd -T", "deploy")
    assert new.run("systemctl is-active ssh.socket", "deploy") == "active"
    assert answers(new.host.address, 22) == "refused"
    assert new.ready(**login).recap(new.host.name)["changed"] == 0
    # ssh.service is inactive while ssh.socket waits for connections, so there is no sshd to reload.
    new.ssh("sudo systemctl stop ssh.service", "deploy")
    new.ready(**{**login, "host_close_ssh": False})
    # Other tests add hosts to this instance, and wait until all of its hosts answer on port 22.
    switch("systemctl stop ssh.socket ssh.service; systemctl start ssh.service", "deploy")
    new.options = []
    assert new.run("id -un", "deploy") == "deploy"


def test_a_host_that_can_not_give_the_sandbox(new: New) -> None:
    drop_in = "/run/systemd/system/booty-sandbox.service.d/x.conf"
    new.run(f"mkdir {drop_in.removesuffix('/x.conf')} && printf '[Service]\nBindPaths=/missing\n' > {drop_in}")
    new.run("systemctl daemon-reload")
    played = new.bootstrap(**QUICK)
    assert played.status != 0
    assert "can't start a unit with the service's sandbox" in words(played)
    assert "status 226 in systemd-nspawn" in words(played)
    assert "status=226/NAMESPACE" in words(played)
    assert "security.nesting=true" in words(played)
    # The trial unit has the service's own sandbox, so it can't write to /etc.
    new.run(f"printf '[Service]\nExecStartPre=touch /etc/x\n' > {drop_in} && systemctl daemon-reload")
    assert new.bootstrap(**QUICK).status != 0
    assert "Read-only file system" in new.run("journalctl --unit=booty-sandbox --output=cat")
    new.run(f"rm {drop_in} && systemctl daemon-reload")
    assert new.ready(**QUICK).recap(new.host.name)["changed"] == 0


def test_sudo_that_asks_for_a_terminal(new: New) -> None:
    new.run(
        "apt-get install -qy sudo && useradd -m -s /bin/bash debian && cp -a ~root/.ssh /home/debian/ && "
        "chown -R debian: /home/debian/.ssh && "
        "printf 'Defaults requiretty\ndebian ALL=(ALL) NOPASSWD: ALL\n' > /etc/sudoers.d/site"
    )
    login = {**QUICK, **new.deploy, "host_first_user": "debian"}
    before = new.changes()
    played = new.bootstrap(**login)
    assert played.status != 0
    assert "sudo asks debian for a terminal (requiretty)" in words(played)
    assert "grep -rn requiretty /etc/sudoers /etc/sudoers.d" in words(played)
    assert new.changes() == before
    assert "sudo asks root for a terminal" in words(new.bootstrap("--check", **QUICK))
    new.run("printf 'Defaults:debian !requiretty\nDefaults:deploy !requiretty\n' >> /etc/sudoers.d/site")
    new.ready(**login)
    assert new.ready(**login).recap(new.host.name)["changed"] == 0


def test_su_instead_of_sudo(new: New) -> None:
    new.run(
        "echo root:s3cret | chpasswd && useradd -m -s /bin/bash plain && cp -a ~root/.ssh /home/plain/ && "
        "chown -R plain: /home/plain/.ssh"
    )
    login = {**QUICK, "ansible_user": "plain", "ansible_become_method": "su"}
    played = new.bootstrap(**login)
    assert played.status != 0
    password = json.dumps({"ansible_become_password": "s3cret"})
    new.ready("-e", password, **login)
    assert new.ready("-e", password, **login).recap(new.host.name)["changed"] == 0
    keys = new.deploy["host_deploy_keys"]
    new.ready(
        "-e", password, **{**login, "host_first_user": "plain", "ansible_user": "deploy", "host_deploy_keys": keys}
    )
