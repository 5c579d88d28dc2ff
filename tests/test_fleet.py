"""Several hosts: waves, and one host that fails in one of several ways."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from sandbox import demo
from sandbox import hosts as sandbox
from sandbox.hosts import Host
from tests.conftest import INSTANCE, ROOT, ROUTES, Play, Repository, Running, Site, start
from tests.load import Load
from tests.test_notify import received, to

# Clients and pause of the load on each of twenty hosts, which share two cores.
CLIENTS, PAUSE = (1, 1, 1), 0.5
# Without ControlMaster each task opens a new connection. An open one would still work after sshd has stopped.
APART = "-o ControlMaster=no -o ConnectTimeout=5 -o ServerAliveInterval=3 -o ServerAliveCountMax=3"
# Rules for nft that drop all packets to the SSH port.
CUT = (
    "add table inet cut; add chain inet cut in { type filter hook input priority 0; };"
    " add rule inet cut in tcp dport 22 drop"
)
# A release that works as a candidate everywhere, and fails as the service on a host that has this file.
POISON = "/var/lib/booty/poison"
POISONED = (
    ROUTES
    + f'import os\nif "BOOTY_TELEMETRY_GATE" not in os.environ and os.path.exists("{POISON}"): raise SystemExit(7)\n'
)


@pytest.fixture(scope="module")
def pair(site: Site) -> Site:
    """Bootstrap the bare host of the site too, and return the site."""
    played = site.play("bootstrap.yml", on=site.bare)
    assert played.status == 0, played.output
    return site


def both(site: Site, **variables: str) -> Play:
    """Deploy to both hosts."""
    return site.play("deploy.yml", "--limit", "booty", on=None, **variables)


def serving(*hosts: Host) -> list[str | None]:
    """Return the running release of each host."""
    return [demo.health(host)["release"] for host in hosts]


@pytest.mark.parametrize("canary", ["0", "1"])
def test_a_wave_that_is_judged_bad_goes_back_and_the_next_does_not_start(
    pair: Site, tmp_path: Path, canary: str
) -> None:
    old = pair.release()
    assert both(pair).status == 0
    new = pair.release()
    # app_wave_check runs on the controller after a wave; the file counts its runs.
    log = tmp_path / "seen"
    check = f"echo judged >> {log}; false"
    with Load(pair.host.address, pair.bare.address) as load:
        played = both(pair, app_wave_check=check, app_canary=canary)
    assert played.status != 0
    assert "the wave was judged to be bad" in " ".join(played.output.split())
    assert log.read_text() == "judged\n"
    assert serving(pair.host, pair.bare) == [old, old]
    assert load.report["failures"] == []
    assert set(load.report["releases"]) == {old, new}
    records = pair.bare.ssh("journalctl -t booty-deploy --output=json --output-fields=BOOTY_BY").stdout
    assert (f"takes back {new}" in records) == (canary == "0")
    assert "earlier waves stay" not in played.output


@pytest.mark.parametrize("policy", [pytest.param("wave", marks=pytest.mark.long), "all"])
def test_hosts_that_go_back_when_a_later_wave_fails(pair: Site, tmp_path: Path, policy: str) -> None:
    old = pair.release()
    assert both(pair).status == 0
    new = pair.release()
    flag = tmp_path / "canary"
    with Load(pair.host.address, pair.bare.address) as load:
        # The check passes for the canary and fails for the next wave.
        check = f"! test -e {flag} && touch {flag}"
        played = both(pair, app_wave_check=check, app_failed_run=policy, app_notify_command=to(tmp_path / "told"))
    output = " ".join(played.output.split())
    assert played.status != 0
    assert load.report["failures"] == []
    begin, going_back, failure = received(tmp_path / "told")
    assert [document["event"] for document in (begin, going_back, failure)] == ["begin", "going back", "failure"]
    assert going_back["hosts"] == {"switched": [pair.host.name, pair.bare.name]}
    assert failure["result"] == ("went back" if policy == "all" else "mixed")
    if policy == "all":
        assert failure["hosts"] == {"taken back": [pair.host.name, pair.bare.name]}
        assert serving(pair.host, pair.bare) == [old, old]
        assert f"{pair.host.name}: Went back to {old}, which serves." in output
        assert f"taken back {pair.host.name}, {pair.bare.name}" in output
    else:
        assert serving(pair.host, pair.bare) == [new, old]
        assert f"ansible-playbook rollback.yml -i {pair.inventory} --limit {pair.host.name} PLAY RECAP" in output


@pytest.mark.long
def test_an_unreachable_host_does_not_stop_others_from_going_back(pair: Site, tmp_path: Path) -> None:
    """The canary switches and is then cut off. The next wave fails its check, and goes back all the same."""
    old = pair.release()
    assert both(pair).status == 0
    new = pair.release()
    flag = tmp_path / "canary"
    with pair.host.container._leader() as (pid, _):
        cut = f"nsenter --target {pid} --all systemctl stop ssh.socket ssh.service"
        check = f"if test -e {flag}; then {cut}; exit 1; else touch {flag}; fi"
        try:
            notify = to(tmp_path / "told")
            options = {"app_failed_run": "all", "app_notify_command": notify, "ansible_ssh_args": APART}
            played = both(pair, app_wave_check=check, **options)
        finally:
            inside(pair.host, "systemctl start ssh.service")
    output = " ".join(played.output.split())
    assert played.status != 0
    assert serving(pair.host, pair.bare) == [new, old]
    assert f"{pair.host.name}: Not taken back. It can't be reached any more" in output
    failure = received(tmp_path / "told")[-1]
    assert failure["hosts"] == {"taken back": [pair.bare.name], "unreachable": [pair.host.name]}
    assert failure["result"] == "unknown"
    assert "the wave was judged to be bad" in output


@pytest.mark.long
def test_app_unreachable_decides_about_an_unreachable_host(pair: Site) -> None:
    old = pair.release()
    assert both(pair).status == 0
    new = pair.release()
    cut = "systemctl stop ssh.socket ssh.service; sleep 60; systemctl start ssh.service"
    pair.bare.ssh(f"systemd-run --quiet --unit=cut sh -c '{cut}'")
    pair.run(f"! ssh-keyscan -T 2 {pair.bare.address} 2>/dev/null | grep .")
    name = pair.bare.name
    played = both(pair, ansible_ssh_args=APART)
    assert played.status != 0
    assert f"{name} can't be reached; the reason is above. Nothing was changed" in " ".join(played.output.split())
    assert serving(pair.host, pair.bare) == [old, old]
    played = both(pair, ansible_ssh_args=APART, app_unreachable="skip", app_unreachable_max="0")
    assert "and more than app_unreachable_max (0)" in " ".join(played.output.split())
    assert played.status != 0
    played = both(pair, ansible_ssh_args=APART, app_unreachable="skip")
    assert played.status == 0, played.output
    assert f"{name} is left behind: it was not changed." in " ".join(played.output.split())
    assert serving(pair.host, pair.bare) == [new, old]
    played = pair.play("rollback.yml", "--limit", "booty", on=None, ansible_ssh_args=APART)
    assert played.status != 0
    output = " ".join(played.output.split())
    assert f"{name} did not go back: It can't be reached" in output
    assert f"These hosts went back, and stay there: {pair.host.name}." in output
    assert serving(pair.host, pair.bare) == [old, old]
    deadline = time.monotonic() + 90
    while pair.bare.ssh("true").returncode:
        assert time.monotonic() < deadline
        time.sleep(1)
    assert both(pair).status == 0
    assert serving(pair.host, pair.bare) == [new, new]


def test_a_deploy_waits_for_another(pair: Site) -> None:
    pair.deploy()
    slow = pair.release(text=ROUTES + "import time\ntime.sleep(4)\n")
    first = pair.start("deploy.yml", app_release=slow)
    pair.wait_for("systemctl is-active booty-candidate.service | grep -q activating")
    newer = pair.release()
    second = pair.start("deploy.yml", app_release=newer, app_lock_wait="60")
    assert first.end().status == 0
    played = second.end()
    assert played.status == 0, played.output
    assert serving(pair.host) == [newer]


@dataclass
class Overlap:
    """Two runs of deploy.yml: the second one begins while the first one waits between its two waves."""

    first: Play
    second: Play


def overlap(pair: Site, directory: Path, older: str, newer: str, inventory: Path, **variables: str) -> Overlap:
    """Deploy two releases in two runs: the first run ends while the second one waits between its waves."""
    begun, go_on, ended = (directory / name for name in ("begun", "go-on", "ended"))

    def check(begin: Path, until: Path) -> str:
        return f"touch {begin}; for i in $(seq 300); do test -e {until} && exit 0; sleep 0.1; done; exit 1"

    first_run = pair.start(
        "deploy.yml", "--limit", "booty", on=None, app_release=older, app_wave_check=check(begun, go_on), **variables
    )
    deadline = time.monotonic() + 60
    while not begun.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second_run = start(
        "deploy.yml",
        inventory,
        {**pair.variables, "app_release": newer, "app_wave_check": check(go_on, ended), **variables},
    )
    first = first_run.end()
    ended.touch()
    return Overlap(first, second_run.end())


@pytest.fixture
def reversed_inventory(pair: Site, tmp_path: Path) -> Path:
    """Return the pair's inventory with its hosts in reverse order."""
    inventory = yaml.safe_load((pair.inventory / "hosts.yml").read_text())
    hosts = inventory["booty"]["hosts"]
    inventory["booty"]["hosts"] = {name: hosts[name] for name in reversed(hosts)}
    path = tmp_path / "reversed" / "hosts.yml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(inventory, sort_keys=False))
    return path


