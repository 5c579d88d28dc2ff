"""status.yml: the answers of hosts, the levels and notes that follow from them, and their views."""

from __future__ import annotations

import copy
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import judge as judging
from ansible_collections.booty.deploy.plugins.module_utils.controller import view as fleet
from booty_host import lease, status
from booty_host.app import App

from sandbox import hosts as sandbox
from sandbox.demo import RAISE
from tests.conftest import ROLE, ROOT, Play, Site, start

TEMPLATE = ROLE / "templates/status.html.j2"
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
A, B = "a1" * 20, "b2" * 20
LABELS = {"release": A, "environment": "production", "settings": {"DEBUG": "<b>"}, "config": ""}
HEALTHY = {"status": 200, "reason": ""}
GOOD: dict[str, Any] = {
    "ready": True,
    "service": "active",
    "says": "serving",
    "restarts": 0,
    "since": "2026-11-25T09:00:00+00:00",
    "memory": LABELS,
    "disk": LABELS,
    "health": {**HEALTHY, **LABELS},
    "tracker": {"status": 200, "since": "2026-11-25T09:00:00+00:00", "dropped": 0},
    "previous": B,
    "candidate": None,
    "lease": None,
    "free": {"bytes": 40_000_000_000, "share": 0.5},
    "damaged": [],
    "last": {"result": "switched", "message": "serving", "at": "2026-11-23T12:00:00+00:00"},
    "drift": None,
}
PROXY: dict[str, Any] = {
    "running": True,
    "maintenance": False,
    "draining": [],
    "names": {"shop.example.com": {"until": 1_803_600_000.0, "short": False, "problem": ""}},
}
WENT_BACK = {"result": "went back", "message": f"{B} does not serve.\nmore", "at": "2026-11-25T11:40:00+00:00"}
NOTHING = {"memory": None, "health": None, "tracker": None, "since": None}


def answer(**changes: Any) -> dict[str, Any]:
    return {"apps": {"booty": {**copy.deepcopy(GOOD), **changes}}}


def judge(host: str, answer: dict[str, Any]) -> dict[str, Any]:
    (row,) = fleet.rows_of({host: answer})
    return row


def judged(**changes: Any) -> dict[str, Any]:
    return judge("web1", answer(**changes))


