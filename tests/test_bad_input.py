"""Mistakes of a user and unfit hosts: each is refused with a message that says what to do, before any change.

Bad values are refused before a host is asked. The unfit hosts are real ones.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox import hosts
from tests.conftest import ROOT, Play, Repository, Site, words


def deploy(inventory: Path, *arguments: str, playbook: str = "deploy.yml") -> Play:
    """Deploy to the hosts of an inventory, as a user does."""
    command = [str(Path(sys.executable).parent / "ansible-playbook"), playbook, "-i", str(inventory), *arguments]
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "COLUMNS": "200"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Play(done.returncode, done.stdout)


def ambiguous(repository: Repository) -> str:
    """Add commits until two SHAs share their first four characters, and return these."""
    stream = "".join(
        f"commit refs/heads/many\ncommitter T <t@example.com> {number} +0000\ndata 0\n\n" for number in range(1500)
    )
    subprocess.run(["git", "-C", repository.path, "fast-import", "--quiet"], input=stream, text=True, check=True)
    prefixes: set[str] = set()
    for sha in repository.git("rev-list", "many").split():
        if sha[:4] in prefixes:
            return sha[:4]
        prefixes.add(sha[:4])
    raise AssertionError("1500 commits, and no two that begin alike")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ("app_port=70000", 'app_port is "70000": write a port, 1 to 65535. Nothing was changed.'),
        ('{"app_environment": "two words"}', 'app_environment is "two words": write 1 to 64 characters without blanks'),
        (
            "app_canary=-1 app_waves=150%",
            'app_canary is "-1": write a whole number, 0 or more. app_waves is "150%": write',
        ),
        ('{"app_waves": []}', "app_waves is []: write a list such as"),
        ("app_telemetry_gate=perhaps", 'app_telemetry_gate is "perhaps": write true or false.'),
        ("app_artifact_url=ftp://store.invalid", "write an address that begins with http:// or https://, without user"),
        ("app_log_format=xml", 'app_log_format is "xml": write text or json.'),
        ("app_port={{omit}}", "app_port is omit, which is no value: remove the line, and the default counts."),
        ("app_port={{nowhere_set}}", "app_port can't be evaluated: 'nowhere_set' is undefined. Define that"),
        (
            "app_release=nowhere",
            "Name a SHA, a tag or a branch that it holds, or fetch it first. Its latest commits are:",
        ),
        (f"app_release={'0' * 40}", f"app_release '{'0' * 40}' names no single commit"),
        ("app_release=ambiguous", "is ambiguous"),
    ],
)
def test_bad_values(tmp_path: Path, repository: Repository, variables: str, message: str) -> None:
    (tmp_path / "hosts").write_text("[booty]\nnowhere.invalid app_environment=staging\n")
    if variables == "app_release=ambiguous":
        variables = f"app_release={ambiguous(repository)}"
    played = deploy(tmp_path / "hosts", "-e", f"app_repository={repository.path}", "-e", variables)
    assert played.status != 0
    assert message in words(played), played.output
    # ssh prints this as soon as Ansible asks the host.
    assert "Could not resolve" not in played.output


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ("app_path=/srv/app", "app_path '/srv/app' leads out of app_repository. Name the app's folder relative to"),
        (
            "app_repository={0}/app app_path=src",
            "app_repository {0}/app is a folder of the repository {0}. Name the repository, and the app's folder in it:"
            " app_repository: {0}, app_path: app/src",
        ),
        ("app_repository=/", "app_repository / can't be read: fatal: not a git repository"),
    ],
)
def test_an_unfit_repository(tmp_path: Path, repository: Repository, variables: str, message: str) -> None:
    (tmp_path / "hosts").write_text("[booty]\nnowhere.invalid app_environment=staging\n")
    options = variables.format(repository.path)
    played = deploy(tmp_path / "hosts", "-e", f"app_repository={repository.path}", "-e", options)
    assert played.status != 0
    assert message.format(repository.path) in words(played), played.output
    assert "Could not resolve" not in played.output


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"host_firewall_ports": [0]}, "host_firewall_ports is [0]: write ports, 1 to 65535."),
        ({"host_deploy_user": "booty"}, "host_deploy_user is booty, which is the service's user"),
        ({"host_ssh_root": False}, "host_ssh_root is false: write host_deploy_keys as well"),
    ],
)
def test_bad_values_of_role_host(tmp_path: Path, variables: dict[str, Any], message: str) -> None:
    (tmp_path / "hosts").write_text("[booty]\nnowhere.invalid\n")
    played = deploy(tmp_path / "hosts", "-e", json.dumps(variables), playbook="bootstrap.yml")
    assert played.status != 0
    assert message in words(played), played.output
    assert "Could not resolve" not in played.output


def test_bad_values_of_several_hosts(tmp_path: Path) -> None:
    """Variables that may differ between hosts, and one that must be equal on all of them."""
    (tmp_path / "hosts.yml").write_text(
        """
