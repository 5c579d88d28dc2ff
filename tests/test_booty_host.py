"""The controller's calls of the host program, and the order of commits."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

import pytest
from ansible import context
from ansible_collections.booty.deploy.plugins.module_utils.controller import git, host_program

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


def test_what_a_host_says_can_not_control_a_terminal() -> None:
    said = {"msg": "\x1b[31mred\x1b[0m\tab\x07\nsecond \x1b]0;title\x9b", "notices": [1, None, "\x1b[2J"]}
    mark = "\N{REPLACEMENT CHARACTER}"
    plain = {"msg": f"red\tab{mark}\nsecond {mark}]0;title{mark}", "notices": [1, None, ""]}
    assert host_program.plain_values(said) == plain
    # The host compares this one with what it said.
    assert host_program.plain_values({"seen": said, "records": [said]}) == {"seen": said, "records": [plain]}


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