@pytest.mark.parametrize(
    ("host_answer", "level", "notes"),
    [
        (answer(), "ok", []),
        (answer(drift=[]), "ok", []),
        (answer(tracker={"status": None, "since": None, "dropped": 0}), "ok", []),
        (answer(last=None), "ok", []),
        (answer(disk={**LABELS, "release": B}), "broken", [f"release in memory is {A}, on disk {B}"]),
        (answer(disk=None), "broken", ["release in memory", "environment in memory is production, on disk none"]),
        (
            answer(disk={**LABELS, "release": B}, lease="anna deploys, since 12:00"),
            "look",
            ["release in memory", "is held: anna deploys, since 12:00"],
        ),
        (answer(disk={**LABELS, "config": "/b"}), "broken", ["config in memory is none, on disk /b"]),
        (
            answer(disk={**LABELS, "settings": {"DEBUG": "", "NEW": "x"}}),
            "broken",
            ["settings in memory differ from those on disk: DEBUG, NEW"],
        ),
        (
            answer(health={"status": 503, "reason": "/health says 503: no disk"}),
            "broken",
            ["/health says 503: no disk"],
        ),
        (answer(health={"status": 0, "reason": "refused"}), "broken", ["refused"]),
        (answer(health={"status": 200, "reason": "GET / is answered by another"}), "broken", ["GET / is answered by"]),
        (
            answer(health={"status": 200, "reason": "GET / is answered by another"}, lease="anna"),
            "look",
            ["GET / is answered by another", "is held: anna"],
        ),
        (answer(health={**HEALTHY, **LABELS, "release": B}), "broken", [f"it answers release {B}"]),
        (answer(**NOTHING, service="failed"), "broken", ["serves nothing: booty.service is failed"]),
        (
            answer(**NOTHING, service="activating", restarts=4),
            "broken",
            ["serves nothing: booty.service is activating, started again 4 times"],
        ),
        (
            answer(says="serving with 1 of 2 workers, 3 failed in a row"),
            "look",
            ["booty.service is serving with 1 of 2 workers, 3 failed in a row"],
        ),
        (answer(**NOTHING, disk=None, last=None), "broken", ["has had no deploy yet"]),
        (answer(ready=False), "broken", ["has no Booty: run bootstrap.yml"]),
        (answer(candidate={"release": B}), "look", [f"has a candidate left over: {B}"]),
        (answer(candidate={"release": B}, lease="anna"), "look", ["is held: anna"]),
        (answer(tracker=None), "look", ["there is no SENTRY_DSN"]),
        (
            answer(tracker={"status": 403, "since": None, "dropped": 12}),
            "look",
            ["errors don't reach the tracker: 403, 12 lost"],
        ),
        (answer(free={"bytes": 800_000_000, "share": 0.04}), "look", ["has 800 MB of disk left"]),
        (answer(last=WENT_BACK), "look", [f"went back on 2026-11-25T11:40:00+00:00: {B} does not serve."]),
        (answer(last={**WENT_BACK, "result": "refused", "by": f"anna@ops deploys {B}"}), "look", ["refused on 2026"]),
        (answer(last={**WENT_BACK, "result": "refused", "by": "anna@ops goes back to "}), "ok", []),
        (answer(damaged=["state.json is damaged"]), "look", ["is not as it should be: state.json is damaged"]),
        (answer(drift=["booty.service differs"]), "look", ["drift: booty.service differs"]),
        (
            answer(new_secrets=True),
            "look",
            ["secrets.env is newer than the running process: deploy.yml -e app_restart"],
        ),
        (answer(proxy={**PROXY, "draining": True}), "look", ["is under way, as is normal: it takes 80 s"]),
        (answer(proxy=PROXY), "ok", []),
        (
            {"unreachable": True, "msg": "Task failed: x\nMake sure this host can be reached over ssh: ssh: no route"},
            "broken",
            ["can't be reached: ssh: no route"],
        ),
        ({"rc": 127, "msg": "not found"}, "broken", ["has no Python, and so no Booty"]),
        (
            {"msg": "Validation of arguments failed:\napp_port is no number\nmore"},
            "broken",
            ["no answer: Validation of arguments failed: app_port is no number"],
        ),
        ({"rc": 1, "msg": "sudo: a password is required\nmore"}, "broken", ["no answer: sudo: a password is required"]),
    ],
)
def test_judge(host_answer: dict[str, Any], level: str, notes: list[str]) -> None:
    row = judge("web1", host_answer)
    assert row["level"] == level
    assert len(row["notes"]) == len(notes)
    for note, expected in zip(row["notes"], notes, strict=True):
        assert expected in note


def test_rows_of_several_apps_have_both_names() -> None:
    other = {**LABELS, "release": B}
    shop = answer(memory=other, disk=other, health={**HEALTHY, **other}, drift=["x"])["apps"]["booty"]
    rows = fleet.rows_of({"web1": {"apps": {**answer()["apps"], "shop": shop}}, "web2": {"unreachable": True}})
    assert [row["name"] for row in rows] == ["web1 booty", "web1 shop", "web2"]
    assert fleet.mixed(rows) == []  # each app has a release of its own
    assert fleet.failure(rows, []) == "Broken: web2. A deploy would change: web1 shop."
    assert fleet.summary(rows)["hosts"] == 2
    assert fleet.table(rows, NOW, 150, colored=False).startswith(
        "3 services on 2 hosts: 1 in order, 1 to look at, 1 broken\n"
    )


def test_the_domains_are_shown_with_the_end_of_their_certificates() -> None:
    lacking = {**PROXY, "names": {"b.example.com": {"until": None, "short": False, "problem": "no address"}}}
    rows = [judged(proxy=PROXY), judge("web2", answer(proxy=lacking))]
    text = fleet.table(rows, NOW, 150, colored=False)
    assert re.search(r"host +domain +certificate until *\n", text)
    assert re.search(r"web1 +shop\.example\.com +2027-02-26 *\n", text)
    assert re.search(r"web2 +b\.example\.com +none *\n", text)
    page = fleet.page(TEMPLATE, rows, NOW)
    assert "<h2>Domains</h2>" in page
    assert "2027-02-26" in page
    assert "domain" not in fleet.table([judged()], NOW, 150, colored=False)
    assert "<h2>" not in fleet.page(TEMPLATE, [judged()], NOW)