booty:
  vars:
    app_environment: staging
    app_cache: "{{ playbook_dir }}/{{ app_path }}"  # evaluated with a variable of Ansible's and a role's default
  hosts:
    web1.invalid: {app_port: 8000.5, app_workers: yes, app_release: v1}
    web2.invalid: {app_release: v2, app_user: "{{ 'ro' ~ 'ot' }}"}
    elsewhere.invalid: {app_port: many}
"""
    )
    limit = ("--limit", "!elsewhere.invalid")
    played = deploy(tmp_path / "hosts.yml", *limit)
    assert played.status != 0
    assert "app_port of web1.invalid is 8000.5: write a port, 1 to 65535." in words(played)
    assert "app_workers of web1.invalid is true: write a whole number, 1 or more." in words(played)
    assert 'app_user of web2.invalid is "root": write a user' in words(played)
    assert "elsewhere" not in played.output
    assert "app_cache" not in played.output
    played = deploy(tmp_path / "hosts.yml", *limit, "-e", "app_port=1 app_workers=1 app_user=web")
    assert (
        'app_release must be equal on all hosts of a run and is "v1" on web1.invalid; "v2" on web2.invalid. Write one'
        " value, in group_vars/booty.yml. Nothing was changed."
    ) in words(played)
    assert "Could not resolve" not in played.output


@pytest.mark.parametrize("url", ["https://me:hunter2@store.invalid/booty", "https://store.invalid/booty?key=hunter2"])
def test_a_store_with_a_secret_is_refused_and_not_shown(tmp_path: Path, repository: Repository, url: str) -> None:
    (tmp_path / "hosts").write_text(
        f"[booty]\nnowhere.invalid app_environment=staging app_repository={repository.path} app_artifact_url='{url}'\n"
    )
    played = deploy(tmp_path / "hosts", "-vvv", "--diff")
    assert played.status != 0
    assert "write an address that begins with http:// or https://, without user, password" in words(played)
    assert "hunter2" not in played.output


@pytest.mark.parametrize(
    ("inventory", "limit", "message"),
    [
        ("[booty]\na\n[db]\nb\n", "b", "The inventory has no host in the group 'booty' that --limit b leaves."),
        ("[booty]\na\n[db]\nb\n", "localhost", "--limit leaves us with no hosts to target"),
        ("[booty]\na\n", "c", "--limit leaves us with no hosts to target"),
        ("[booty]\n[db]\nb\n", "all", "has no host in the group 'booty'"),
    ],
)
def test_a_limit_that_leaves_no_host(tmp_path: Path, inventory: str, limit: str, message: str) -> None:
    (tmp_path / "hosts").write_text(inventory)
    played = deploy(tmp_path / "hosts", "--limit", limit)
    assert played.status != 0
    assert message in words(played), played.output


@pytest.fixture
def untouched(site: Site) -> Iterator[None]:
    """Check after the test that the host's units and files are unchanged."""
    look = (
        "systemctl show booty.service booty-candidate.service --property=MainPID,ActiveState,InvocationID;"
        "find /etc/booty /etc/systemd /opt/booty /var/lib/booty -xdev -printf '%p %m %u %s %T@\n' | sort | sha256sum"
    )
    if site.run("systemctl show booty.service --property=MainPID --value") == "0":
        site.deploy()
    before = site.run(look)
    yield
    assert site.run(look) == before


