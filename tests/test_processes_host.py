"""Processes and timers on real hosts: they follow the release, and a failure at any step leaves them on one."""

from __future__ import annotations

import json
import shlex
import threading
import time
from typing import Any

import pytest

from sandbox import hosts as sandbox
from tests.conftest import Site, words
from tests.load import Load

# A worker that ends its job after the signal: the job takes JOB seconds.
WORKER = """
import os, signal, sys, time
def stop(*_):
    time.sleep(float(sys.argv[1]))
    print("ended on", os.environ["SENTRY_RELEASE"], flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, stop)
print(os.environ["BOOTY_PROCESS"], "begins on", os.environ["SENTRY_RELEASE"], flush=True)
# As setproctitle does, but for the variables too.
if "blind" in sys.argv:
    import ctypes
    area = open("/proc/self/stat").read().rpartition(")")[2].split()
    ctypes.memset(int(area[47]), 0, int(area[48]) - int(area[47]))
while True:
    time.sleep(1)
"""


def worker(*arguments: object) -> str:
    return f"python -c {shlex.quote(f'exec({WORKER!r})')} {' '.join(map(str, arguments))}"


def table(**entries: Any) -> str:
    return json.dumps(entries)


def up(site: Site) -> dict[str, str]:
    """Return the release of each process, by its instance, as the status shows it; "ending" if it ends."""
    played = site.play("status.yml", status_format="json")
    (row,) = json.loads(played.output[played.output.index("{\n") : played.output.rindex("\n}") + 2])["hosts"]
    return {
        instance["unit"]: instance["release"] if instance["state"] == "active" else instance["state"]
        for program in row["programs"]
        for instance in program.get("instances", [])
    }


def lines(site: Site, identifier: str, since: float) -> list[str]:
    return site.run(f"journalctl -t {identifier} -o cat --no-pager --since=@{since:.0f}").splitlines()


def test_processes_follow_the_release_and_end_their_job(site: Site) -> None:
    """The old one has time for its job, and the deploy does not wait for it. The service is left alone after that."""
    first, began = site.release(), time.time()
    # The program destroys its environment, so the record of its start alone tells its release.
    both = {"worker": {"command": worker(6, "blind"), "count": 2}, "beat": {"command": worker(1), "one_host": True}}
    wanted = {"app_processes": json.dumps(both), "app_process_seconds": "1"}
    played = site.deploy(**wanted)
    assert f"on {site.host.name} alone: beat." in played.output
    units = [f"booty-{name}.service" for name in ("beat@1", "worker@1", "worker@2")]
    assert up(site) == dict.fromkeys(units, first)
    second = site.release()
    with Load(site.host.address) as load:
        site.deploy(**wanted)
    assert load.report["failures"] == []
    new = dict.fromkeys(["booty-beat@1.service", "booty-worker@3.service", "booty-worker@4.service"], second)
    assert {unit: each for unit, each in up(site).items() if each != "ending"} == new
    site.wait_for("! systemctl list-units --plain 'booty-worker@[12].service' | grep -q '^booty'")
    order = lines(site, "booty-worker -t booty-deploy", began)
    assert order.index("ending booty-worker@1.service, booty-worker@2.service") < order.index(f"serving {second}")
    assert order.index(f"serving {second}") < order.index(f"ended on {first}")
    assert order.count(f"ended on {first}") == 2
    assert lines(site, "booty-beat", began)[:3] == [
        f"beat begins on {first}",
        f"ended on {first}",
        f"beat begins on {second}",
    ]
    pid = site.pid()
    timers = table(nightly={"command": "echo it runs", "schedule": "03:00"})
    assert site.deploy(app_timers=timers).recap(site.host.name)["changed"]
    site.wait_for("! systemctl list-units --plain 'booty-worker@*' 'booty-beat@*' | grep -q '^booty'")
    # A unit whose process takes its time to end goes with the next deploy.
    site.deploy(app_timers=timers)
    assert site.run("ls /etc/systemd/system/ | grep -E 'booty-(worker|beat)' || true") == ""
    assert site.deploy(app_timers=timers).recap(site.host.name)["changed"] == 0
    assert lines(site, "booty-worker", began)[-2:] == [f"ended on {second}"] * 2
    assert site.run("systemctl list-timers --no-legend booty-nightly.timer").split()[2] == "03:00:00"
    site.deploy()
    assert site.run("ls /etc/systemd/system/ | grep -E 'booty-(worker|beat|nightly)' || true") == ""
    assert site.pid() == pid