def test_a_run_that_starts_no_process_says_that_secrets_are_new() -> None:
    host, options = {"new_secrets": True, "unsettled": ""}, {"app_name": "shop", "app_settings": {}}
    (warning,) = judging.warnings(host, {**options, "app_restart": False}, {}, "web1")
    assert warning == (
        "/etc/shop/secrets.env of web1 is newer than the running process, and this run starts no other one. To use the"
        " new values: ansible-playbook deploy.yml -e app_restart=true"
    )
    assert [*judging.warnings(host, {**options, "app_restart": True}, {}, "web1")] == []
    assert [*judging.warnings({**host, "unsettled": "x"}, {**options, "app_restart": False}, {}, "web1")] == []


def test_a_broken_or_drifting_host_fails_the_run() -> None:
    rows = [judged(), judged(candidate={"release": B}), judged(tracker=None)]
    assert fleet.failure(rows, []) == ""
    assert fleet.failure([*rows, judged(drift=["x"])], []) == "A deploy would change: web1."
    assert fleet.failure([*rows, judge("web2", {"unreachable": True})], []) == "Broken: web2."


def test_a_fleet_on_two_releases_is_not_in_order() -> None:
    other = {**LABELS, "release": B}
    odd = judge("web3", answer(memory=other, disk=other, health={**HEALTHY, **other}))
    rows = [judged(), judge("web2", answer()), odd]
    (message,) = fleet.mixed(rows)
    assert message == f"production is on 2 releases: {A} on web1, web2; {B} on web3."
    assert [row["level"] for row in rows] == ["look"] * 3
    assert rows[2]["notes"] == ["serves one of 2 releases of production"]
    assert fleet.failure(rows, [message]).startswith(message)
    elsewhere = {**other, "environment": "staging"}
    apart = judge("web4", answer(memory=elsewhere, disk=elsewhere, health={**HEALTHY, **elsewhere}))
    assert fleet.mixed([judged(), apart, judge("web5", {"unreachable": True})]) == []


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2026-11-25T11:59:59+00:00", "1 s"),
        ("2026-11-25T12:00:05+00:00", "0 s"),
        ("2026-11-25T11:01:00+00:00", "59 min"),
        ("2026-11-24T12:00:01+00:00", "23 h"),
        ("2026-10-25T12:00:00+00:00", "31 d"),
    ],
)
def test_ago(at: str, expected: str) -> None:
    assert fleet.ago(at, NOW) == expected


def test_the_table_shows_differences_and_fits_the_terminal() -> None:
    rows = [
        judged(),
        judge("web2", answer(disk={**LABELS, "release": B})),
        judge("web3", {"unreachable": True, "msg": "gone"}),
    ]
    wide = fleet.table(rows, NOW, 150, colored=False)
    assert wide.splitlines()[0] == "3 hosts: 1 in order, 2 broken"
    assert "\033" not in wide
    for word in ("serves", "on disk", "in memory", "environment", "previous", "tracker", "free", "last result"):
        assert word in wide
    assert f"web2 release in memory is {A[:9]}, on disk {B[:9]}" in wide
    assert "switched, 2 d ago" in wide
    assert "…" not in wide
    for width in (60, 80, 100):
        narrow = fleet.table(rows, NOW, width, colored=False)
        grid = narrow.partition("\nweb2 release")[0].splitlines()
        assert max(map(len, grid)) <= width
        assert all(word in narrow for word in ("serves", "for", "on disk"))
        assert A[:9] in narrow
        assert "…" not in narrow
    colored = fleet.table(rows, NOW, 150, colored=True)
    assert f"\033[1;31m{B[:9]}\033[0m" in colored
    assert f"\033[1;31m{A[:9]}\033[0m" in colored