def test_an_older_commit_does_not_replace_a_newer_one(pair: Site, tmp_path: Path, reversed_inventory: Path) -> None:
    """The second run takes the hosts in reverse order, so the first run meets the newer commit on its last host."""
    pair.release()
    assert both(pair).status == 0
    older, newer = pair.release(), pair.release()
    runs = overlap(pair, tmp_path, older, newer, reversed_inventory, app_require_ancestor="true")
    output = " ".join(runs.first.output.split())
    assert runs.first.status != 0
    assert f"{older} does not serve: another run was here since this one asked" in output
    assert f"deploys {newer}, at " in output
    assert f"{newer} serves, and was not touched." in output
    assert runs.second.status == 0, runs.second.output
    assert serving(pair.host, pair.bare) == [newer, newer]


def test_two_runs_that_leave_two_releases_fail(pair: Site, tmp_path: Path) -> None:
    """Neither commit descends from the other one."""
    base = pair.release()
    assert both(pair).status == 0
    one = pair.release()
    pair.repository.git("checkout", "--quiet", base)
    other = pair.release()
    pair.repository.git("checkout", "--quiet", "main")
    runs = overlap(pair, tmp_path, one, other, pair.inventory)
    assert runs.first.status == 0, runs.first.output
    assert runs.second.status != 0
    assert f"deploys {one}, at " in " ".join(runs.second.output.split())
    assert serving(pair.host, pair.bare) == [other, one]
    status = pair.play("status.yml", "--limit", "booty", on=None)
    assert status.status != 0
    assert "staging is on 2 releases: " in status.output
    assert "in order" not in status.output.splitlines()[0]


