"""history.yml: the runs that the journals of hosts know, a row for each."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import history
from booty_host import history as on_host
from booty_host.app import App

from tests.conftest import ROLE, Site

A, B = "a1" * 20, "b2" * 20
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
DEPLOYS, BACK = f"anna@ops deploys {B}", f"anna@ops goes back to {A}"


def record(at: float, result: str = "", run: str = "1", by: str = DEPLOYS, **changes: str) -> dict[str, Any]:
    """Return a record as a host answers it; without a result, that of a cutover's begin."""
    fields = {"app": "shop", "run": run, "result": result, "release": B, "from": A, "by": by, "seconds": "2.5"}
    named = {name: value for name, value in {**fields, **changes}.items() if value}
    if not result:
        named.pop("seconds", None)
    return {**named, "at": at}


def answers(**records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {host: {"records": of_host, "begins": 1_764_000_000.0} for host, of_host in records.items()}


def rows(**records: list[dict[str, Any]]) -> list[tuple[str, str, dict[str, list[str]]]]:
    """Return verb, result and hosts of each row."""
    return [(row["verb"], row["result"], row["hosts"]) for row in history.runs(answers(**records))]


def test_a_run_on_many_hosts_is_one_row() -> None:
    found = history.runs(answers(
        web1=[record(110, "switched"), record(107)],
        web2=[record(120, "switched"), record(117)],
        web3=[record(60, "switched", run="0", by=BACK, release=A, **{"from": B})],
    ))  # fmt: skip
    assert [(row["verb"], row["release"], row["from"]) for row in found] == [("deploy", B, A), ("rollback", A, B)]
    assert found[0] == {
        "at": "1970-01-01T00:01:47+00:00", "app": "shop", "who": "anna@ops", "verb": "deploy", "release": B, "from": A,
        "hosts": {"switched": ["web1", "web2"]}, "result": "switched", "watch": None, "seconds": 13.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("web1", "web2", "result", "hosts"),
    [
        ([record(9, "went back")], [record(9, "switched")], "mixed", {"switched": ["web2"], "went back": ["web1"]}),
        ([record(9, "not switched")], [], "not switched", {"not switched": ["web1"]}),
        ([record(9, "refused")], [], "refused", {"refused": ["web1"]}),
        # It switched, and was taken back with its wave. That record names the release that serves again.
        (
            [record(9, "taken back", by=f"anna@ops takes back {B}", release=A, **{"from": B}), record(8, "switched")],
            [record(8, "not switched")],
            "went back",
            {"taken back": ["web1"], "not switched": ["web2"]},
        ),
        # The host program was killed, or is at work.
        ([record(9)], [record(9, "switched")], "unknown", {"switched": ["web2"], "under way": ["web1"]}),
    ],
)
def test_the_result_of_a_run(
    web1: list[dict[str, Any]], web2: list[dict[str, Any]], result: str, hosts: dict[str, list[str]]
) -> None:
    assert rows(web1=web1, web2=web2) == [("deploy", result, hosts)]


def test_the_watch_is_part_of_its_run() -> None:
    of_watch = {"app": "shop", "run": "1", "release": B, "watch": "bad", "at": 20}
    (row,) = history.runs(answers(web1=[of_watch, record(9, "switched")]))
    assert (row["watch"], row["hosts"]) == ("bad", {"switched": ["web1"]})
    assert history.level(row) == "broken"
    # watch.yml alone is no deploy.
    assert history.runs(answers(web1=[of_watch])) == []


def test_records_of_older_versions() -> None:
    """They have no run. Those of one person, one release and about one time are of one run."""
    old = {"run": ""}
    back = {"by": f"anna@ops takes back {B}", "release": A, "from": B}
    assert rows(
        web1=[record(9000, "switched", **old), record(21, "taken back", **old, **back), record(12, "switched", **old)],
        web2=[record(20, "went back", **old)],
        web3=[record(14, "switched", by="bob@ops deploys " + B, **old)],
    ) == [
        ("deploy", "switched", {"switched": ["web1"]}),
        ("deploy", "switched", {"switched": ["web3"]}),
        ("deploy", "went back", {"taken back": ["web1"], "went back": ["web2"]}),
    ]
    assert rows(web1=[{"result": "switched", "at": 5.0}]) == [("deploy", "switched", {"switched": ["web1"]})]


def test_the_table_drops_columns_and_says_what_is_not_kept() -> None:
    of_hosts = answers(web1=[record(9, "went back")], web2=[record(9, "switched")])
    found = history.runs(of_hosts)
    wide = history.table(found, [*history.limits(of_hosts, complete=False)], 150, colored=False)
    assert " ".join(wide.splitlines()[0].split()) == "when who what release from hosts ended watch took"
    assert "1970-01-01 00:00   anna@ops   deploy   b2b2b2b2b   a1a1a1a1a   2       mixed" in wide
    assert "1970-01-01 00:00 went back: web1; switched: web2" in wide
    assert "The journals of the hosts begin on 2025-11-24 16:00 (UTC). They have no older deploys." in wide
    narrow = history.table(found, [], 66, colored=False)
    assert " ".join(narrow.splitlines()[0].split()) == "when who what release hosts ended"
    assert [*history.limits(of_hosts, complete=True)] == []
    of_hosts["web2"]["older"] = True  # `since`, or more runs than were asked for
    (remark,) = history.limits(of_hosts, complete=False)
    assert remark == "The journals of the hosts begin on 2025-11-24 16:00 (UTC)."


def journal_of(folder: Path, *lines: tuple[int, dict[str, str]]) -> list[str]:
    """Return a command that prints records as journalctl does, the newest first; options are left out."""
    records = [
        {"__REALTIME_TIMESTAMP": str(at * 1_000_000), **{f"BOOTY_{name.upper()}": text for name, text in of.items()}}
        for at, of in lines
    ]
    file = folder / "journal.json"
    file.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return ["sh", "-c", f"cat {file}"]


def test_a_run_that_is_no_row_takes_no_place_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """watch.yml leaves a record with a run on each host, and a host may have more of them than another."""
    deploy, back = {"release": B, "by": DEPLOYS, "from": A}, {"release": A, "by": BACK, "from": B}
    watches = [(30 + n, {"run": f"w{n}", "watch": "clean", "release": A}) for n in range(8, 0, -1)]
    old = [(21, {"run": "2", "result": "switched", **back}), (20, {"run": "2", **back})]
    older = [(11, {"run": "1", "result": "switched", **deploy}), (10, {"run": "1", **deploy})]
    answered: dict[str, dict[str, Any]] = {}
    for host, lines in (("web1", [*watches, *old, *older]), ("web2", [*watches[6:], *old, *older])):
        monkeypatch.setattr(on_host, "JOURNAL", journal_of(tmp_path, *lines))
        for count in (1, 2):
            answered[f"{host}-{count}"] = on_host.history(App("shop", tmp_path), count, "", False, False)
    one, two = ({host: answered[f"{host}-{count}"] for host in ("web1", "web2")} for count in (1, 2))
    (row,) = history.runs(one)
    assert (row["verb"], row["hosts"]) == ("rollback", {"switched": ["web1", "web2"]})
    assert [answer["older"] for answer in one.values()] == [True, True]
    assert [row["verb"] for row in history.runs(two)] == ["rollback", "deploy"]
    assert [answer["older"] for answer in two.values()] == [False, False]


def test_texts_of_hosts_are_escaped_on_the_page() -> None:
    found = history.runs(answers(web1=[record(9, "switched", by="<script>x</script> deploys " + B)]))
    page = history.page(ROLE / "templates/history.html.j2", found, ["<b>"], NOW)
    assert "<script>" not in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    assert "&lt;b&gt;" in page
    assert B in page


def shown(site: Site, *arguments: str, status: int = 0, **variables: str) -> dict[str, Any]:
    """Return the JSON document of history.yml."""
    played = site.play("history.yml", *arguments, on=None, status_format="json", **variables)
    assert played.status == status, played.output
    document: dict[str, Any] = json.loads(played.output[: played.output.rindex("}") + 1])
    return document


def test_a_deploy_is_the_newest_run(site: Site) -> None:
    before, after = site.health()["release"] if site.pid() != "0" else None, site.release()
    site.deploy()
    (run,) = shown(site, lines="1")["runs"]
    assert (run["verb"], run["from"], run["release"], run["app"]) == ("deploy", before, after, "booty")
    assert (run["result"], run["hosts"]) == ("switched", {"switched": [site.host.name]})
    assert "@" in run["who"]
    assert 0 < run["seconds"] < 60


@pytest.mark.long
def test_the_runs_of_a_fleet(site: Site, tmp_path: Path) -> None:
    pair, both = [site.host.name, site.bare.name], ("--limit", "booty")
    assert site.play("bootstrap.yml", on=site.bare).status == 0
    since = site.run("date --utc '+%F %T'")
    good = site.release()
    assert site.play("deploy.yml", *both, on=None).status == 0
    newer = site.release()
    failed = site.play("deploy.yml", *both, on=None, app_wave_check="false", app_canary="0")
    assert failed.status == 2
    site.deploy("--limit", "booty")
    assert site.play("rollback.yml", *both, on=None).status == 0
    refused = site.play("deploy.yml", app_release=f"{good}~1", app_require_ancestor="true")
    assert refused.status == 2, refused.output
    # The host program is killed in the middle of a cutover.
    site.release(text="import time\ntime.sleep(8)\nfrom fastapi import APIRouter\nrouter = APIRouter()\n")
    with site.journal() as lines:
        running = site.start("deploy.yml")
        next(line for line in lines if "proving" in line)
    site.run("systemctl kill --signal=KILL 'booty-cutover-*.scope'")
    assert running.end().status == 2
    document = shown(site, *both, since=since)
    found = [(run["verb"], run["release"], run["result"], run["hosts"]) for run in document["runs"]]
    cut_off, *others = found
    assert (cut_off[0], cut_off[2:]) == ("deploy", ("unknown", {"under way": [site.host.name]}))
    assert others == [
        ("deploy", site.repository.git("rev-parse", f"{good}~1"), "refused", {"refused": [site.host.name]}),
        ("rollback", good, "switched", {"switched": pair}),
        ("deploy", newer, "switched", {"switched": pair}),
        ("deploy", newer, "went back", {"taken back": pair}),
        ("deploy", good, "switched", {"switched": pair}),
    ]
    assert document["remarks"][0].startswith("The journals of the hosts begin ")
    assert shown(site, *both, lines="2")["runs"] == document["runs"][:2]
    assert shown(site, *both, lines="2")["remarks"] == []
    assert shown(site, *both, since="1s")["runs"] == []
    # A record of an older version, and one that is not printable.
    for fields in (f"BOOTY_RESULT=switched\\nBOOTY_RELEASE={B}\\nBOOTY_BY={DEPLOYS}", "BOOTY_RESULT=\\001\\377"):
        text = f"MESSAGE=x\\nSYSLOG_IDENTIFIER=booty-deploy\\nBOOTY_APP=booty\\n{fields}\\n"
        site.run(f"printf '{text}' | logger --journald")
    newest = shown(site, lines="1")["runs"][0]
    assert (newest["who"], newest["release"], newest["from"], newest["result"]) == ("anna@ops", B, None, "switched")
    wrong = site.play("history.yml", since="gestern")
    assert wrong.status == 2
    assert f"{site.host.name} since=gestern: " in wrong.output
    page = tmp_path / "history.html"
    cut = "systemctl stop ssh.socket ssh.service; sleep 25; systemctl start ssh.service"
    site.bare.ssh(f"systemd-run --quiet sh -c '{cut}'")
    site.run(f"! ssh-keyscan -T 2 {site.bare.address} 2>/dev/null | grep .")
    variables = {"status_file": str(page), "ansible_ssh_args": "-o ControlMaster=no -o ConnectTimeout=3"}
    away = site.play("history.yml", *both, on=None, status_format="html", **variables)
    assert away.status == 2
    assert f"{site.bare.name} can't be reached: " in away.output
    assert f"{site.bare.name} can&#39;t be reached: " in page.read_text()
    assert newer in page.read_text()
    site.run("journalctl --rotate --vacuum-time=1s")
    rotated = shown(site)
    assert rotated["runs"] == []
    site.deploy(app_release=good)
