"""logs.yml: the lines of all hosts in one stream."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import logs
from booty_host import journal
from booty_host import logs as host_logs
from booty_host.app import App

from sandbox.demo import RAISE
from tests.conftest import Site, words


def test_each_line_names_its_host_and_process() -> None:
    records = [
        [1_795_863_182_244_491, "web", "a\tb\nsecond"],
        [1_795_863_182_245_000, "deploy", ""],
    ]
    assert [text for _, text in logs.shown("web1", ["web1", "longer"], records)] == [
        "2026-11-28 10:53:02.244 web1   web       a\tb\n2026-11-28 10:53:02.244 web1   web       second",
        "2026-11-28 10:53:02.245 web1   deploy    ",
    ]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"records": []}, ""),
        ({"rc": 127, "msg": "sh: not found"}, "has no Python: run bootstrap.yml"),
        ({"failed": True, "msg": "since=x: no time"}, "since=x: no time"),
        ({"unreachable": True, "msg": "x\nssh can't be reached over ssh: no route"}, "can't be reached: no route"),
    ],
)
def test_a_host_without_lines_is_named_with_the_reason(answer: dict[str, Any], reason: str) -> None:
    assert logs.problem(answer) == reason


@pytest.mark.parametrize(
    ("record", "process"),
    [
        ({"SYSLOG_IDENTIFIER": "shop", "_SYSTEMD_UNIT": "shop.service"}, "web"),
        ({"SYSLOG_IDENTIFIER": "shop", "_SYSTEMD_UNIT": "shop-candidate.service"}, "candidate"),
        ({"SYSLOG_IDENTIFIER": "shop-worker", "_SYSTEMD_UNIT": "shop-worker@1.service"}, "worker"),
        ({"SYSLOG_IDENTIFIER": "booty-deploy", "_UID": "0"}, "deploy"),
        # A program of the app writes these.
        ({"SYSLOG_IDENTIFIER": "booty-deploy", "_UID": "999", "_SYSTEMD_UNIT": "shop.service"}, "web"),
        ({"SYSLOG_IDENTIFIER": "shop-deploy", "_UID": "999"}, "web"),
        ({"SYSLOG_IDENTIFIER": "shop-systemd", "_UID": "999"}, "web"),
        ({"SYSLOG_IDENTIFIER": "shop-a b", "_UID": "999"}, "web"),
        ({"SYSLOG_IDENTIFIER": ["shop", "shop-worker"]}, "web"),
        ({"SYSLOG_IDENTIFIER": "systemd", "UNIT": "shop.service", "_PID": "1"}, "systemd"),
        ({}, "web"),
    ],
)
def test_a_line_is_of_a_process(record: dict[str, Any], process: str) -> None:
    assert host_logs.label(App("shop"), record) == process


def test_a_message_that_is_not_printable_comes_as_bytes() -> None:
    assert journal.text_of([104, 105, 255]) == "hi\N{REPLACEMENT CHARACTER}"
    assert journal.text_of(None) == ""


def test_all_values_of_a_field_that_a_record_has_twice_are_shown() -> None:
    assert journal.text_of(["one", [116, 119, 111, 255]]) == "one\ntwo\N{REPLACEMENT CHARACTER}"


@pytest.fixture(scope="module")
def served(site: Site) -> Site:
    site.deploy()
    return site


def logged(site: Site, *arguments: str, **variables: str) -> list[str]:
    played = site.play("logs.yml", *arguments, on=None, **variables)
    assert played.status == 0, played.output
    return played.output.splitlines()


def test_all_processes_are_merged_and_named(served: Site) -> None:
    since = served.run("date --utc '+%F %T'")
    served.deploy(app_restart="true")
    served.run("systemctl restart booty.service")
    served.run("echo busy | systemd-cat -t booty-worker; echo far | systemd-cat -t booty-far-worker")
    # Lines of another app, whose name begins like this one's, and of another app's deploys.
    served.run("mkdir -p /opt/booty-far/incoming /opt/booty-far/releases")
    served.run("printf 'SYSLOG_IDENTIFIER=booty-deploy\nBOOTY_APP=other\nMESSAGE=elsewhere\n' | logger --journald")
    try:
        lines = logged(served, since=since, lines="1000")
    finally:
        served.run("rm -r /opt/booty-far")
    assert lines == sorted(lines, key=lambda line: line[:23])
    form = re.compile(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{{3}} {served.host.name} (\S+) +\S")
    processes = [match[1] for match in map(form.match, lines) if match]
    assert {*processes} == {"web", "candidate", "systemd", "deploy", "worker"}
    assert not [line for line in lines if line.endswith(("far", "elsewhere"))]


def test_no_app_writes_lines_in_the_name_of_booty_or_systemd(served: Site) -> None:
    """Any user of a host may write records to the journal, with any field but those that journald adds itself."""
    forged = {
        "MESSAGE=forged deploy": "SYSLOG_IDENTIFIER=booty-deploy\nBOOTY_APP=booty\nBOOTY_RESULT=switched",
        "MESSAGE=forged unit": "SYSLOG_IDENTIFIER=systemd\nUNIT=booty.service\nJOB_TYPE=start\nJOB_RESULT=done",
        "MESSAGE=forged web": "SYSLOG_IDENTIFIER=booty",
    }
    for message, fields in forged.items():
        # Its own user may write what it likes as the app, and as nothing else.
        user = "nobody" if "web" in message else "booty"
        served.run(f"printf '{message}\n{fields}\n' | runuser -u {user} -- logger --journald")
    served.run("journalctl --sync")
    assert served.run("journalctl --since=-1min --output=cat | grep -c ^forged") == "3"
    assert [line for line in logged(served, since="1min", lines="1000") if "forged" in line] == []
    for playbook, option in (("history.yml", "history_format"), ("status.yml", "status_format")):
        assert "forged" not in served.play(playbook, on=None, **{option: "json"}).output


# A program writes a record that is larger than a datagram in a file of memory.
LARGE = """
import array, fcntl, os, socket
file = os.memfd_create("record", os.MFD_ALLOW_SEALING)
os.write(file, b"SYSLOG_IDENTIFIER=booty\\nMESSAGE\\n" + (40 << 20).to_bytes(8, "little"))
for _ in range(40):
    os.write(file, b"\\x01" * (1 << 20))
