"""The plan of a rollback, and its message about hosts that did not go back."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import fleet, rollback


def answer(serves: str = "x", release: str = "a", *problems: str, has: tuple[str, ...] = ("a", "x")) -> dict[str, Any]:
    pointer = {"SENTRY_RELEASE": serves} if serves else {}
    host = {"running": pointer, "pointer": pointer, "releases": [*has]}
    return {"host": host, "release": release, "problems": [*problems], "crosses": ""}


AWAY = {"unreachable": True, "msg": "no route"}
NO_PYTHON = {"rc": 127, "msg": "not found", "problems": ["not found"]}
NO_HISTORY = answer("x", "", "web2 has no other release.", has=("x",))
BARE = answer("", "", "web2 lacks the user.", has=())


@pytest.mark.parametrize(
    ("answers", "lines", "refusal"),
    [
        ([answer(), answer()], ["web1, web2: from x back to a"], ""),
        ([answer(), answer("a")], ["web1: from x back to a", "web2: serves a already"], ""),
        ([answer(), NO_HISTORY], ["web1: from x", "web2: stays as it is. web2 has no other release."], ""),
        ([answer(), AWAY], ["web1: from x", "web2: stays as it is. It can't be reached: no route"], ""),
        ([answer(), {"msg": "bad value"}], ["web1: from x", "web2: stays as it is. bad value"], ""),
        # Both hosts leave the same release, so that one is the bad one.
        ([answer(), answer(release="b")], ["web1: from x back to a", "web2: from x back to b"], ""),
        ([answer(), answer("a", "b")], ["web1: from x back to a", "web2: from a back to b"], "-e app_release=<sha>"),
        ([NO_HISTORY, AWAY], ["web1: stays", "web2: stays"], "No host can go back. Nothing was changed."),
    ],
)
def test_the_plan(answers: list[dict[str, Any]], lines: list[str], refusal: str) -> None:
    plan, fault = rollback.plan(dict(zip(("web1", "web2"), answers, strict=True)))
    assert len(plan) == len(lines)
    assert all(line.startswith(expected) for line, expected in zip(plan, lines, strict=True)), plan
    assert fault.endswith(refusal) if refusal.startswith("No") else (refusal in fault and bool(fault) == bool(refusal))


SWITCHED, SKIPPED = {"state": "switched"}, {"skipped": True}
WENT_BACK = {"state": "went back", "msg": "a does not serve: timeout"}


@pytest.mark.parametrize(
    ("other", "became", "lines"),
    [
        (answer(), SWITCHED, []),
        (answer("a"), SKIPPED, []),
        (BARE, SKIPPED, []),
        (NO_PYTHON, SKIPPED, []),
        (answer(), WENT_BACK, ["web2 did not go back: a does not serve", "rollback.yml --limit web2 -e app_release=a"]),
        (NO_HISTORY, SKIPPED, ["web2 did not go back: web2 has no", "deploy.yml --limit web2 -e app_release=a"]),
        (AWAY, SKIPPED, ["web2 did not go back: It can't be reached", "rollback.yml --limit web2 -e app_release=a"]),
    ],
)
def test_the_outcome(other: dict[str, Any], became: dict[str, Any], lines: list[str]) -> None:
    message = rollback.outcome({"web1": answer(), "web2": other}, {"web1": SWITCHED, "web2": became})
    assert all(line in message for line in lines), message
    assert bool(message) == bool(lines)
    if lines:
        assert "These hosts went back, and stay there: web1." in message


def test_no_rollback_is_named_where_no_release_served_before() -> None:
    """A failed wave leaves the waves before on the release, which may be the first one."""

    def host(*served: str, has: tuple[str, ...]) -> dict[str, Any]:
        return {"release": "x", "host": {"served": [*served], "releases": ["x", *has]}}

    answers = {
        "web1": host(has=()),
        "web2": host("a", has=("a",)),
        "web3": host("x", has=("b",)),
        "web4": host("x", "a", has=()),
        "web5": AWAY,  # it was left behind
    }
    assert fleet.able_to_go_back(answers) == ["web2"]
