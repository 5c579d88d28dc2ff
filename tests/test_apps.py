"""Several apps on one host: each has its own units, user, paths, port and lock, and none disturbs another."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox import hosts as sandbox
from sandbox.hosts import Host
from tests.conftest import INSTANCE, ROUTES, Play, Repository, Running, start
from tests.load import Load

PORTS = {"shop": 8001, "my-blog": 8002}


@dataclass
class Apps:
    """A host with two apps, each from its own repository."""

    host: Host
    inventory: Path
    repositories: dict[str, Repository]

    def start(self, playbook: str, app: str = "", *arguments: str, **variables: Any) -> Running:
        return start(playbook, self.inventory, {**({"app": app} if app else {}), **variables}, *arguments)

    def play(self, playbook: str, app: str = "", *arguments: str, **variables: Any) -> Play:
        return self.start(playbook, app, *arguments, **variables).end()

    def ready(self, playbook: str, app: str, **variables: Any) -> Play:
        """Run a playbook; fail the test if the exit status is not 0."""
        played = self.play(playbook, app, **variables)
        assert played.status == 0, played.output
        return played

    def commit(self, app: str) -> str:
        repository = self.repositories[app]
        repository.write("app/src/booty/routes.py", ROUTES + f"# {repository.git('rev-parse', 'HEAD')}\n")
        return repository.commit("Change it")

    def run(self, command: str) -> str:
        done = self.host.ssh(command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def serves(self, app: str) -> str:
        with urllib.request.urlopen(f"http://{self.host.address}:{PORTS[app]}/health", timeout=10) as answer:
            return str(json.load(answer)["release"])

    def pid(self, app: str) -> str:
        return self.run(f"systemctl show {app}.service --property=MainPID --value")


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apps]:
    folder, name = tmp_path_factory.mktemp("apps"), f"{INSTANCE}-apps"
    inventory = folder / "inventory"
    (inventory / "apps").mkdir(parents=True)
    repositories = {app: Repository(folder / app) for app in PORTS}
    (inventory / "group_vars").mkdir()
    shared = {"app_environment": "staging", "app_registration": False, "host_security_updates": False}
    (inventory / "group_vars/booty.yml").write_text(yaml.safe_dump(shared))
    for app, port in PORTS.items():
        # Ansible evaluates templates in apps/NAME.yml as in every other file of an inventory.
        own = {"app_port": port, "app_repository": str(repositories[app].path), "app_path": "app"}
        (inventory / f"apps/{app}.yml").write_text(yaml.safe_dump({**own, "app_log_format": "{{ 'json' }}"}))
    try:
        (host,) = sandbox.up(name, 1, with_tracker=False, inventory=inventory / "hosts.yml")
        apps = Apps(host, inventory, repositories)
        for app in PORTS:
            apps.ready("bootstrap.yml", app)
        for app in PORTS:
            apps.commit(app)
            apps.ready("deploy.yml", app)
        yield apps
    finally:
        sandbox.down(name)


def test_each_app_has_its_own_units_and_a_second_run_changes_nothing(apps: Apps) -> None:
    for app in PORTS:
        assert apps.serves(app) == apps.repositories[app].git("rev-parse", "HEAD")
        assert f"User={app}" in apps.run(f"systemctl cat {app}.service")
        assert apps.run(f"test -d /var/lib/{app} && stat -c %U /var/lib/{app}") == app
        assert apps.run(f"journalctl -t {app} --quiet --lines=1 --output=cat").startswith("{")
        for playbook in ("bootstrap.yml", "deploy.yml"):
            assert apps.ready(playbook, app).recap(apps.host.name)["changed"] == 0
    assert (
        apps.run("ls -d /etc/booty/release.env /opt/booty /etc/systemd/system/booty.service 2>&1 || true").count(
            "No such file"
        )
        == 3
    )


def test_the_firewall_opens_the_ports_of_all_apps(apps: Apps) -> None:
    """Each app had a bootstrap of its own; the second bootstrap kept the port of the first app open."""
    accepted = apps.run("nft list table inet booty | grep 'tcp dport.*accept'")
    assert all(str(port) in accepted for port in (22, *PORTS.values()))


def test_without_a_known_app_the_message_lists_the_apps(apps: Apps) -> None:
    for playbook in ("bootstrap.yml", "deploy.yml", "rollback.yml", "remove.yml"):
        played = apps.play(playbook)
        assert played.status == 4
        output = " ".join(played.output.split())
        assert "The inventory describes several apps: my-blog, shop. Choose one: -e app=my-blog Nothing was" in output
    played = apps.play("deploy.yml", "store")
    assert played.status == 4
    assert (
        "-e app=store: no inventory of this run has a file apps/store.yml beside its hosts; there are: my-blog, s"
        in (" ".join(played.output.split()))
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("app_prot: 8001\n", "Booty has no variable app_prot. Did you mean app_port?"),
        ("app_name: other\n", "app_name is other, and the file says broken. Remove the line."),
        ("- app_port\n", "is no mapping: write variables, such as app_port: 8001"),
        ("app_port: [\n", "can't be read"),
        ("app_port: http\n", 'app_port is "http": write a port, 1 to 65535'),
    ],
)
def test_a_file_that_is_wrong_is_refused(apps: Apps, text: str, message: str) -> None:
    file = apps.inventory / "apps/broken.yml"
    file.write_text(text)
    try:
        played = apps.play("deploy.yml", "broken")
    finally:
        file.unlink()
    assert played.status == 4, played.output
    assert message in " ".join(played.output.split())


def test_two_apps_change_at_once_under_load(apps: Apps) -> None:
    """Deploys, rollbacks and restarts of two apps at the same time lose no request of either app."""
    with Load(apps.host.address, port=PORTS["shop"]) as shop, Load(apps.host.address, port=PORTS["my-blog"]) as blog:
        for app in PORTS:
            apps.commit(app)
        every: list[dict[str, tuple[str, dict[str, Any]]]] = [
            {"shop": ("deploy.yml", {}), "my-blog": ("deploy.yml", {})},
            {"shop": ("rollback.yml", {}), "my-blog": ("deploy.yml", {"app_restart": True})},
            {"shop": ("deploy.yml", {}), "my-blog": ("rollback.yml", {})},
        ]
        for steps in every:
            running = [apps.start(playbook, app, **variables) for app, (playbook, variables) in steps.items()]
            for played in [each.end() for each in running]:
                assert played.status == 0, played.output
    assert (shop.report["failures"], blog.report["failures"]) == ([], [])
    assert min(sum(load.report["releases"].values()) for load in (shop, blog)) > 100
    head, before = (apps.repositories["my-blog"].git("rev-parse", name) for name in ("HEAD", "HEAD~"))
    assert apps.serves("shop") == apps.repositories["shop"].git("rev-parse", "HEAD")
    assert (apps.serves("my-blog"), head) == (before, head)


def test_a_failed_deploy_of_one_app_leaves_the_other_unchanged(apps: Apps) -> None:
    pid, good = apps.pid("my-blog"), apps.serves("shop")
    apps.repositories["shop"].write("app/src/booty/routes.py", "raise RuntimeError('broken')\n")
    broken = apps.repositories["shop"].commit("Break it")
    played = apps.play("deploy.yml", "shop")
    assert played.status != 0
    assert "journal of shop-candidate.service" in " ".join(played.output.split())
    assert (apps.serves("shop"), apps.pid("my-blog")) == (good, pid)
    assert broken not in apps.run("cat /etc/shop/release.env")
    apps.repositories["shop"].git("reset", "--quiet", "--hard", "HEAD~")


@pytest.mark.parametrize(
    "attempt",
    [
        "cat /etc/my-blog/secrets.env",
        "ls /var/lib/my-blog",
        "cat /run/my-blog/internal.sock",
        "kill -0 {pid}",
        "cat /proc/{pid}/environ",
        "touch /opt/my-blog/releases/x",
        "touch /opt/shop/releases/x",
    ],
)
def test_one_app_can_not_read_write_or_signal_the_other(apps: Apps, attempt: str) -> None:
    apps.run("install -m 0600 /dev/null /etc/my-blog/secrets.env")
    command = attempt.format(pid=apps.pid("my-blog"))
    assert apps.host.ssh(command.replace("my-blog", "shop") if "internal" in attempt else "true").returncode in {0, 1}
    done = apps.host.ssh(f"setpriv --reuid=shop --regid=shop --clear-groups sh -c {command!r}")
    assert done.returncode != 0
    assert "denied" in done.stderr or "not permitted" in done.stderr


def test_an_app_can_not_take_the_port_of_another(apps: Apps) -> None:
    """The inventory shows it before a host is asked; with --limit the host finds it before the build."""
    port = PORTS["my-blog"]
    played = apps.play("deploy.yml", "shop", app_port=port)
    assert played.status == 4
    assert f"shop and my-blog both have app_port {port}, and each run of an app" in " ".join(played.output.split())
    played = apps.play("deploy.yml", "shop", "--limit", apps.host.name, app_port=port)
    assert played.status == 2
    assert "Build the release" not in played.output
    assert f"is taken on {apps.host.name}: my-blog.socket" in " ".join(played.output.split())


def test_status_shows_all_apps_of_the_host(apps: Apps, tmp_path: Path) -> None:
    assert apps.play("status.yml").output.startswith("2 services on 1 host: 2 to look at\n")
    played = apps.play("status.yml", status_format="json", status_file=str(tmp_path / "all.json"))
    assert played.status == 0, played.output
    rows = json.loads((tmp_path / "all.json").read_text())["hosts"]
    assert [(row["app"], row["level"], row["health"]["release"]) for row in rows] == [
        (app, "look", apps.serves(app))
        for app in sorted(PORTS)  # neither app has a DSN
    ]
    apps.play("status.yml", "shop", status_format="json", status_file=str(tmp_path / "one.json"))
    assert [row["app"] for row in json.loads((tmp_path / "one.json").read_text())["hosts"]] == ["shop"]
    drift = apps.play("status.yml", app_drift=True)
    assert drift.status == 4
    assert "choose the app with -e app=NAME" in " ".join(drift.output.split())


def test_one_app_is_removed_and_the_other_loses_no_request(apps: Apps) -> None:
    """This test must run last: it removes one of the two apps."""
    refused = apps.play("remove.yml", "my-blog")
    assert refused.status != 0
    output = " ".join(refused.output.split())
    assert "Deletes: /etc/systemd/system/system-my\\x2dblog.slice" in output
    assert "Keeps: /etc/my-blog/secrets.env, /var/lib/my-blog, the user my-blog." in output
    command = f"ansible-playbook remove.yml -i {apps.inventory} -e app=my-blog -e remove=my-blog"
    assert f"Nothing was changed. To remove it: {command}" in output
    assert apps.serves("my-blog")
    with Load(apps.host.address, port=PORTS["shop"]) as load:
        apps.ready("remove.yml", "my-blog", remove="my-blog")
        assert apps.ready("remove.yml", "my-blog", remove="my-blog").recap(apps.host.name)["changed"] == 0
        apps.ready("bootstrap.yml", "shop")
    assert load.report["failures"] == []
    assert apps.run("ls -d /opt/my-blog /etc/systemd/system/*blog* 2>/dev/null || true") == ""
    assert apps.run("ls /etc/my-blog /var/lib/my-blog >/dev/null && echo there") == "there"
    assert str(PORTS["my-blog"]) not in apps.run("nft list table inet booty")
    assert apps.run("systemctl list-units --all --plain --no-legend '*blog*'") == ""
