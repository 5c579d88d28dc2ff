"""The release command and the post-deploy command: once a run, on one host, and what each failure leaves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import fleet, judge, rollback
from booty_host.app import App
from booty_host.state import State

from sandbox import hosts as sandbox
from sandbox.demo import health
from sandbox.hosts import Host
from tests.conftest import INSTANCE, Play, Repository, Running, Site, start, words

# Each run of the command adds a line.
LOG = "/var/lib/booty/migrations"
MIGRATE = f"echo migrating; sleep 0.5; echo $SENTRY_RELEASE >> {LOG}"


def entry(name: str, release: str, **fields: Any) -> dict[str, Any]:
    known = {"kind": "release", "command": ["migrate"], "at": int(name), "result": "done", "before": []}
    return {"id": name, "release": release, **known, **fields}


@pytest.mark.parametrize(
    ("options", "of_commit", "wanted"),
    [
        ({}, {}, ([], [], [])),
        ({}, {"release_command": ["a"], "post_deploy_command": ["b"]}, (["a"], ["b"], ["place", "post_deploy"])),
        ({"app_release_command": ["c"]}, {"release_command": ["a"]}, (["c"], [], ["place"])),
        # `true` is the way to run none although the commit has some.
        ({"app_release_command": ["true"]}, {"release_command": ["a"]}, ([], [], [])),
        ({"app_timers": {"nightly": {"one_host": True}}}, {}, ([], [], ["place"])),
        ({}, {"processes": {"worker": {"one_host": False}}}, ([], [], [])),
        ({"app_one_host": "web2"}, {}, ([], [], ["place"])),
        ({"app_domains": ["shop.example"]}, {}, ([], [], ["proxy"])),
    ],
)
def test_what_a_deploy_does_beside_the_cutover(
    options: dict[str, Any], of_commit: dict[str, Any], wanted: tuple[list[str], ...]
) -> None:
    none = {"app_release_command": [], "app_post_deploy_command": [], "app_domains": [], "app_one_host": ""}
    beside = judge.beside_cutover({**none, "app_processes": {}, "app_timers": {}, **options}, of_commit)
    assert (beside["release_command"], beside["post_deploy_command"], beside["steps"]) == wanted


def test_a_host_remembers_the_commands_that_ran_since_a_release_served(tmp_path: Path) -> None:
    app = App("shop", tmp_path)
    app.opt.mkdir(parents=True)
    state = State.load(app)
    state.serve("a")
    state.note([entry("2", "b", before=["x"]), entry("1", "a"), entry("3", "b", kind="post-deploy")])
    state.serve("b")
    state = State.load(app)
    assert [each["id"] for each in state.commands] == ["1", "2", "3"]
    assert [each["id"] for each in state.between("a")] == ["1", "2"]
    assert state.between("a", "b")[0]["release"] == "b"
    assert state.between("b") == []
    # `a` has served with the changes of `b` now.
    state.serve("a")
    assert State.load(app).between("a") == []
    assert State.load(app).between("b") == []


def test_commands_ran_if_the_last_ones_were_the_same(tmp_path: Path) -> None:
    state = State(App("shop", tmp_path), [], {}, {}, [], {}, {})
    state.note([entry("1", "a")])
    assert state.ran("release", "a", ["migrate"])
    assert not state.ran("post-deploy", "a", ["migrate"])
    assert not state.ran("release", "a", ["other"])
    state.note([entry("2", "b", result="began")])
    assert not state.ran("release", "b", ["migrate"])
    assert not state.ran("release", "a", ["migrate"])
    state.note([entry("2", "b")])
    # A record that a run read while the command ran does not count any more.
    state.note([entry("2", "b", result="began")])
    assert state.ran("release", "b", ["migrate"])


def test_the_records_of_hosts_are_merged() -> None:
    began, done = entry("2", "b", result="began"), entry("2", "b")
    assert fleet.records([[entry("3", "c"), done], [began], [entry("1", "a")]], []) == [
        entry("1", "a"),
        done,
        entry("3", "c"),
    ]


def test_one_host_that_would_go_over_a_command_stops_the_rollback() -> None:
    answer = {"host": {"running": {"SENTRY_RELEASE": "b"}, "pointer": {}}, "release": "a", "problems": []}
    _, refusal = rollback.plan({"web1": {**answer, "crosses": "web1 would."}, "web2": {**answer, "crosses": ""}})
    assert refusal == "web1 would.\nNothing was changed."
    assert rollback.plan({"web2": {**answer, "crosses": ""}})[1] == ""


def test_an_ancestor_of_what_serves_is_older(repository: Repository) -> None:
    older = repository.git("rev-parse", "HEAD")
    repository.write("new", "")
    newer = repository.commit("two")
    options = {"app_repository": str(repository.path)}

    def host(release: str) -> dict[str, Any]:
        return {"running": {}, "pointer": {"SENTRY_RELEASE": release} if release else {}}

    assert judge.is_older(host(newer), options, older)
    # A host that was left behind goes forward; the others of its fleet stay where they are.
    assert not judge.is_older(host(older), options, newer)
    assert not judge.is_older(host(newer), options, newer)
    assert not judge.is_older(host(""), options, newer)
    assert not judge.is_older(host("0" * 40), options, newer)


def test_a_refusal_names_each_command_on_a_line_of_its_own() -> None:
    old, new = "a1" * 20, "b2" * 20
    ran = {"before": [old], "command": ["pg_dump", "migrate"], "release": new}
    host = {"running": {"SENTRY_RELEASE": new}, "pointer": {}, "commands": [ran]}
    assert judge.commands_between(host, {"app_rollback_over_commands": False}, old, "web1").splitlines() == [
        "web1 would go from b2b2b2b2b back to a1a1a1a1a. Since a1a1a1a1a served, release commands ran:",
        "  pg_dump (of b2b2b2b2b)",
        "  migrate (of b2b2b2b2b)",
        "Their changes would stay, and a1a1a1a1a may not fit them. If it does: -e app_rollback_over_commands=true",
    ]


@pytest.fixture(scope="module")
def served(site: Site) -> Site:
    site.release()
    site.deploy()
    site.run(f"rm -f {LOG}")
    return site


def deploy(site: Site, command: str = MIGRATE, *arguments: str, **variables: str) -> Play:
    return site.play("deploy.yml", *arguments, on=None, **{"app_release_command": command, **variables})


def wait_for(running: Running, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in running.so_far():
        assert time.monotonic() < deadline, running.so_far()
        time.sleep(0.05)


def test_it_runs_once_from_the_new_release_before_the_switch(served: Site) -> None:
    before, sha = served.health()["release"], served.release()
    running = served.start("deploy.yml", app_release_command=f"{MIGRATE}; sleep 2")
    wait_for(running, "           migrating\n")
    assert served.health()["release"] == before
    played = running.end()
    assert played.status == 0, played.output
    assert served.run(f"cat {LOG}") == sha
    again = deploy(served, f"{MIGRATE}; sleep 2")
    assert (again.status, again.recap(served.host.name)["changed"]) == (0, 0)
    restarted = deploy(served, f"{MIGRATE}; sleep 2", app_restart="true")
    assert f"{sha} ran it last, so it does not run again." in restarted.output
    assert served.run(f"cat {LOG}") == sha
    assert "migrating" in served.run("journalctl -t booty-release -o cat")


def test_a_rollback_over_it_is_refused_unless_it_is_asked_for(served: Site) -> None:
    before = str(served.health()["release"])
    sha = served.release()
    assert deploy(served).status == 0
    refused = served.play("rollback.yml")
    assert refused.status == 2
    assert f"would go from {sha[:9]} back to {before[:9]}. Since {before[:9]} served, release" in words(refused)
    assert f"sleep 0.5; echo $SENTRY_RELEASE >> {LOG} (of {sha[:9]})" in words(refused)
    assert served.health()["release"] == sha
    back = served.play("rollback.yml", app_rollback_over_commands="true")
    assert (back.status, served.health()["release"]) == (0, before), back.output
    # Each has served with the changes of the command.
    for release in (sha, before, sha):
        assert served.play("rollback.yml").status == 0
        assert served.health()["release"] == release
    assert served.run(f"cat {LOG}").splitlines().count(sha) == 1
    # `true` is the way to run none although the commit has some.
    served.release()
    assert deploy(served, "true").status == 0
    assert served.play("rollback.yml").status == 0
    assert served.health()["release"] == sha


def test_a_deploy_of_an_older_commit_over_it_is_refused(served: Site) -> None:
    before = served.health()["release"]
    sha = served.release()
    assert deploy(served).status == 0
    refused = deploy(served, app_release=str(before))
    assert refused.status == 2
    old = str(before)[:9]
    assert f"would go from {sha[:9]} back to {old}. Since {old} served, release commands ran:" in words(refused)
    assert f"{before} is older than {sha}, which serves: this deploy takes back the commits" in words(refused)
    assert served.health()["release"] == sha
    back = deploy(served, app_release=str(before), app_rollback_over_commands="true")
    assert (back.status, served.health()["release"]) == (0, before), back.output
    # Both have served with the changes of the command. The release that serves goes back to nothing.
    again = deploy(served, app_release=str(before))
    assert (again.status, "is older than" in again.output) == (0, False), again.output
    assert deploy(served, app_release=sha).status == 0


@pytest.mark.parametrize(
    ("command", "seconds", "reason"),
    [
        ("echo no table >&2; exit 3", "9", "exit status 3: echo no table >&2; exit 3"),
        ("echo no table; sleep 60", "2", "it took longer than 2 s: echo no table; sleep 60"),
    ],
)
def test_a_failure_switches_nothing_and_is_shown(served: Site, command: str, seconds: str, reason: str) -> None:
    before, sha = served.health()["release"], served.release()
    played = deploy(served, command, app_release_command_seconds=seconds)
    assert played.status == 2
    message = f"The release command of {sha} failed on {served.host.name}: {reason} No host was switched. no table"
    assert message in words(played)
    assert served.health()["release"] == before
    # A common cause has a next step, and the output is shown once.
    broken = deploy(served, "python -c 'import os; print(7 * 6); os.environ[\"PAYMENT_KEY\"]'")
    assert "exit status 1" in words(broken)
    assert "The app needs the setting PAYMENT_KEY: add it to app_settings" in words(broken)
    assert broken.output.count("Traceback (most recent call last)") == 1
    # The next run needs no cleaning, and runs it again.
    assert deploy(served).status == 0
    assert served.run(f"tail -1 {LOG}") == sha


def test_a_release_that_goes_back_says_that_its_command_ran(served: Site) -> None:
    before = served.health()["release"]
    sha = served.release(text="raise RuntimeError('no')\n")
    played = deploy(served)
    assert played.status == 2
    message = f"{before} was not touched. The release command of {sha} has run, and its changes stay: echo"
    assert message in words(played)
    served.release()
    served.deploy()


def test_a_killed_controller_leaves_it_running_to_its_end(served: Site) -> None:
    sha = served.release()
    command = f"echo begun; sleep 8; echo $SENTRY_RELEASE >> {LOG}"
    running = served.start("deploy.yml", app_release_command=command)
    wait_for(running, "           begun\n")
    running.kill()
    refused = deploy(served, command)
    assert refused.status == 2
    assert f"runs the release command of {sha}, since" in words(refused)
    waited = deploy(served, command, app_lock_wait="60")
    assert (waited.status, served.health()["release"]) == (0, sha), waited.output
    assert f"{sha} ran it last, so it does not run again." in waited.output
    assert served.run(f"cat {LOG}").splitlines().count(sha) == 1


def test_the_post_deploy_command_runs_once_after_the_switch(served: Site) -> None:
    sha = served.release()
    command = f"test -e {LOG}.ok || exit 4; echo $SENTRY_RELEASE >> {LOG}.posted"
    failed = served.play("deploy.yml", app_post_deploy_command=command)
    assert failed.status == 2
    assert f"The post-deploy command of {sha} failed on {served.host.name}: exit status 4" in words(failed)
    assert "The hosts serve the release, and stay on it." in failed.output
    assert served.health()["release"] == sha
    served.run(f"touch {LOG}.ok")
    for _ in range(2):
        assert served.play("deploy.yml", app_post_deploy_command=command).status == 0
    assert served.run(f"cat {LOG}.posted") == sha
    back = served.play("rollback.yml", app_post_deploy_command=command, app_rollback_over_commands="true")
    assert back.status == 0
    assert served.run(f"cat {LOG}.posted") == sha


def test_a_check_runs_nothing(served: Site) -> None:
    served.release()
    before = served.run(f"cat {LOG}")
    played = deploy(served, MIGRATE, "--check")
    assert played.status == 0, played.output
    assert f"Would run on {served.host.name}: {MIGRATE}" in words(played)
    assert served.run(f"cat {LOG}") == before


@dataclass
class Three:
    """Three hosts with one app."""

    hosts: list[Host]
    repository: Repository
    inventory: Path
    variables: dict[str, str]

    def start(self, playbook: str, *arguments: str, **variables: str) -> Running:
        return start(playbook, self.inventory, {**self.variables, **variables}, *arguments)

    def ran(self, sha: str) -> list[str]:
        """Return the hosts where the command of a release ran, one for each time."""
        lines = [(host.name, host.ssh(f"cat {LOG}").stdout.splitlines()) for host in self.hosts]
        return [name for name, releases in lines for release in releases if release == sha]

    def serve(self) -> set[str | None]:
        return {health(host)["release"] for host in self.hosts}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    directory, name = tmp_path_factory.mktemp("three"), f"{INSTANCE}-three"
    repository, inventory = Repository(directory / "repository"), directory / "inventory" / "hosts.yml"
    try:
        hosts = sandbox.up(name, 3, with_tracker=False, inventory=inventory)
        fleet_of_three = Three(hosts, repository, inventory, repository.variables(directory))
        for playbook in ("bootstrap.yml", "deploy.yml"):
            played = fleet_of_three.start(playbook).end()
            assert played.status == 0, played.output
        yield fleet_of_three
    finally:
        sandbox.down(name)


@pytest.mark.long
def test_three_hosts_run_it_once_and_all_remember_it(three: Three) -> None:
    three.repository.write("once", "1")
    sha = three.repository.commit("Once")
    played = three.start("deploy.yml", app_release_command=MIGRATE).end()
    assert (played.status, three.serve(), three.ran(sha)) == (0, {sha}, [three.hosts[0].name]), played.output
    for host in three.hosts:
        (record,) = json.loads(host.ssh("cat /opt/booty/state.json").stdout)["commands"]
        assert (record["release"], record["result"], len(record["before"])) == (sha, "done", 1)
    # Another host is the first one now, and knows of it.
    others = ("--limit", ",".join(host.name for host in three.hosts[1:]))
    again = three.start("deploy.yml", *others, app_release_command=MIGRATE, app_restart="true").end()
    assert (again.status, three.ran(sha)) == (0, [three.hosts[0].name]), again.output


@pytest.mark.long
@pytest.mark.parametrize("moment", ["before", "in", "after"])
def test_a_controller_killed_at_each_step_leaves_no_cleaning(three: Three, moment: str) -> None:
    three.repository.write("killed", moment)
    sha = three.repository.commit(f"Killed {moment}")
    running = three.start("deploy.yml", app_release_command=f"{MIGRATE}; sleep 3")
    if moment == "before":
        deadline = time.monotonic() + 60
        while three.hosts[0].ssh(f"test -d /opt/booty/releases/{sha}").returncode:
            assert time.monotonic() < deadline, running.so_far()
        assert three.ran(sha) == []
    else:
        wait_for(running, "migrating\n" if moment == "in" else f"{three.hosts[0].name} serves {sha}")
    running.kill()
    played = three.start("deploy.yml", app_release_command=f"{MIGRATE}; sleep 3", app_lock_wait="60").end()
    assert (played.status, three.serve(), three.ran(sha)) == (0, {sha}, [three.hosts[0].name]), played.output
