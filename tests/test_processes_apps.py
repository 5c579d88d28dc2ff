"""Celery and RQ on three hosts: deploys and rollbacks under load lose no request and no job, and none runs old code."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import yaml

from sandbox import demo
from sandbox import hosts as sandbox
from sandbox.hosts import Host
from sandbox.tracker import Tracker, find
from tests.conftest import INSTANCE, ROOT, Play, Repository, Running, start
from tests.load import Load

pytestmark = pytest.mark.long
# A password of the database and of Redis.
PASSWORD = os.urandom(12).hex()
# PostgreSQL and Redis of Debian, open to the other hosts.
SERVICES = f"""
set -e
export DEBIAN_FRONTEND=noninteractive
apt-get install -qy --no-install-recommends postgresql redis-server
cd /
runuser -u postgres -- psql -qc "CREATE ROLE shop LOGIN PASSWORD '{PASSWORD}'" -c "CREATE DATABASE shop OWNER shop" \\
    -c "ALTER SYSTEM SET listen_addresses = '*'"
echo 'host all all 0.0.0.0/0 scram-sha-256' >> /etc/postgresql/*/main/pg_hba.conf
printf 'bind 0.0.0.0\\nrequirepass {PASSWORD}\\n' >> /etc/redis/redis.conf
systemctl restart postgresql redis-server
"""
# A migration that takes a moment, so that a test can kill the controller meanwhile.
MIGRATION = """
import time
from django.db import migrations, models
class Migration(migrations.Migration):
    dependencies = [("shop", "{before}")]
    operations = [
        migrations.RunPython(lambda *_: time.sleep(3), lambda *_: None),
        migrations.AddField("Run", "{name}", models.CharField(max_length=9, default="", db_default="")),
    ]
"""


@dataclass
class Fleet:
    """Three hosts with one app; the first one has PostgreSQL and Redis."""

    hosts: list[Host]
    tracker: Tracker
    directory: Path

    def app(self, name: str) -> App:
        """Return a sample app that is not on the hosts yet."""
        settings = yaml.safe_load((ROOT / f"tests/apps/{name}.yml").read_text())
        repository = Repository(self.directory / name, f"tests/apps/{name}", top=True)
        app = App(self, name, settings, repository)
        played = app.start("bootstrap.yml", app_packages="postgresql-client").end()
        assert played.status == 0, played.output
        address = self.hosts[0].address
        secrets = {
            **{"SENTRY_DSN": self.tracker.dsn, "SECRET_KEY": "k" * 50},
            **{"PGHOST": address, "PGUSER": "shop", "PGPASSWORD": PASSWORD, "PGDATABASE": "shop"},
            **{"REDIS_URL": f"redis://:{PASSWORD}@{address}/0", "RQ_REDIS_URL": f"redis://:{PASSWORD}@{address}/1"},
        }
        for host in self.hosts:
            demo.place_secrets(host, "".join(f"{key}={value}\n" for key, value in secrets.items()), name)
        return app


@dataclass
class App:
    """One sample app on all hosts."""

    fleet: Fleet
    name: str
    settings: dict[str, Any]
    repository: Repository

    @property
    def port(self) -> int:
        """Return the port of the service."""
        port: int = self.settings["app_port"]
        return port

    @property
    def host(self) -> str:
        """Return the Host header that the app accepts."""
        host: str = self.settings.get("app_health_host", "load")
        return host

    def start(self, playbook: str, *arguments: str, **variables: str) -> Running:
        """Start a playbook for all hosts."""
        known = {
            **self.settings,
            **{"app_name": self.name, "app_repository": str(self.repository.path), "app_environment": "production"},
            **{"app_cache": str(self.fleet.directory / "artifacts"), "app_registration": False},
            **{"host_firewall": False, "host_security_updates": False, "host_service_user": self.name},
        }
        return start(playbook, self.fleet.directory / "inventory/hosts.yml", {**known, **variables}, *arguments)

    def play(self, playbook: str, *arguments: str, **variables: str) -> Play:
        """Run a playbook; fail the test if its exit status is not 0."""
        played = self.start(playbook, *arguments, **variables).end()
        assert played.status == 0, played.output
        return played

    def ask(self, path: str, host: int = 0) -> Any:
        """Return the JSON of an answer."""
        url = f"http://{self.fleet.hosts[host].address}:{self.port}{path}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(url, headers={"Host": self.host}), timeout=30) as answer:
            return json.load(answer)

    def runs(self) -> list[Run]:
        """Return the runs of tasks that ended."""
        lines = self.ask("/runs")["runs"]
        return [Run(*(json.loads(line) if isinstance(line, str) else line)) for line in lines]

    def release(self, greeting: str, **files: str) -> str:
        """Commit another greeting and further files, and return the SHA."""
        (path,) = (
            self.repository.path.glob("**/tasks.py") if "celery" in self.name else self.repository.path.glob("jobs.py")
        )
        lines = path.read_text().splitlines()
        lines = [f'GREETING = "{greeting}"' if line.startswith("GREETING") else line for line in lines]
        path.write_text("\n".join(lines) + "\n")
        for name, text in {"round": f"{time.time()}", **files}.items():
            self.repository.write(name, text)
        return self.repository.commit(f"Say {greeting}")

    def migrate(self, greeting: str) -> tuple[str, str]:
        """Commit another greeting and one more migration; return the SHA and the migration's name."""
        names = sorted(path.stem for path in self.repository.path.glob("shop/migrations/0*.py"))
        name = f"{len(names) + 1:04}_{greeting}"
        text = MIGRATION.format(before=names[-1], name=f"{greeting}_{int(time.time())}")
        return self.release(greeting, **{f"shop/migrations/{name}.py": text}), name

    def applied(self, migration: str) -> int:
        """Return how often a migration was applied, on all hosts together."""
        count = f"journalctl -t {self.name}-release -o cat | grep -c 'Applying shop.{migration}' || true"
        return sum(map(int, self.on_each(count)))

    def on_each(self, command: str) -> list[str]:
        """Run a shell command on each host as root, and return the outputs."""
        done = [host.ssh(command) for host in self.fleet.hosts]
        assert not [each.stderr for each in done if each.returncode], done
        return [each.stdout.strip() for each in done]

    def wait_until_alone(self, release: str) -> None:
        """Wait until the service and all processes run a release: old processes finish their present job."""
        deadline = time.monotonic() + 60
        while (runs := self.serve()) != {release}:
            assert time.monotonic() < deadline, runs
            time.sleep(0.5)

    def serve(self) -> set[str]:
        """Return the releases that the web service and each process of it run, on all hosts."""
        units = f"{self.name}.service '{self.name}-*@*.service'"
        script = f"""for pid in $(systemctl show {units} --property=MainPID --value | grep -v '^0*$'); do
            tr '\\0' '\\n' < /proc/$pid/environ | sed -n s/^SENTRY_RELEASE=//p; done"""
        return {release for output in self.on_each(script) for release in output.split()}

    def active(self, process: str) -> list[int]:
        """Return the number of running instances of a process on each host."""
        listed = f"systemctl list-units --plain --no-legend --state=active '{self.name}-{process}@*.service' | wc -l"
        return [int(output) for output in self.on_each(listed)]