def test_the_page_is_self_contained_and_escapes() -> None:
    evil = "<script>alert(1)</script>"
    rows = [judged(last={"result": evil, "message": evil, "at": GOOD["since"]}), judge(evil, answer())]
    page = fleet.page(TEMPLATE, [*rows, judge("web3", {"unreachable": True, "msg": "gone"})], NOW)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 3
    assert page.count("<code>DEBUG=&lt;b&gt;</code>") == 2
    assert not re.search(r"(src=|href=|url\(|@import)", page)


# On the host


@pytest.mark.parametrize(
    ("timestamp", "expected"), [("@1764000000", "2025-11-24T16:00:00+00:00"), ("", None), ("n/a", None), ("@", None)]
)
def test_since(timestamp: str, expected: str | None) -> None:
    assert status.since(timestamp) == expected


def test_a_lease_is_read_without_taking_the_lock(tmp_path: Path) -> None:
    app = App("shop", tmp_path)
    assert lease.holder(app, "") is None
    app.lock.parent.mkdir()
    app.lock.write_text("anna@ops deploys a1, since 12:00\n")
    file = app.lock.stat()
    place = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    other = f"1: FLOCK  ADVISORY  WRITE 12 {place}:{file.st_ino}1 0 EOF\n"
    assert lease.holder(app, other) is None
    held = f"{other}2: FLOCK  ADVISORY  WRITE 13 {place}:{file.st_ino} 0 EOF\n"
    assert lease.holder(app, held) == "anna@ops deploys a1, since 12:00"


def record(at: int, **fields: Any) -> str:
    return json.dumps({"__REALTIME_TIMESTAMP": str(at * 1_000_000), "SYSLOG_IDENTIFIER": "booty-deploy", **fields})


def test_the_last_result() -> None:
    assert status.last("") is None
    proving, older = record(1_764_000_001, MESSAGE="proving"), record(1_764_000_000, MESSAGE=[1, 2])
    assert status.last(f"{proving}\n{older}") == {"message": "proving", "at": "2025-11-24T16:00:01+00:00"}
    # journalctl writes a message with control characters, such as an app's own words, as a list of bytes.
    assert status.last(older) == {"message": "\x01\x02", "at": "2025-11-24T16:00:00+00:00"}
    # journalctl prints it as it is, and Python takes it for the end of a line.
    odd = record(1_764_000_001, MESSAGE="an app's word").replace("'", "\u2028")
    assert status.last(f"{odd}\n{older}\n")["message"] == "an app\u2028s word"  # type: ignore[index]
    ended = record(1_764_000_002, MESSAGE="serving", BOOTY_RESULT="switched", BOOTY_FROM=A, BOOTY_BY="anna")
    shown = {"message": "serving", "result": "switched", "from": A, "by": "anna", "at": "2025-11-24T16:00:02+00:00"}
    assert status.last(f"{proving}\n{ended}\n{older}") == shown


# On a real host


@pytest.fixture
def rows(site: Site, tmp_path: Path) -> Callable[..., tuple[Play, dict[str, dict[str, Any]]]]:
    """Return a function that runs status.yml for the site's host, or also for one that does not answer."""
    away = tmp_path / "away.yml"
    away.write_text("booty: {hosts: {away: {ansible_host: 127.0.0.1, ansible_port: 1}}}\n")

    def ask(limit: str = "", *arguments: str, **variables: str) -> tuple[Play, dict[str, dict[str, Any]]]:
        file = tmp_path / "status.json"
        all_variables = {**site.variables, "status_format": "json", "status_file": str(file), **variables}
        limits = ["-i", str(away), "--limit", limit or site.host.name]
        played = start("status.yml", site.inventory, all_variables, *limits, *arguments).end()
        assert file.is_file(), played.output
        app = variables.get("app_name", "booty")
        shown = [row for row in json.loads(file.read_text())["hosts"] if row["app"] in {app, None}]
        return played, {row["host"]: row for row in shown}

    return ask


Ask = Callable[..., tuple[Play, dict[str, dict[str, Any]]]]