@pytest.mark.long
def test_a_run_replaces_an_ancestor_of_another_run(pair: Site, tmp_path: Path) -> None:
    pair.release()
    assert both(pair).status == 0
    older, newer = pair.release(), pair.release()
    runs = overlap(pair, tmp_path, older, newer, pair.inventory)
    assert (runs.first.status, runs.second.status) == (0, 0), runs.second.output
    assert f"Another run deployed {older} here meanwhile" in " ".join(runs.second.output.split())
    assert serving(pair.host, pair.bare) == [newer, newer]


@pytest.mark.long
def test_a_host_that_another_run_found_in_order_does_not_switch(pair: Site, tmp_path: Path) -> None:
    old = pair.release()
    assert both(pair).status == 0
    new = pair.release()
    ask = f"cd {ROOT} && {sys.executable.replace('python', 'ansible-playbook')} deploy.yml -i {pair.inventory}"
    variables = json.dumps({**pair.variables, "app_release": old})
    check = f"{ask} --limit {pair.bare.name} -e '{variables}'"
    played = both(pair, app_release=new, app_wave_check=check)
    assert played.status != 0
    assert f"deploys {old}, and found it in order, at " in " ".join(played.output.split())
    assert serving(pair.host, pair.bare) == [new, old]
    assert both(pair).status == 0


