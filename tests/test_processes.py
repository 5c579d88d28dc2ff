"""Processes and timers: their description, their units, their host, and what a deploy makes of them on a host."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import describe, places, programs, view
from ansible_collections.booty.deploy.plugins.module_utils.controller.process import BuildError

from tests.conftest import Repository
from tests.test_templates import unit, values

CALENDAR = (
    'a time of systemd\'s calendar, in quotes, such as "03:00", "Mon *-*-* 03:00" or "*:0/15" (not cron\'s format; to'
    " try one: systemd-analyze calendar)"
)
REFUSED: list[tuple[str, Any, str]] = [
    ("processes", ["celery"], "a table with a name for each, such as {worker: {command: celery -A shop worker}}"),
    (
        "processes",
        {"Worker": "celery"},
        "a name of at most 31 lower-case letters, digits and dashes that begins with a letter, in place of 'Worker'",
    ),
    (
        "processes",
        {1: "celery"},
        "a name of at most 31 lower-case letters, digits and dashes that begins with a letter, in place of '1'",
    ),
    (
        "processes",
        {"candidate": "celery"},
        "another name than candidate, which has a meaning of its own. So have " + ", ".join(programs.RESERVED),
    ),
    ("processes", {"worker": 3}, "for worker a table with a command"),
    ("processes", {"worker": {"count": 2}}, "for worker, as its command, a command of one line for /bin/bash"),
    ("processes", {"worker": "a\nb"}, "for worker, as its command, a command of one line for /bin/bash"),
    ("processes", {"worker": {"command": ["a"]}}, "for worker, as its command, a command of one line for /bin/bash"),
    (
        "processes",
        {"worker": {"command": "a", "number": 2}},
        "for worker only command, count, stop_signal, stop_seconds, one_host, and no 'number'",
    ),
    ("processes", {"worker": {"command": "a", "count": -1}}, "for worker, as its count, a whole number, 0 to 100"),
    ("processes", {"worker": {"command": "a", "count": True}}, "for worker, as its count, a whole number, 0 to 100"),
    (
        "processes",
        {"worker": {"command": "a", "stop_signal": "TERM"}},
        "for worker, as its stop_signal, one of " + ", ".join(programs.SIGNALS),
    ),
    (
        "processes",
        {"worker": {"command": "a", "stop_seconds": 0}},
        "for worker, as its stop_seconds, a whole number of seconds, 1 to 86400",
    ),
    ("processes", {"worker": {"command": "a", "one_host": "yes"}}, "for worker, as its one_host, true or false"),
    ("timers", {"nightly": "a"}, f"for nightly, as its schedule, {CALENDAR}"),
    ("timers", {"nightly": {"command": "a", "schedule": "0 3 * * *"}}, f"for nightly, as its schedule, {CALENDAR}"),
    ("timers", {"nightly": {"command": "a", "schedule": "@daily"}}, f"for nightly, as its schedule, {CALENDAR}"),
    # YAML takes 12:30 without quotes for a number.
    ("timers", {"nightly": {"command": "a", "schedule": 750}}, f"for nightly, as its schedule, {CALENDAR}"),
    ("timers", {"nightly": {"command": "a", "schedule": "03:00; reboot"}}, f"for nightly, as its schedule, {CALENDAR}"),
    (
        "timers",
        {"nightly": {"command": "a", "schedule": "03:00", "count": 1}},
        "for nightly only command, schedule, one_host, and no 'count'",
    ),
]


@pytest.mark.parametrize(("kind", "value", "write"), REFUSED)
def test_what_is_refused(kind: str, value: Any, write: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(write)}$"):
        getattr(programs, kind)(value)


@pytest.mark.parametrize("schedule", ["03:00", "Mon *-*-* 03:00", "*:0/15", "hourly", "Mon..Fri 22:30 Europe/Berlin"])
def test_a_schedule_is_one_of_systemd(schedule: str) -> None:
    assert programs.timers({"nightly": {"command": "a", "schedule": schedule}}) == {
        "nightly": {"command": "a", "schedule": schedule, "one_host": True}
    }


def test_a_command_alone_is_a_process_with_the_defaults() -> None:
    assert programs.processes({"worker": "rq worker", "beat": {"command": "b", "one_host": True}}) == {
        "beat": {"command": "b", "count": 1, "stop_signal": "SIGTERM", "stop_seconds": 60, "one_host": True},
        "worker": {"command": "rq worker", "count": 1, "stop_signal": "SIGTERM", "stop_seconds": 60, "one_host": False},
    }


TABLES = """
[tool.booty.processes]
worker = "celery -A shop worker"
[tool.booty.timers.nightly]
command = "python manage.py clearsessions"
schedule = "03:00"
"""


def test_the_commit_says_what_runs_and_a_procfile_starts_nothing(repository: Repository) -> None:
    repository.write("app/pyproject.toml", (repository.path / "app/pyproject.toml").read_text() + TABLES)
    repository.write("app/Procfile", "worker: celery\nclock: python clock.py\n")
    described = describe.describe(repository.path, repository.commit("Run a worker"), "app", {})
    assert described["processes"] == programs.processes({"worker": "celery -A shop worker"})
    assert described["timers"]["nightly"]["schedule"] == "03:00"
    assert described["found"][-3:] == [
        "process worker: celery -A shop worker ([tool.booty] in pyproject.toml)",
        "timer nightly: python manage.py clearsessions ([tool.booty] in pyproject.toml)",
        "does not start clock (Procfile)",
    ]
    # What the inventory starts is no line that nothing starts.
    described = describe.describe(repository.path, "HEAD", "app", {"starts": ["clock"]})
    assert not any("does not start" in line for line in described["found"])
    # The inventory comes before the commit, when it runs.
    options = {"app_processes": programs.processes({"other": "x"}), "app_timers": {}}
    chosen = programs.chosen(options, described)
    assert ([*chosen[0]], [*chosen[1]]) == (["other"], ["nightly"])
    options["app_processes"] = programs.processes({"nightly": "x"})
    (clash,) = programs.clashes(options, described)
    assert clash == "nightly is both a process and a timer of the app. Give one of them another name."


def test_a_wrong_table_of_the_commit_is_refused(repository: Repository) -> None:
    table = '[tool.booty.processes.worker]\ncommand = "a"\ncount = "2"\n'
    repository.write("app/pyproject.toml", (repository.path / "app/pyproject.toml").read_text() + table)
    sha = repository.commit("Run two workers")
    message = "processes has a wrong entry. Write for worker, as its count, a whole number, 0 to 100."
    with pytest.raises(BuildError, match=re.escape(message)):
        describe.describe(repository.path, sha, "app", {})


def test_a_command_reaches_the_shell_as_it_was_written() -> None:
    command = """python -c 'print("a\\tb", "$HOME", "5%")' "%i" """
    line = next(
        line
        for line in unit("booty-worker@.service", app_processes=programs.processes({"worker": command})).splitlines()
        if "/bin/bash -c" in line
    )
    quoted = line.partition("/bin/bash -c ")[2]
    assert quoted == '''"python -c 'print(\\"a\\\\tb\\", \\"$$HOME\\", \\"5%%\\")' \\"%%i\\" "'''


def test_a_process_has_the_sandbox_and_the_environment_of_the_service() -> None:
    processes = programs.processes({"worker": {"command": "a", "stop_signal": "SIGINT", "stop_seconds": 7}})
    own, service = unit("booty-worker@.service", app_processes=processes), unit("booty.service")
    marker = "# Identity and files"
    assert (
        own.partition(marker)[2].partition("\n[Install]")[0].strip()
        == service.partition(marker)[2].partition("\n[Install]")[0].strip()
    )
    assert (values(own, "KillSignal"), values(own, "TimeoutStopSec")) == (["SIGINT"], ["7"])
    assert values(own, "StartLimitIntervalSec") == ["0"]
    assert values(own, "EnvironmentFile") == values(service, "EnvironmentFile")
    starts = [text.partition("\nExecStart=")[2].partition("BOOTY_UNIT=")[0].split() for text in (own, service)]
    assert starts[0][2:] == starts[1][1:]


def test_the_number_of_instances_is_no_change_of_the_unit() -> None:
    def hash_of(**process: Any) -> str:
        processes = programs.processes({"worker": {"command": "a", **process}})
        return str(re.findall(r"BOOTY_UNIT=(\w+)", unit("booty-worker@.service", app_processes=processes))[0])

    assert hash_of() == hash_of(count=5)
    assert hash_of() != hash_of(command="b")


GROUP = ["web1", "web2", "web3"]


def claim(host: str, here: bool) -> dict[str, dict[str, Any]]:
    return {"beat": {"host": host, "here": here}}


@pytest.mark.parametrize(
    ("claims", "moved_to", "place"),
    [
        ({}, "", "web1"),
        ({"web2": {}, "web3": {}}, "", "web1"),
        ({"web1": claim("web2", here=False), "web2": claim("web2", here=True)}, "", "web2"),
        # web2 is away.
        ({"web1": claim("web2", here=False)}, "", "web2"),
        ({"web1": claim("web2", here=False)}, "web3", "web3"),
        # web2 has left the inventory, or has another name now.
        ({"web1": claim("old", here=False)}, "", "web1"),
        ({"web1": claim("old", here=False), "web3": claim("old", here=True)}, "", "web3"),
        # Both have it, after a host came back that was left behind.
        ({"web3": claim("web3", here=True), "web2": claim("web2", here=True)}, "", "web2"),
    ],
)
def test_one_host_has_it_and_keeps_it(claims: dict[str, Any], moved_to: str, place: str) -> None:
    assert places.choose({"beat"}, GROUP, claims, moved_to) == {"beat": place}


def test_the_output_says_which_host_has_it() -> None:
    assert places.sentences({"beat": "web1", "cron": "web1"}, set()) == ["on web1 alone: beat, cron."]
    (line,) = places.sentences({"beat": "web2"}, {"web2"})
    assert line.endswith("they stay as they are. To move them to another: -e app_one_host=HOST")


A, B = "a1" * 20, "b2" * 20
WORKER: dict[str, Any] = {
    "name": "worker",
    "kind": "process",
    "host": None,
    "here": True,
    "count": 1,
    "instances": [
        {"unit": "shop-worker@1.service", "state": "active", "release": A, "since": None, "restarts": 0},
        {"unit": "shop-worker@2.service", "state": "ending", "release": B, "since": None, "restarts": 0},
    ],
}
NIGHTLY: dict[str, Any] = {
    "name": "nightly",
    "kind": "timer",
    "host": "web1",
    "here": True,
    "active": True,
    "next": "2026-11-26T03:00:00+00:00",
    "last": "2026-11-25T03:00:00+00:00",
    "result": "done",
    "release": None,
}


def instance(**changes: Any) -> dict[str, Any]:
    return {**WORKER, "instances": [{**WORKER["instances"][0], **changes}]}


def notes(*by_host: list[dict[str, Any]]) -> list[list[str]]:
    """Return the notes about the processes and timers of hosts that have these."""
    from tests.test_status import answer

    answers = {f"web{number}": answer(programs=each) for number, each in enumerate(by_host, 1)}
    return [row["notes"] for row in view.rows_of(answers)]


@pytest.mark.parametrize(
    ("program", "note"),
    [
        (WORKER, []),
        (NIGHTLY, []),
        (instance(release=B), [f"shop-worker@1 runs {B}, and not the service's"]),
        (instance(release=None), ["shop-worker@1 runs an unknown release, and not the service's"]),
        (
            instance(state="activating", restarts=4),
            [
                "shop-worker@1 is activating, started again 4 times",
                "worker runs 0 times, and should 1 times",
            ],
        ),
        ({**WORKER, "count": 2}, ["worker runs 1 times, and should 2 times"]),
        ({**NIGHTLY, "active": False}, ["the timer nightly is not active"]),
        ({**NIGHTLY, "result": "failed"}, ["the last run of the timer nightly failed, 2026-11-25T03:00:00+00:00"]),
        ({**NIGHTLY, "host": "web9", "here": False}, ["nightly is on web9, which was not asked"]),
        ({**NIGHTLY, "host": "", "here": False}, ["nightly is on no host"]),
    ],
)
def test_the_status_names_what_is_to_look_at(program: dict[str, Any], note: list[str]) -> None:
    assert notes([program]) == [note]


def test_the_status_finds_a_timer_on_two_hosts_or_on_one_that_is_away() -> None:
    assert notes([NIGHTLY], [{**NIGHTLY, "here": False}]) == [[], []]
    both = "nightly is on web1 and on web2, and should be on one host"
    assert notes([NIGHTLY], [NIGHTLY]) == [[both], [both]]
    from tests.test_status import answer

    answers = {"web1": {"unreachable": True, "msg": "no route"}, "web2": answer(programs=[{**NIGHTLY, "here": False}])}
    assert view.rows_of(answers)[1]["notes"] == ["nightly is on web1 alone, which gives no answer"]


def test_a_release_command_beside_the_state_of_several_hosts_is_a_warning() -> None:
    (warning,) = places.one_sided(["db.sqlite3"], ["migrate"], ["web1", "web2"], "web1")
    assert warning == (
        "The release command runs on web1 alone. What it writes to db.sqlite3 (app_state_paths) stays there, since each"
        " host has its own. With several hosts, use a database server."
    )
    assert places.one_sided(["db.sqlite3"], ["migrate"], ["web1"], "web1") == []
    assert places.one_sided([], ["migrate"], ["web1", "web2"], "web1") == []
    assert places.one_sided(["db.sqlite3"], [], ["web1", "web2"], "web1") == []