def test_every_host_is_a_row(site: Site, rows: Ask) -> None:
    before = site.release()
    site.deploy()
    sha = site.release()
    site.deploy()
    played, hosts = rows("booty")
    assert played.status != 0
    assert "Broken: " in played.output
    assert set(hosts) == {site.host.name, site.bare.name, "away"}
    row = hosts[site.host.name]
    labels = {"release": sha, "environment": "staging"}
    identity = {**labels, "settings": {}, "config": ""}
    # Leave out the note about two releases: the other host may serve the release of an earlier test.
    assert [note for note in row["notes"] if not note.endswith("releases of staging")] == []
    assert row["level"] == ("look" if row["notes"] else "ok")
    assert (row["memory"], row["disk"], row["health"]) == (identity, identity, {**HEALTHY, **labels})
    assert row["previous"] == before
    assert (row["candidate"], row["lease"], row["drift"]) == (None, None, None)
    assert row["last"]["result"] == "switched"
    assert row["last"]["release"] == sha
    assert abs((datetime.now(UTC) - datetime.fromisoformat(row["since"])).total_seconds()) < 600
    assert row["free"]["bytes"] > 0
    assert hosts["away"]["level"] == "broken"
    assert "Connection refused" in hosts["away"]["notes"][0]


def test_status_prints_nothing_else(site: Site) -> None:
    site.deploy()
    played = site.play("status.yml", status_format="json")
    assert played.status == 0, played.output
    assert [row["host"] for row in json.loads(played.output)["hosts"]] == [site.host.name]
    played = site.play("status.yml")
    assert played.status == 0, played.output
    assert played.output.startswith("1 host: 1 in order\n")
    assert f"{site.health()['release']}"[:9] in played.output


def test_the_status_of_another_app_of_the_host(site: Site, rows: Ask) -> None:
    """The call names the app, so the answer is about that app's units, paths and records alone."""
    site.deploy()
    row = rows(app_name="shop")[1][site.host.name]
    assert (row["service"], row["memory"], row["disk"], row["previous"], row["last"]) == ("inactive", *(None,) * 4)
    assert rows()[1][site.host.name]["last"]["result"] == "switched"


def test_json_stays_json_when_a_host_fails(site: Site, tmp_path: Path) -> None:
    """Standard output is one JSON document. A failed host is a row of it; the message goes to standard error."""
    site.deploy()
    site.run(
        "id sandra || useradd --create-home --shell /bin/bash sandra; mkdir -p ~sandra/.ssh;"
        "cp ~/.ssh/authorized_keys ~sandra/.ssh/; chown -R sandra: ~sandra/.ssh"
    )
    options = sandbox.ssh_options(site.host.instance)
    known = {
        "ansible_host": site.host.address,
        "ansible_ssh_private_key_file": options[1],
        "ansible_ssh_common_args": " ".join(options[2:]),
        "app_environment": "staging",
    }
    hosts = {
        "anchor": {**known, "ansible_connection": "nosuch"},
        "sandra": {**known, "ansible_user": "sandra"},
        "web": {**known, "ansible_user": "root"},
    }
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(json.dumps({"booty": {"hosts": hosts}, "other": {"hosts": {"else": {}}}}))
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "status.yml", "-i", str(inventory)]
    results, messages = {}, {}
    for limit in ("booty", "sandra", "else", "web"):
        arguments = ["--limit", limit, "-e", "status_format=json"]
        done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        document = json.loads(done.stdout)
        results[limit] = (done.returncode, {row["host"]: (row["level"], row["notes"][:1]) for row in document["hosts"]})
        assert document["summary"]["hosts"] == len(document["hosts"])
        assert (document["message"] or "").splitlines()[:1] == done.stderr.removeprefix("[ERROR]: ").splitlines()[:1]
        messages[limit] = document["message"]
    refused = ("broken", ["gives no answer: Task failed: Missing sudo password"])
    assert results["booty"] == (
        2,
        {
            "anchor": ("broken", ["gives no answer: Task failed: the connection plugin 'nosuch' was not found"]),
            "sandra": refused,
            "web": ("ok", []),
        },
    )
    assert results["sandra"] == (2, {"sandra": refused})
    assert results["web"] == (0, {"web": ("ok", [])})
    assert results["else"] == (4, {})
    assert "has no host in the group 'booty' that --limit else leaves" in messages["else"]