def test_a_rollback_keeps_what_it_achieved(pair: Site) -> None:
    """First one host fails to go back, then it has no release to go back to. The other host goes back each time."""
    old = pair.release()
    assert both(pair).status == 0
    new = pair.release()
    assert both(pair).status == 0
    one, other = pair.host.name, pair.bare.name

    def rollback(**variables: str) -> tuple[int, str]:
        played = pair.play("rollback.yml", "--limit", "booty", on=None, **variables)
        return played.status, " ".join(played.output.split())

    mend = candidate_fails(pair.bare)
    try:
        with Load(pair.host.address, pair.bare.address) as load:
            status, output = rollback()
    finally:
        mend()
    assert status != 0
    assert serving(pair.host, pair.bare) == [old, new]
    assert load.report["failures"] == []
    assert output.index(f"{one}, {other}: from {new} back to {old}") < output.index("Prove the release and switch")
    assert f"{other} did not go back: {old} does not serve: systemctl start booty-candidate.service" in output
    assert f"These hosts went back, and stay there: {one}." in output
    command = f"ansible-playbook rollback.yml -i {pair.inventory} --limit {other} -e app_release={old}"
    assert f"Fix that, then: {command}" in output
    # The hosts serve different releases, and Booty can't tell which of them is bad.
    status, output = rollback()
    assert status != 0
    assert f"{one}: from {old} back to {new}" in output
    assert "Nothing was changed. Name one release for all: -e app_release=<sha>" in output
    assert serving(pair.host, pair.bare) == [old, new]
    pair.bare.ssh("cp /opt/booty/state.json /run/; echo '{}' > /opt/booty/state.json")
    try:
        status, output = rollback()
    finally:
        pair.bare.ssh("cp /run/state.json /opt/booty/")
    assert status != 0
    assert serving(pair.host, pair.bare) == [new, new]
    assert f"{other}: stays as it is. {other} has no other release that served to go back to." in output
    assert f"{other} did not go back" in output
    status, output = rollback(app_release=new)
    assert status == 0
    assert f"{one}, {other}: serves {new} already" in output


def test_a_release_that_cannot_be_removed_stops_no_wave(pair: Site) -> None:
    # A mount point can't be removed.
    stuck = "/opt/booty/releases/stuck"
    pair.run(f"mkdir -p {stuck}/bin; mount --bind {stuck}/bin {stuck}/bin; touch -d '2 days ago' {stuck}")
    new = pair.release()
    played = both(pair)
    pair.run("umount /opt/booty/releases/.stuck.removed/bin; rm -r /opt/booty/releases/.stuck.removed")
    assert played.status == 0, played.output
    assert serving(pair.host, pair.bare) == [new, new]
    message = f"But old releases can't be removed: {stuck}: Device or resource busy. Remove them by hand."
    assert played.output.count(message) == 2
    assert played.output.index("PLAY RECAP") < played.output.rindex("But old releases can't be removed")


def test_the_journal_names_who_did_what(pair: Site) -> None:
    before = pair.health()["release"]
    sha = pair.release()
    pair.deploy()
    refused = pair.play("deploy.yml", app_environment="production", app_user="nobody-there")
    assert refused.status != 0
    lines = pair.run("journalctl -t booty-deploy --output=json --lines=20").splitlines()
    records = [record for record in map(json.loads, lines) if "BOOTY_RESULT" in record]
    switched, refusal = records[-2:]
    assert switched["BOOTY_RESULT"] == "switched"
    assert (switched["BOOTY_FROM"], switched["BOOTY_RELEASE"]) == (before, sha)
    assert f"deploys {sha}" in switched["BOOTY_BY"]
    assert float(switched["BOOTY_SECONDS"]) > 0
    assert refusal["BOOTY_RESULT"] == "refused"
    assert "lacks the user nobody-there" in refusal["MESSAGE"]


@dataclass
class Fleet:
    """Twenty hosts, and the playbooks on all of them."""

    hosts: list[Host]
    inventory: Path
    repository: Repository
    variables: dict[str, str]

    def start(self, playbook: str, **variables: str) -> Running:
        return start(playbook, self.inventory, {**self.variables, **variables})

    def release(self, text: str = ROUTES) -> str:
        self.repository.write("app/src/booty/routes.py", f"{text}# {time.monotonic()}\n")
        return self.repository.commit("Another")

    def load(self) -> Load:
        return Load(*(host.address for host in self.hosts), clients=CLIENTS, pause=PAUSE)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    directory, name = tmp_path_factory.mktemp("fleet"), f"{INSTANCE}-fleet"
    inventory = directory / "inventory" / "hosts.yml"
    off = ("host_firewall", "host_time_sync", "host_security_updates", "host_close_ssh")
    try:
        hosts = sandbox.up(name, 20, with_tracker=False, inventory=inventory)
        repository = Repository(directory / "repository")
        shared = Fleet(
            hosts,
            inventory,
            repository,
            {**repository.variables(directory), **dict.fromkeys(off, "false")},
        )
        played = shared.start("bootstrap.yml").end()
        assert played.status == 0, played.output
        shared.release()
        played = shared.start("deploy.yml").end()
        assert played.status == 0, played.output
        yield shared
    finally:
        sandbox.down(name)