@dataclass(frozen=True)
class Run:
    """A run of a task, as the sample apps note it."""

    task: str
    number: int | None
    code: str
    release: str
    began: float


@dataclass
class Jobs:
    """Enqueues jobs on all hosts in turn, without a pause."""

    app: App
    accepted: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        number = int(time.time()) % 1_000_000 * 1_000
        while not self._stop.wait(0.1):
            number += 1
            try:
                assert self.app.ask(f"/jobs/{number}", number % len(self.app.fleet.hosts)) == {"number": number}
                self.accepted.append(number)
            except (OSError, ValueError, AssertionError) as error:
                self.failures.append(f"{number}: {error!r}")

    def __enter__(self) -> Jobs:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _wait_until_all_ran(self, seconds: float) -> bool:
        """Return whether all jobs ran within this time."""
        deadline = time.monotonic() + seconds
        while missing := {*self.accepted} - {run.number for run in self.app.runs()}:
            if time.monotonic() > deadline:
                print(f"{missing} did not run within {seconds} s")
                return False
            time.sleep(1)
        return True

    def each_ran_once(self) -> list[Run]:
        """Wait until all jobs ran; return the runs, and fail the test if a job ran twice or not."""
        all_ran = self._wait_until_all_ran(60)
        # RQ parks a job that its worker took in the instant of a signal. Its maintenance runs it again, and wants to
        # have seen it there for a minute before (docs/processes.md).
        for _ in range(2 if self.app.name == "flask-rq" and not all_ran else 0):
            self.app.play("run.yml", command="python maintain.py")
            self._wait_until_all_ran(61)
        time.sleep(2)
        runs = [run for run in self.app.runs() if run.number in {*self.accepted}]
        counts = Counter(run.number for run in runs)
        assert {number: counts[number] for number in self.accepted if counts[number] != 1} == {}
        assert self.failures == []
        return runs


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    directory, name = tmp_path_factory.mktemp("apps"), f"{INSTANCE}-apps"
    try:
        hosts = sandbox.up(name, 3, with_tracker=True, inventory=directory / "inventory/hosts.yml")
        tracker = find(sandbox.INSTANCES / name / "tracker")
        assert tracker
        done = hosts[0].ssh(SERVICES, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        yield Fleet(hosts, tracker, directory)
    finally:
        sandbox.down(name)


@pytest.fixture(scope="module")
def celery(fleet: Fleet) -> App:
    return fleet.app("django-celery")


@pytest.fixture(scope="module")
def rq(fleet: Fleet) -> App:
    return fleet.app("flask-rq")


def under_load(app: App) -> Load:
    """Return a load on all hosts."""
    service = {"port": app.port, "quick": "/", "key": "greeting", "host": app.host}
    return Load(*(host.address for host in app.fleet.hosts), clients=(1, 1, 1), pause=0.2, **service)


def change(app: App, first: str, newer: str) -> tuple[list[Run], dict[str, float]]:
    """Deploy a commit, deploy a newer one and roll back, under load; return the runs of jobs and the moments."""
    app.play("deploy.yml", app_release=first)
    app.wait_until_alone(first)
    moments = {}
    with under_load(app) as load, Jobs(app) as jobs:
        time.sleep(2)
        app.play("deploy.yml", app_release=newer)
        moments["deployed"] = time.time()
        app.wait_until_alone(newer)
        time.sleep(3)
        moments["rollback"] = time.time()
        app.play("rollback.yml", app_rollback_over_commands="true")
        moments["back"] = time.time()
        app.wait_until_alone(first)
        time.sleep(3)
    assert (load.report["failures"], set(load.report["releases"])) == ([], {"first", "second"})
    runs = jobs.each_ran_once()
    # Each job ran the code that its label names, and no job ran the old code once a switch was confirmed.
    assert {(run.code, run.release) for run in runs} == {("first", first), ("second", newer)}
    assert {run.code for run in runs if moments["deployed"] < run.began < moments["rollback"]} == {"second"}
    assert {run.code for run in runs if run.began > moments["back"]} == {"first"}
    return runs, moments


def test_celery_beat_and_migrations(celery: App) -> None:
    first = celery.release("first")
    second, migration = celery.migrate("second")
    change(celery, first, second)
    assert (celery.active("worker"), sum(celery.active("beat"))) == ([1, 1, 1], 1)
    # One scheduler sends one tick a second, also during a switch.
    ticks = sorted(run.began for run in celery.runs() if run.task == "tick")
    assert len(ticks) <= ticks[-1] - ticks[0] + 2
    assert celery.applied(migration) == 1


@pytest.mark.parametrize("moment", ["before", "in", "after", "between"])
def test_a_killed_controller_leaves_no_cleaning(celery: App, moment: str) -> None:
    """The moments: before, in and after the release command, and between the service's switch and the processes'."""
    sha, migration = celery.migrate(moment)
    log = f"journalctl -t booty-deploy -o cat | grep -q '{{}} {sha}'"
    waits = {
        "before": f"test -d /opt/{celery.name}/releases/{sha}",
        "in": f"journalctl -t {celery.name}-release -o cat | grep -q 'Applying shop.{migration}'",
        "after": log.format("proving"),
        "between": log.format("pointing to"),
    }
    with under_load(celery) as load, Jobs(celery) as jobs:
        running = celery.start("deploy.yml")
        deadline = time.monotonic() + 300
        while celery.fleet.hosts[0].ssh(waits[moment]).returncode:
            assert time.monotonic() < deadline, running.so_far()
        running.kill()
        assert celery.applied(migration) <= 1
        celery.play("deploy.yml", app_lock_wait="120")
        celery.wait_until_alone(sha)
    assert load.report["failures"] == []
    jobs.each_ran_once()
    assert (celery.active("worker"), sum(celery.active("beat")), celery.applied(migration)) == ([1, 1, 1], 1, 1)


def test_the_dump_before_a_migration_is_restored(celery: App) -> None:
    """Follow the steps of docs/commands.md."""
    count = "SELECT count(*) FROM django_migrations WHERE name = '{}'"

    def applied(migration: str) -> str:
        query = f'python manage.py dbshell -- -Atc "{count.format(migration)}"'
        return celery.play("run.yml", command=query).output.strip()

    sha, migration = celery.migrate("dumped")
    celery.play("deploy.yml")
    assert applied(migration) == "1"
    celery.play("rollback.yml", app_rollback_over_commands="true")
    restore = f'pg_restore --clean --if-exists --single-transaction --dbname=$PGDATABASE "$HOME/before-{sha}.dump"'
    assert celery.play("run.yml", command=restore).output == ""
    assert applied(migration) == "0"
    # The same commit does not run its command again; the next one does.
    newer = celery.release("second")
    celery.play("deploy.yml")
    celery.wait_until_alone(newer)
    assert applied(migration) == "1"


def test_rq_and_a_timer(rq: App) -> None:
    first = rq.release("first")
    runs, moments = change(rq, first, rq.release("second"))
    assert rq.active("worker") == [1, 1, 1]
    # The timer also runs the release that serves.
    reports = [run for run in rq.runs() if run.task == "report"]
    assert {run.code for run in reports if moments["deployed"] < run.began < moments["rollback"]} <= {"second"}
    assert {run.code for run in reports if run.began > moments["back"]} <= {"first"}
    assert {(run.code, run.release) for run in reports} >= {(run.code, run.release) for run in runs}


def test_a_worker_that_does_not_stay_up_takes_the_host_back(rq: App) -> None:
    before = rq.serve()
    description = (rq.repository.path / "booty.toml").read_text()
    known = {event["id"] for event in rq.fleet.tracker.events()}
    broken = "python -c 'raise LookupError(\\\"no worker\\\")'"
    sha = rq.release("broken", **{"booty.toml": description.replace("rq worker", broken)})
    with under_load(rq) as load, Jobs(rq) as jobs:
        played = rq.start("deploy.yml").end()
    rq.release("first", **{"booty.toml": description})
    assert (played.status, "no worker" in played.output) == (2, True), played.output
    assert (rq.serve(), load.report["failures"]) == (before, [])
    assert {run.release for run in jobs.each_ran_once()} == before
    events = [
        rq.fleet.tracker.event(event["id"]).data for event in rq.fleet.tracker.events() if event["id"] not in known
    ]
    assert {(event["release"], event["transaction"]) for event in events if "exception" in event} == {(sha, "worker")}


def test_errors_of_jobs_have_the_release(celery: App, rq: App) -> None:
    """Neither app has sentry-sdk."""
    for app, transaction in ((celery, "shop.tasks.fail"), (rq, "jobs.fail")):
        before = {event["id"] for event in app.fleet.tracker.events()}
        app.ask("/boom")
        deadline = time.monotonic() + 30
        while not (new := {event["id"] for event in app.fleet.tracker.events()} - before):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        (event,) = [app.fleet.tracker.event(identity).data for identity in new]
        assert event["transaction"] == transaction
        assert ({event["release"]}, event["environment"]) == (app.serve(), "production")
        assert PASSWORD not in json.dumps(event)
