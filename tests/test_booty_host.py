"""The controller's calls to hosts."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from ansible import context

from tests.conftest import ROLE, Repository, load

booty_host = load(ROLE / "action_plugins/booty_host.py", "booty_host_action")


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
        booty_host.begin(host_name, lambda name=host_name: answer(name))
    answers = {host_name: booty_host.end(host_name) for host_name in hosts}
    assert time.monotonic() - began < most
    assert answers["web1"] == {"failed": True, "msg": "OSError: lost"}
    assert answers["web2"]["msg"] == "The process that asked it was killed."
    assert answers["web5"] == {"host": "web5"}
    assert (booty_host.BEGUN, booty_host.ENDED) == ({}, {})


def test_commits_that_descend_from_each_other(repository: Repository) -> None:
    shas = [repository.git("rev-parse", "HEAD")]
    for number in range(2):
        repository.write("file", str(number))
        shas.append(repository.commit("Another"))
    path = str(repository.path)
    assert booty_host.descends(path, *shas)
    assert booty_host.descends(path, shas[0], shas[2], shas[2])
    assert not booty_host.descends(path, shas[0], shas[2], shas[1])
    assert not booty_host.descends(path, "", shas[1])
    assert not booty_host.descends(path, "0" * 40, shas[1])