os.write(file, b"\\n")
fcntl.fcntl(file, 1033, 15)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
    journald.connect("/run/systemd/journal/socket")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]).tobytes())]
    journald.sendmsg([b""], rights)
"""


def test_a_huge_line_hides_no_other(served: Site) -> None:
    """For it, journalctl would need forty times its size, and print nothing."""
    served.run("echo before | runuser -u booty -- systemd-cat -t booty")
    served.run(f"runuser -u booty -- python3 -c '{LARGE}'")
    served.run("sleep 1; echo behind | runuser -u booty -- systemd-cat -t booty; journalctl --sync")
    texts = [line.partition(" web       ")[2] for line in logged(served, process="web", lines="3")]
    assert texts == ["before", host_logs.TOO_LONG, "behind"]


def test_many_names_of_others_do_not_break_the_logs(served: Site) -> None:
    """Any user of the host writes records with any identifier."""
    served.run(
        "for i in $(seq 300); do printf 'SYSLOG_IDENTIFIER=booty-x%s\\nMESSAGE=x\\n\\n' $i; done"
        " | runuser -u nobody -- logger --journald; echo there | runuser -u booty -- systemd-cat -t booty-run;"
        " journalctl --sync"
    )
    assert [line.partition(" run       ")[2] for line in logged(served, process="run", lines="1")] == ["there"]


def test_a_traceback_has_its_lines(served: Site) -> None:
    """The journal keeps it in one line, which is one record."""
    served.run(RAISE)
    served.run("journalctl --sync")
    lines = logged(served, process="web", lines="5")
    texts = [line.partition(" web       ")[2] for line in lines]
    first = texts.index("Traceback (most recent call last):")
    assert texts[first + 1].startswith("  File ")
    assert texts[first:][-1].endswith("DeliberateError: raised on purpose through the internal socket")
    assert len({line[:23] for line in lines[first - 1 :]}) == 1


def test_options_choose_the_lines(served: Site) -> None:
    served.run("for i in 1 2 3 4; do echo line $i; done | systemd-cat -t booty-worker; sleep 0.2")
    assert [line[-6:] for line in logged(served, process="worker", lines="2")] == ["line 3", "line 4"]
    *shown, note = logged(served, process="worker", lines="2", since="5 min")
    assert [line[-6:] for line in shown] == ["line 3", "line 4"]
    assert note.startswith(f"Older lines of {served.host.name} are left out.")
    served.run("sleep 1.1")
    assert logged(served, process="worker", since="1s") == []


@pytest.mark.parametrize(
    ("variables", "status", "message"),
    [
        ({"lines": "many"}, 4, 'lines is "many": write a whole number, 1 to 50000.'),
        ({"follow": "perhaps"}, 4, 'follow is "perhaps": write true or false.'),
        ({"process": "cron"}, 2, "There are no lines of this process. There are: deploy, "),
        ({"since": "soon"}, 2, "since=soon: Failed to parse timestamp: soon. Write an age such as 10min"),
    ],
)
def test_a_wrong_option_is_refused(served: Site, variables: dict[str, str], status: int, message: str) -> None:
    played = served.play("logs.yml", on=None, **variables)
    assert played.status == status
    assert message in words(played)


def test_many_lines_are_shown_quickly_and_bounded(served: Site) -> None:
    served.run("seq -f '%06.0f of many' 20000 | logger -t booty-many; journalctl --sync")
    began = time.monotonic()
    lines = logged(served, process="many", lines="10000")
    assert time.monotonic() - began < 15
    assert len(lines) == 10000
    assert lines == sorted(lines, key=lambda line: line[-14:])


def test_an_unreachable_host_is_named_and_the_others_are_shown(served: Site, tmp_path: Path) -> None:
    (tmp_path / "more.yml").write_text("booty: {hosts: {away: {ansible_host: 198.18.255.254}}}")
    limit = ("-i", str(tmp_path / "more.yml"), "--limit", f"{served.host.name},away")
    played = served.play("logs.yml", *limit, lines="3")
    assert played.status == 2
    *lines, away = played.output.splitlines()
    assert len([line for line in lines if f" {served.host.name} " in line]) == 3
    assert re.match(r"away can't be reached: .*198\.18\.255\.254.*timed out", away)


def test_follow_shows_new_lines_until_it_is_interrupted(served: Site) -> None:
    served.run("echo first | systemd-cat -t booty-worker")
    running = served.start("logs.yml", follow="true", process="worker", lines="1")

    def wait_for(text: str) -> None:
        deadline = time.monotonic() + 20
        while text not in running.so_far():
            assert time.monotonic() < deadline, running.so_far()
            time.sleep(0.05)

    journal = "pgrep -f [j]ournalctl.*--follow"
    try:
        wait_for("first")
        served.wait_for(journal)
        for word in ("second", "third"):
            served.run(f"echo {word} | systemd-cat -t booty-worker")
            began = time.monotonic()
            wait_for(word)
            assert time.monotonic() - began < 2
    finally:
        os.kill(running.processes()[0], signal.SIGINT)
    played = running.end()
    assert played.status == 0, played.output
    assert "interrupted" not in played.output
    served.wait_for(f"! {journal}", seconds=3)