@pytest.mark.long
def test_a_worker_that_fails_brings_service_and_processes_back(site: Site) -> None:
    old = site.release()
    site.deploy(app_processes=table(worker=worker(0), beat={"command": worker(0), "one_host": True}))
    pid = site.run("systemctl show booty-worker@1.service --property=MainPID --value")
    site.release()
    bad = {"command": "python -c 'import os; os.environ[\"QUEUE_URL\"]'"}
    with Load(site.host.address) as load:
        played = site.play("deploy.yml", app_processes=table(worker=bad, beat={"command": worker(0), "one_host": True}))
    assert played.status != 0
    output = words(played)
    assert "booty-worker@2.service does not stay up for 3 s (exit-code)" in output
    assert "The app needs the setting QUEUE_URL: add it to app_settings" in output
    assert f"Went back to {old}, which serves." in output
    assert load.report["failures"] == []
    assert up(site) == {"booty-beat@1.service": old, "booty-worker@1.service": old}
    assert site.run("systemctl show booty-worker@1.service --property=MainPID --value") == pid
    # A worker that waits for a database is started again without limit, with growing pauses.
    crash = {"command": "test -e /var/lib/booty/ready && sleep 5 && exit 3 || sleep 600"}
    site.run("install -d -o booty -g booty /var/lib/booty; touch /var/lib/booty/ready")
    site.deploy(app_processes=table(worker=crash))
    site.wait_for("test $(systemctl show booty-worker@2.service --property=NRestarts --value) -ge 3", seconds=60)
    assert site.run("systemctl show booty-worker@2.service --property=Result --value") != "start-limit-hit"
    played = site.play("status.yml")
    assert "booty-worker@2 is activating, started again" in played.output or "worker@2" in played.output
    site.run("rm /var/lib/booty/ready")
    site.deploy()


@pytest.mark.long
@pytest.mark.parametrize("word", ["stopping booty-beat", "starting booty-"])
@pytest.mark.parametrize("power", [False, True], ids=["killed", "power cut"])
def test_a_host_program_that_is_killed_between_service_and_processes(site: Site, word: str, power: bool) -> None:
    """The host serves the release, its processes run, and the next deploy needs no cleaning."""
    processes = table(worker=worker(0), beat={"command": worker(3), "one_host": True})
    site.deploy(app_processes=processes)
    new = site.release()
    with site.journal() as messages:
        running = site.start("deploy.yml", app_processes=processes)
        assert next(message for message in messages if word in message)
        site.run("systemctl kill --signal=KILL 'booty-cutover-*.scope'")
    if power:
        running.kill()
        sandbox.stop(site.host.instance, site.host.name)
        sandbox.start(site.host.instance, site.host.name)
        site.wait_for("systemctl is-active booty.service")
    else:
        assert running.end().status != 0
    assert site.health()["release"] == new
    if power:
        # At boot all processes start on the release that release.env names.
        site.wait_for("systemctl is-active booty-beat@1.service 'booty-worker@*.service'")
        assert set(up(site).values()) == {new}
    played = site.deploy(app_processes=processes)
    assert "An interrupted deploy" not in played.output
    site.wait_for("test $(systemctl list-units --plain --no-legend 'booty-worker@*' --state=active | wc -l) = 1")
    assert set(up(site).values()) == {new}
    assert site.deploy(app_processes=processes).recap(site.host.name)["changed"] == 0
    site.deploy()