def unreachable_before(host: Host) -> Callable[[], object]:
    host.ssh("systemd-run --quiet --unit=cut sh -c 'systemctl stop ssh.socket ssh.service'")
    return lambda: inside(host, "systemctl start ssh.service")


def cut_off(host: Host, condition: str) -> Callable[[], object]:
    """Drop all packets to the SSH port of a host as soon as a command succeeds on it."""
    host.ssh("apt-get install -qy nftables", timeout=120)
    host.ssh(f"systemd-run --quiet --unit=cut bash -c 'until {condition}; do sleep 0.05; done; nft \"{CUT}\"'")
    return lambda: inside(host, "nft delete table inet cut")


def unreachable_in_the_middle(host: Host) -> Callable[[], object]:
    return cut_off(host, "! systemctl is-active booty-candidate.service | grep -q inactive")


def disk_full(host: Host) -> Callable[[], object]:
    copy = "mkdir /run/full; mount -t tmpfs -o size=20m tmpfs /run/full; cp -a /opt/booty/releases/. /run/full"
    host.ssh(f"{copy}; mount --bind /run/full /opt/booty/releases; cat /dev/zero > /run/full/rest")
    return lambda: host.ssh("umount /opt/booty/releases /run/full")


def candidate_fails(host: Host) -> Callable[[], object]:
    dropin = "/etc/systemd/system/booty-candidate.service.d"
    host.ssh(f"mkdir -p {dropin}; printf '[Service]\nExecStartPre=/bin/false\n' > {dropin}/x.conf")
    host.ssh("systemctl daemon-reload")
    return lambda: host.ssh(f"rm -r {dropin}; systemctl daemon-reload")


def restarts(host: Host) -> Callable[[], object]:
    """Give the service a drop-in that the candidate lacks: then no process is adopted, and each switch restarts it."""
    dropin = "/etc/systemd/system/booty.service.d"
    host.ssh(f"mkdir -p {dropin}; printf '[Service]\nNice=0\n' > {dropin}/nice.conf; systemctl daemon-reload")
    return lambda: host.ssh(f"rm -r {dropin}; systemctl daemon-reload")


def dies_after_the_switch(host: Host) -> Callable[[], object]:
    adopts_again = restarts(host)
    host.ssh(f"touch {POISON}; chmod 0644 {POISON}")
    return lambda: (host.ssh(f"rm {POISON}"), adopts_again())


def inside(host: Host, command: str) -> None:
    """Run a command on a host that SSH does not reach."""
    with host.container._leader() as (pid, _):
        subprocess.run(["nsenter", "--target", str(pid), "--all", "sh", "-c", command], check=True, timeout=60)


# For each way to break a host: the release that then serves on the canary, on that host and on all others.
WAYS: dict[Callable[[Host], Callable[[], object]], tuple[str, str, str]] = {
    unreachable_before: ("old", "old", "old"),
    # A host that notices that its controller is gone does not switch.
    unreachable_in_the_middle: ("new", "old", "old"),
    disk_full: ("old", "old", "old"),
    candidate_fails: ("new", "old", "old"),
    dies_after_the_switch: ("new", "old", "old"),
}


@pytest.mark.long
def test_a_host_that_is_cut_off_before_the_switch_does_not_switch(pair: Site) -> None:
    old = pair.release()
    assert both(pair).status == 0
    new = pair.release(text=ROUTES + "import time\ntime.sleep(2)\n")
    mend = unreachable_in_the_middle(pair.bare)
    try:
        with Load(pair.host.address, pair.bare.address) as load:
            played = both(pair, app_canary="0", ansible_ssh_args=APART)
    finally:
        mend()
    assert played.status != 0
    assert serving(pair.host, pair.bare) == [old, old]
    assert load.report["failures"] == []
    journal = pair.bare.ssh("journalctl -t booty-deploy -n 5").stdout
    assert f"{new} does not serve" in journal
    assert "the controller is gone" in journal