@pytest.mark.usefixtures("untouched")
class TestACommit:
    """Deploys of unfit commits, to a host that already serves a release."""

    def refused(self, site: Site, message: str, **variables: str) -> None:
        played = site.play("deploy.yml", on=None, **variables)
        assert played.status != 0
        assert message in words(played), played.output

    def test_without_an_app(self, site: Site, repository: Repository) -> None:
        repository.git("rm", "--quiet", "app/pyproject.toml", "app/src/booty/main.py")
        sha = repository.commit("Lose it")
        self.refused(
            site,
            f"app at commit {sha[:12]} has no app that Booty finds",
            app_repository=str(repository.path),
            app_path="app",
        )

    def test_whose_lock_is_out_of_date(self, site: Site, repository: Repository) -> None:
        text = (repository.path / "app/pyproject.toml").read_text()
        repository.write("app/pyproject.toml", text.replace('"fastapi",', '"fastapi>=99",'))
        sha = repository.commit("Want more")
        self.refused(
            site,
            f"The lock of commit {sha[:12]} is out of date: app/pyproject.toml wants fastapi>=99, but",
            app_repository=str(repository.path),
            app_path="app",
        )
        self.refused(
            site,
            "Lock again there, and commit: uv pip compile --universal --generate-hashes pyproject.toml",
            app_repository=str(repository.path),
            app_path="app",
        )

    def test_that_does_not_descend_from_the_running_release(self, site: Site, repository: Repository) -> None:
        sha, serves = repository.git("rev-parse", "HEAD"), site.health()["release"]
        self.refused(
            site,
            f"{site.host.name} serves {serves}, which is no ancestor of {sha} in {repository.path}, so its"
            " changes would be lost. Fetch and merge it first, or deploy without them: -e app_require_ancestor=false",
            app_repository=str(repository.path),
            app_path="app",
            app_require_ancestor="true",
        )

    def test_that_the_host_has_built_from_other_settings(self, site: Site) -> None:
        serves = site.health()["release"]
        self.refused(
            site,
            f"{site.host.name} has {serves} already, built from serve booty.main:create_app() and not from serve"
            " other:app. Two builds of one commit can't differ, so deploy another commit: git commit --allow-empty",
            app_release=str(serves),
            app_serve="other:app",
        )


def test_a_deploy_requires_a_descendant_and_a_rollback_does_not(site: Site) -> None:
    site.deploy()
    older = site.health()["release"]
    site.release()
    site.deploy(app_require_ancestor="true")
    newer = site.health()["release"]
    assert newer != older
    played = site.play("deploy.yml", app_require_ancestor="true", app_release=str(older))
    assert f"serves {newer}, which is no ancestor of {older}" in words(played)
    played = site.play("rollback.yml", app_require_ancestor="true", app_release=str(older))
    assert played.status == 0, played.output
    assert site.health()["release"] == older


# A sitecustomize.py changes Python's view of the host, because sandbox hosts share this machine's clock and processor,
# and no suite has an older Python. Everything else in these tests is real.
CUSTOMIZE = "/etc/python3.11/sitecustomize.py"
PYTHON_3_10 = """
import sys
class Version(tuple):
    major, minor = 3, 10
sys.version_info = Version((3, 10, 12, "final", 0))
"""


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("pretended", "message"),
    [
        (PYTHON_3_10, r"has Python 3.10; Booty needs 3.11 or newer \(Debian 12 or newer\). Nothing was changed."),
        (
            "import platform; platform.machine = lambda: 'riscv64'",
            "is riscv64; releases are built for x86_64 and aarch64, 64 bit. Take such a machine. Nothing was changed.",
        ),
        (
            "import platform, sys; platform.machine = lambda: 'armv7l'; sys.maxsize = 2**31 - 1",
            "is 32-bit armv7l; releases are built for x86_64 and aarch64, 64 bit.",
        ),
        (
            "import time; right = time.time; time.time = lambda: right() - 7200",
            "differ by 7(199|200|201) seconds: errors would show at wrong times, and TLS may fail. See which is wrong,"
            " and set it: timedatectl Nothing was changed.",
        ),
    ],
    ids=["Python 3.10", "another architecture", "32 bit", "clock two hours off"],
)
def test_unfit_hosts(site: Site, pretended: str, message: str) -> None:
    site.release()
    site.run(f"cp -a {CUSTOMIZE} /root/sitecustomize.py; cat > {CUSTOMIZE}", input=pretended)
    try:
        played = site.play("deploy.yml")
    finally:
        site.run(f"mv /root/sitecustomize.py {CUSTOMIZE}")
    assert played.status != 0
    assert re.search(message, words(played)), played.output


@pytest.mark.usefixtures("untouched")
def test_a_disk_that_is_nearly_full(site: Site) -> None:
    sha = site.release()
    site.run("mount -t tmpfs -o size=150M tmpfs /opt/booty && mkdir /opt/booty/releases /opt/booty/layers")
    try:
        played = site.play("deploy.yml")
        assert site.run("find /opt/booty -mindepth 2") == ""
    finally:
        site.run("umount /opt/booty")
    assert played.status != 0
    assert (
        f"{site.host.name} has 157 MB left for /opt/booty; a release may need 200. Make room there: apt-get clean;"
        " journalctl --vacuum-size=100M. Or keep fewer releases: app_keep_releases Nothing was changed."
    ) in words(played)
    assert sha not in site.run("ls /opt/booty/releases")


TAKER = """
import socket, time
held = socket.create_server(('127.0.0.1', 8082))
both = socket.create_server(('::', 8084), family=socket.AF_INET6, dualstack_ipv6=True)
time.sleep(60)
"""