def test_a_release_on_disk_that_differs_from_memory_is_broken(site: Site, rows: Ask) -> None:
    site.deploy()
    sha = site.health()["release"]
    site.run(
        f"cp -a /etc/booty/release.env /root/; sed -i 's/SENTRY_RELEASE=.*/SENTRY_RELEASE={B}/' /etc/booty/release.env"
    )
    try:
        played, hosts = rows()
        assert played.status != 0
        assert f"Broken: {site.host.name}." in played.output
        # The release in memory is the service's own answer.
        assert f"release in memory is {sha}, on disk {B}" in hosts[site.host.name]["notes"]
        assert hosts[site.host.name]["level"] == "broken"
    finally:
        site.run("mv /root/release.env /etc/booty/release.env")


def test_a_candidate_that_is_left_over(site: Site, rows: Ask) -> None:
    site.deploy()
    site.run("cp /etc/booty/release.env /run/booty/candidate.env; systemctl start booty-candidate.service")
    try:
        played, hosts = rows()
        assert played.status == 0, played.output
        assert hosts[site.host.name]["candidate"]["release"] == site.health()["release"]
        assert "has a candidate left over" in hosts[site.host.name]["notes"][0]
    finally:
        site.run("systemctl stop booty-candidate.service; rm /run/booty/candidate.env")


def test_a_lease_that_is_held(site: Site, rows: Ask) -> None:
    site.deploy()
    held = "anna@ops deploys something, since just now"
    site.run(f"echo '{held}' > /run/booty-deploy.lock; systemd-run --unit=holder flock /run/booty-deploy.lock sleep 60")
    try:
        site.wait_for("! flock --nonblock /run/booty-deploy.lock true")
        played, hosts = rows()
        assert played.status == 0, played.output
        assert hosts[site.host.name]["lease"] == held
        assert f"is held: {held}" in hosts[site.host.name]["notes"]
    finally:
        site.run("systemctl stop holder.service")
    assert rows()[1][site.host.name]["lease"] is None


def test_a_tracker_that_is_down(site: Site, rows: Ask) -> None:
    site.deploy()
    key = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
    site.place_secrets(f"SENTRY_DSN=http://{key}@127.0.0.1:9/1\n")
    try:
        site.run("systemctl restart booty.service")
        assert rows()[1][site.host.name]["tracker"] == {"status": None, "since": None, "dropped": 0}
        site.run(RAISE)
        deadline = time.monotonic() + 20
        while not rows()[1][site.host.name]["tracker"]["dropped"]:
            assert time.monotonic() < deadline
        played, hosts = rows("", "-vvv")
        assert played.status == 0, played.output
        assert "errors don't reach the tracker" in hosts[site.host.name]["notes"][0]
        assert key not in played.output + json.dumps(hosts)
    finally:
        site.place_secrets(f"SENTRY_DSN={site.tracker.dsn}\n")
        site.run("systemctl restart booty.service")


def test_status_starts_no_stopped_service(site: Site, rows: Ask) -> None:
    site.deploy()
    site.run("systemctl stop booty.service")
    try:
        played, hosts = rows()
        assert played.status != 0
        assert hosts[site.host.name]["notes"] == ["serves nothing: booty.service is inactive"]
        assert site.pid() == "0"
    finally:
        site.run("systemctl start booty.service")


def test_drift(site: Site, rows: Ask) -> None:
    site.deploy()
    old = site.health()["release"]
    played, hosts = rows(app_drift="true")
    assert played.status == 0, played.output
    assert hosts[site.host.name]["drift"] == []
    new = site.release()
    files = "find /etc /opt/booty -type f -printf '%p %T@ %s\n' | sort | sha256sum"
    pid, disk = site.pid(), site.run(files)
    played, hosts = rows(app_drift="true", app_drain_seconds="29")
    assert played.status != 0
    assert f"A deploy would change: {site.host.name}." in played.output
    assert hosts[site.host.name]["drift"] == [f"release {old} → {new}", "booty.service differs"]
    assert (site.pid(), site.run(files)) == (pid, disk)
    # Compared with the running release, there is no drift.
    assert rows(app_drift="true", app_release=str(old))[1][site.host.name]["drift"] == []
    assert rows()[1][site.host.name]["drift"] is None


