"""The controller's calls to hosts: several at once, and what a cutover finds changed."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ansible import context
from ansible_collections.booty.deploy.plugins.module_utils.controller import git, host_program
from booty_host import cutover, host

from tests.conftest import Repository


@pytest.mark.parametrize(("forks", "most"), [(6, 2.0), (3, 2.5)])
def test_hosts_are_asked_at_once(monkeypatch: pytest.MonkeyPatch, forks: int, most: float) -> None:
    monkeypatch.setattr(context, "CLIARGS", {"forks": forks})
    hosts = [f"web{number}" for number in range(6)]
    began = time.monotonic()

    def answer(host: str) -> dict[str, Any]:
        time.sleep(0.5)
        if host == "web1":
            raise OSError("lost")
        if host == "web2":
            os._exit(9)
        return {"host": host}

    for host_name in hosts:
        host_program.begin(host_name, partial(answer, host_name))
    answers = {host_name: host_program.end(host_name) for host_name in hosts}
    assert time.monotonic() - began < most
    assert answers["web1"] == {"failed": True, "msg": "OSError: lost"}
    assert answers["web2"]["msg"] == "The process that asked it was killed."
    assert answers["web5"] == {"host": "web5"}
    assert (host_program.BEGUN, host_program.ENDED) == ({}, {})


def test_commits_that_descend_from_each_other(repository: Repository) -> None:
    shas = [repository.git("rev-parse", "HEAD")]
    for number in range(2):
        repository.write("file", str(number))
        shas.append(repository.commit("Another"))
    path = str(repository.path)
    assert git.descends(path, *shas)
    assert git.descends(path, shas[0], shas[2], shas[2])
    assert not git.descends(path, shas[0], shas[2], shas[1])
    assert not git.descends(path, "", shas[1])
    assert not git.descends(path, "0" * 40, shas[1])


@pytest.mark.parametrize(
    ("text", "last", "why"),
    [
        ("SENTRY_RELEASE=a\n", "anna deploys a, at 12:00", None),
        ("SENTRY_RELEASE=a\n", "", None),
        ("SENTRY_RELEASE=b\n", "bob deploys b, at 12:01", "(the last one: bob deploys b, at 12:01). b serves"),
        # Another run went away and back, or found it in order.
        ("SENTRY_RELEASE=a\n", "bob takes back b, at 12:02", "bob takes back b"),
        ("SENTRY_RELEASE=b\n", "", "bob"),
        ("SENTRY_RELEASE=b\n", "anna deploys a, at 12:00", "release.env was changed by hand"),
    ],
)
def test_a_host_that_changed_since_it_was_asked_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, last: str, why: str | None
) -> None:
    monkeypatch.setattr(host, "POINTER", tmp_path / "release.env")
    monkeypatch.setattr(host, "LAST", tmp_path / "last")
    host.POINTER.write_text(text)
    host.LAST.write_text(last)
    seen = {"pointer": "SENTRY_RELEASE=a\n", "release": "a", "last": "anna deploys a, at 12:00"}
    answer = cutover.changed_since(seen, "c", "anna deploys c")
    if why is None:
        assert answer == {}
    else:
        assert answer["state"] == "not switched"
        assert answer["seen"] == host.seen()
        assert why in answer["msg"] or not last


def test_a_record_that_cannot_be_written_is_a_notice() -> None:
    notices: list[str] = []
    with cutover.unsaved(notices):
        raise OSError(28, "No space left on device")
    (said,) = notices
    assert said.startswith("But /opt/booty/state.json can't be written: [Errno 28] No space left on device.")


def test_one_release_that_cannot_be_removed_keeps_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "STATE", tmp_path / "state.json")
    monkeypatch.setattr(host, "RELEASES", tmp_path / "releases")
    monkeypatch.setattr(host, "LAYERS", tmp_path / "layers")
    monkeypatch.setattr(host, "POINTER", tmp_path / "release.env")
    for name in ("a", "b", "c", "d"):
        (host.RELEASES / name).mkdir(parents=True)
        (host.RELEASES / name / "release.json").write_text('{"layer": "x"}')
    # The name that it would get for its removal is taken.
    (host.RELEASES / ".a.removed").mkdir()
    (host.RELEASES / ".a.removed" / "file").touch()
    removed, failures = cutover.prune(host.State(["d", "c", "b", "a"], {}, {}), 2)
    assert removed == ["b"]
    assert failures == [f"{host.RELEASES}/a: Directory not empty"]