@pytest.mark.usefixtures("untouched")
def test_a_port_that_is_taken(site: Site) -> None:
    """The port is taken by a program, on an overlapping address, or by another app's socket unit."""
    site.run(f'systemd-run --quiet --unit=taker python3 -c "{TAKER}"')
    site.run("systemd-run --quiet --unit=other --socket-property=ListenStream=127.0.0.1:8085 sleep 60")
    try:
        site.wait_for("ss -ltn | grep -q :8084")
        pid = site.run("systemctl show taker.service --property=MainPID --value")
        for port, taker in (
            ("8082", f"python3 (PID {pid}) on 127.0.0.1:8082"),
            ("8084", f"python3 (PID {pid}) on [::]:8084"),
            ("8085", "other.socket on 127.0.0.1:8085"),
        ):
            played = site.play("deploy.yml", app_port=port)
            assert played.status != 0
            assert (
                f"0.0.0.0:{port} is taken on {site.host.name}: {taker}. Stop that, or choose another app_port."
                " Nothing was changed."
            ) in words(played)
    finally:
        site.run("systemctl stop taker.service other.socket")


@pytest.mark.usefixtures("untouched")
def test_another_user_while_the_old_one_serves(site: Site) -> None:
    site.run("useradd --system other")
    try:
        played = site.play("deploy.yml", app_user="other")
    finally:
        site.run("userdel other")
    assert played.status != 0
    assert (
        f"{site.host.name} serves as the user booty, and a deploy would give /var/lib/booty to other while that"
        " service runs. Stop it first; requests are refused until the deploy ends: systemctl stop booty.socket"
        " booty.service"
    ) in words(played)


def test_a_port_that_the_firewall_closes_is_reported(site: Site) -> None:
    try:
        played = site.deploy(app_port="8083")
        assert (
            f"But the firewall of {site.host.name} lets in TCP 22, 8000 and not app_port 8083. Open it:"
            " ansible-playbook bootstrap.yml"
        ) in words(played)
    finally:
        played = site.deploy()
    assert "But the firewall" not in played.output


def inventory(site: Site, directory: Path, **variables: str) -> Path:
    """Write an inventory of the site's host, with these variables changed or added."""
    options = hosts.ssh_options(site.host.instance)
    known = {
        "ansible_host": site.host.address,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": options[1],
        "ansible_ssh_common_args": " ".join(options[2:]),
        "app_environment": "staging",
        "app_repository": str(site.repository.path),
        "app_path": "app",
        **variables,
    }
    text = " ".join(f"{name}='{value}'" for name, value in known.items())
    (directory / "hosts").write_text(f"[booty]\n{site.host.name} {text}\n")
    return directory / "hosts"


def no_name(site: Site, directory: Path) -> dict[str, str]:
    return {"ansible_host": "nowhere.invalid"}


def wrong_key(site: Site, directory: Path) -> dict[str, str]:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / "key"], check=True)
    return {"ansible_ssh_private_key_file": str(directory / "key")}


def another_host_key(site: Site, directory: Path) -> dict[str, str]:
    wrong_key(site, directory)
    public = (directory / "key.pub").read_text()
    (directory / "known_hosts").write_text(f"{site.host.address} {public}")
    options = f"-o UserKnownHostsFile={directory}/known_hosts -o StrictHostKeyChecking=yes -o BatchMode=yes"
    return {"ansible_ssh_common_args": options}


def another_user(site: Site, directory: Path) -> dict[str, str]:
    return {"ansible_become_user": "nobody"}


def sudo_asks(site: Site, directory: Path) -> dict[str, str]:
    site.run(
        "id somebody 2>/dev/null || useradd --create-home --shell /bin/bash --groups sudo somebody;"
        "install -D -o somebody -m 0600 /root/.ssh/authorized_keys /home/somebody/.ssh/authorized_keys;"
        "chown -R somebody: /home/somebody"
    )
    return {"ansible_user": "somebody"}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (no_name, "Could not resolve hostname nowhere.invalid: Name or service not known"),
        (wrong_key, "Permission denied (publickey)."),
        (another_host_key, "REMOTE HOST IDENTIFICATION HAS CHANGED!"),
        (another_user, "Booty needs root on a host, and became the user with the ID 65534. Remove ansible_become and"),
        (sudo_asks, "Missing sudo password"),
    ],
)
def test_hosts_that_refuse_the_login(
    site: Site, tmp_path: Path, wrong: Callable[[Site, Path], dict[str, str]], message: str
) -> None:
    """The messages are those of Ansible and ssh; docs/new-host.md has the next step for each."""
    # Without ControlPath ssh can't reuse an open connection, so it has to log in.
    played = deploy(inventory(site, tmp_path, **wrong(site, tmp_path)), "-e", "ansible_control_path=none")
    assert played.status != 0
    assert message in words(played), played.output