# In a real browser


@pytest.fixture(scope="module")
def chromium() -> str:
    """Return the path of Debian's chromium, which is installed if it is missing."""
    if not shutil.which("chromium"):
        if os.geteuid() or not shutil.which("apt-get"):
            pytest.skip("the page is looked at with Debian's chromium: apt-get install chromium")
        subprocess.run(["apt-get", "install", "-qy", "--no-install-recommends", "chromium"], check=True, timeout=600)
    return shutil.which("chromium") or ""


class Served(http.server.SimpleHTTPRequestHandler):
    """Serves a directory, and records the paths of all requests."""

    def log_message(self, *_: Any) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    handler = functools.partial(Served, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# The page's policy forbids scripts, so a script around an iframe measures it, at widths that no window can have.
FRAME = """<iframe id="page" src="status.html" width="WIDTH" height="2000"></iframe><pre id="measured"></pre><script>
document.getElementById("page").onload = ({target}) => {
  const view = target.contentDocument, nodes = []
  const channels = (color) => color.match(/[0-9.]+/g).map(Number)
  const luminance = (color) => channels(color).slice(0, 3)
    .map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0)
  const ground = (node) => {
    const color = getComputedStyle(node).backgroundColor
    return channels(color)[3] === 0 && node.parentElement ? ground(node.parentElement) : color
  }
  for (const node of view.querySelectorAll("body *")) {
    const shown = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim())
    if (!shown || !node.offsetParent) continue
    const [low, high] = [luminance(getComputedStyle(node).color), luminance(ground(node))].sort((a, b) => a - b)
    nodes.push([node.textContent.trim(), (high + 0.05) / (low + 0.05)])
  }
  document.getElementById("measured").textContent = JSON.stringify({
    ground: luminance(getComputedStyle(view.body).backgroundColor),
    overflow: view.documentElement.scrollWidth - view.documentElement.clientWidth,
    faint: nodes.filter(([, contrast]) => contrast < 4.5), texts: nodes.map(([text]) => text),
    scripts: view.querySelectorAll("script").length,
  })
}
</script>"""


@pytest.mark.long
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(chromium: str, served: Any, tmp_path: Path, width: int, dark: bool) -> None:
    """The page is readable in both color schemes, fits a phone, loads no other file and runs no text of a host."""
    evil = "<script>document.title = 'owned'</script><img src=/owned>"
    answers = {
        "web1.internal": answer(),
        "web2.internal": answer(disk={**LABELS, "release": B}, candidate={"release": B}),
        "a-host-with-a-rather-long-name.eu-central-1.compute.internal": answer(last={**WENT_BACK, "message": evil}),
        "web4.internal": {"unreachable": True, "msg": "no route"},
        "web5.internal": answer(free={"bytes": 1, "share": 0.0}, drift=[f"release {A} → {B}"], tracker=None),
    }
    page = fleet.page(TEMPLATE, fleet.rows_of(answers), NOW)
    (tmp_path / "status.html").write_text(page)
    (tmp_path / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
    quiet = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
    flags = [f"--{flag}" for flag in f"headless {quiet} disable-sync virtual-time-budget=5000 dump-dom".split()]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={int(not dark)}"]
    address = f"http://127.0.0.1:{served.server_address[1]}/frame.html"
    done = subprocess.run([chromium, *flags, address], capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r'<pre id="measured">(.+?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stdout + done.stderr
    measured = json.loads(match[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert (measured["ground"] < 0.2) is dark
    assert measured["overflow"] == 0
    assert measured["faint"] == []
    assert {*answers} <= {text.split()[0] for text in measured["texts"]}
    assert measured["scripts"] == 0
    assert any(evil in text for text in measured["texts"])
    # A browser requests /favicon.ico from every site.
    assert {*served.asked} - {"/favicon.ico"} == {"/frame.html", "/status.html"}