@pytest.mark.long
def test_a_run_of_a_timer_ends_on_its_release(site: Site) -> None:
    def timers(word: str) -> str:
        command = f"sleep 12; echo {word} on $SENTRY_RELEASE; test {word} = one"
        return table(nightly={"command": command, "schedule": "03:00"})

    first, began = site.release(), time.time()
    site.deploy(app_timers=timers("one"))
    site.run("systemctl start --no-block booty-nightly.service")
    site.release()
    site.deploy(app_timers=timers("two"))
    site.wait_for("test $(systemctl show booty-nightly.service --property=ActiveState --value) = inactive", seconds=30)
    assert lines(site, "booty-nightly", began) == [f"one on {first}"]
    assert site.run("systemctl show booty-nightly.service --property=Result --value") == "success"
    site.host.ssh("systemctl start booty-nightly.service")
    assert "the last run of the timer nightly failed" in words(site.play("status.yml"))
    site.deploy()


@pytest.mark.long
def test_a_rollback_brings_the_set_of_its_release_back(site: Site) -> None:
    """Restart, check and rollback with processes of the commit."""
    text = (site.repository.path / "app/pyproject.toml").read_text()
    quoted = json.dumps(worker(0))
    site.repository.write("app/pyproject.toml", f"{text}\n[tool.booty.processes]\nworker = {quoted}\n")
    old = site.release()
    site.deploy()
    assert up(site) == {"booty-worker@1.service": old}
    site.repository.write("app/pyproject.toml", f"{text}\n[tool.booty.processes]\nother = {quoted}\n")
    new = site.release()
    checked = site.play("deploy.yml", "--check", "--diff")
    assert "+++ after: /etc/systemd/system/booty-other@.service" in checked.output
    assert up(site) == {"booty-worker@1.service": old}
    site.deploy()
    assert up(site) == {"booty-other@1.service": new}
    site.deploy(app_restart="true")
    assert up(site) == {"booty-other@2.service": new}
    played = site.play("rollback.yml", app_release=old)
    assert played.status == 0, played.output
    assert up(site) == {"booty-worker@1.service": old}
    again = site.play("rollback.yml", app_release=old)
    assert again.recap(site.host.name)["changed"] == 0, again.output
    site.repository.write("app/pyproject.toml", text)
    site.release()
    site.deploy()
    assert up(site) == {}


@pytest.mark.long
def test_one_host_has_the_scheduler(site: Site) -> None:
    played = site.play("bootstrap.yml", on=site.bare)
    assert played.status == 0, played.output
    both = ["--limit", "booty"]
    beat: dict[str, Any] = {"app_processes": table(beat={"command": worker(0), "one_host": True})}

    def has_it() -> list[bool]:
        return [
            site_host.ssh("systemctl is-active booty-beat@1.service").stdout.strip() == "active"
            for site_host in (site.host, site.bare)
        ]

    site.release()
    # The second host alone starts none, since the first one of the group may have it.
    assert "which is not" not in site.play("deploy.yml", on=site.bare, **beat).output
    assert has_it() == [False, False]
    seen: list[list[bool]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(has_it())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert site.play("deploy.yml", *both, **beat).status == 0
        assert has_it() == [True, False]
        site.release()
        assert site.play("deploy.yml", *both, **beat, app_one_host=site.bare.name).status == 0
        assert has_it() == [False, True]
        site.release()
        assert site.play("deploy.yml", *both, **beat).status == 0
        assert has_it() == [False, True]
    finally:
        done.set()
        watcher.join()
    assert [True, True] not in seen
    sandbox.stop(site.bare.instance, site.bare.name)
    site.release()
    played = site.play("deploy.yml", *both, **beat, app_unreachable="skip")
    assert f"on {site.bare.name} alone: beat. That host is not in this run" in words(played)
    assert f"beat is on {site.bare.name} alone, which gives no answer" in words(site.play("status.yml", *both))
    assert site.play("deploy.yml", **beat, app_one_host=site.host.name).status == 0
    assert has_it()[0]
    sandbox.start(site.bare.instance, site.bare.name)
    time.sleep(3)
    assert "beat is on" in words(site.play("status.yml", *both))
    assert site.play("deploy.yml", *both, **beat).status == 0
    assert has_it() == [True, False]
    secrets = site.run("cat /etc/booty/secrets.env")
    played = site.play("remove.yml", *both, **beat, remove="booty")
    assert played.status == 0, played.output
    assert has_it() == [False, False]
    # Other tests share the host.
    assert site.play("bootstrap.yml").status == 0
    site.place_secrets(f"{secrets}\n")