@pytest.mark.long
def test_a_host_that_is_cut_off_before_its_cutover_keeps_its_release(pair: Site, tmp_path: Path) -> None:
    """The host already serves the run's release. The message must still say that this run did not switch it."""
    before = pair.release()
    assert both(pair).status == 0
    release = pair.release()
    assert both(pair).status == 0
    # The host is cut off from the end of the canary's wave until the next wave has failed.
    pair.bare.ssh("apt-get install -qy nftables", timeout=120)
    flag = tmp_path / "canary"
    with pair.bare.container._leader() as (pid, _):
        inside_it = f"nsenter --target {pid} --all nft"
        cut = f"{inside_it} '{CUT}'; (sleep 7; {inside_it} delete table inet cut) >/dev/null 2>&1 &"
        check = f"test -e {flag} || {{ touch {flag}; {cut} }}"
        played = both(pair, app_restart="true", app_wave_check=check, ansible_ssh_args=APART)
    assert played.status != 0
    assert "It can't be reached any more" in " ".join(played.output.split())
    assert f"{release} serves, and not by this run: it stays." in " ".join(played.output.split())
    assert serving(pair.host, pair.bare) == [release, release]
    assert before != release


@pytest.mark.long
def test_a_host_that_is_cut_off_after_the_switch_goes_back_once_reachable(pair: Site) -> None:
    """The host ends its cutover by itself. Booty asks it once more when the wave goes back."""
    old = pair.release()
    assert both(pair).status == 0
    # Without an adoption, the release starts once more after the pointer moved: 14 s. ssh gives up after 9 to 12 s.
    new = pair.release(text=ROUTES + "import time\ntime.sleep(14)\n")
    adopts_again = restarts(pair.bare)
    mend = cut_off(pair.bare, f"grep -q {new} /etc/booty/release.env")
    with Load(pair.host.address, pair.bare.address) as load:
        run = pair.start("deploy.yml", "--limit", "booty", on=None, app_canary="0", ansible_ssh_args=APART)
        inside(pair.bare, "until nft list table inet cut >/dev/null 2>&1; do sleep 0.1; done; sleep 14")
        mend()
        played = run.end()
    adopts_again()
    output = " ".join(played.output.split())
    assert played.status != 0
    assert f"Failed hosts: {pair.bare.name}" in output
    assert re.search("It can't be reached any more: .* Went back to " + old, output)
    assert "earlier waves stay" not in output
    assert serving(pair.host, pair.bare) == [old, old]
    assert load.report["failures"] == []


@pytest.mark.long
@pytest.mark.parametrize("break_it", WAYS, ids=lambda way: way.__name__)
def test_one_of_twenty_hosts_fails(fleet: Fleet, break_it: Callable[[Host], Callable[[], object]]) -> None:
    """No host loses a request, the other hosts serve the release of the policy, and one more deploy mends the fleet."""
    canary, victim = fleet.hosts[0], fleet.hosts[7]
    old = demo.health(canary)["release"]
    new = fleet.release(POISONED if break_it is dies_after_the_switch else ROUTES)
    mend = break_it(victim)
    try:
        with fleet.load() as load:
            played = fleet.start("deploy.yml", ansible_ssh_args=APART).end()
            time.sleep(8)  # by then the host has ended what it does without the controller
    finally:
        mend()
    assert played.status != 0
    assert load.report["failures"] == []
    requests = load.report["requests"]
    assert requests > 20 * 3
    expected = {canary: 0, victim: 1}
    names = {"old": old, "new": new}
    for host in fleet.hosts:
        state = WAYS[break_it][expected.get(host, 2)]
        assert demo.health(host)["release"] == names[state], (host.name, played.output)
    with fleet.load() as load:
        played = fleet.start("deploy.yml").end()
    assert played.status == 0, played.output
    assert load.report["failures"] == []
    # The figures of docs/scale.md: pytest -rP shows them.
    print(f"{break_it.__name__}: {requests} and {load.report['requests']} requests, none failed")
    assert {demo.health(host)["release"] for host in fleet.hosts} == {new}
