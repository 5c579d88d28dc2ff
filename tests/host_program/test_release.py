"""The difference between the release that serves and the one that should."""

from __future__ import annotations

from typing import Any

import pytest
from booty_host.app import App
from booty_host.release import Release, judge

WANTED = {
    "SENTRY_RELEASE": "a" * 40,
    "SENTRY_ENVIRONMENT": "staging",
    "BOOTY_RELEASE_DIR": "/opt/booty/releases/a",
    "BOOTY_SETTINGS": "DEBUG",
    "DEBUG": "false",
}
HEALTHY = {"status": 200, "reason": "", "release": "a" * 40, "environment": "staging"}


@pytest.mark.parametrize(
    ("running", "health", "expected"),
    [
        (WANTED, HEALTHY, None),
        ({}, HEALTHY, "SENTRY_RELEASE is None"),
        ({**WANTED, "BOOTY_UNIT": "2b"}, HEALTHY, "BOOTY_UNIT is 2b, not 1a"),
        ({**WANTED, "SENTRY_RELEASE": "b"}, HEALTHY, "SENTRY_RELEASE is b, not aaaa"),
        ({**WANTED, "BOOTY_RELEASE_DIR": "/b"}, HEALTHY, "BOOTY_RELEASE_DIR is /b"),
        ({**WANTED, "DEBUG": "true"}, HEALTHY, "DEBUG is true, not false"),
        ({**WANTED, "BOOTY_SETTINGS": "DEBUG,OLD"}, HEALTHY, "BOOTY_SETTINGS is DEBUG,OLD, not DEBUG"),
        (WANTED, {"status": 0, "reason": "refused"}, "refused"),
        (WANTED, {**HEALTHY, "release": None}, "the service answers None for SENTRY_RELEASE"),
        (WANTED, {"status": 200, "reason": "", "release": "a" * 40}, None),
        (WANTED, {**HEALTHY, "environment": "production"}, "the service answers production for SENTRY_ENVIRONMENT"),
    ],
)
def test_fault_names_what_differs(running: dict[str, str], health: dict[str, Any], expected: str | None) -> None:
    app = App()
    wanted = Release(
        app, "".join(f"{name}={value}\n" for name, value in WANTED.items()), {app.service: "BOOTY_UNIT=1a"}
    )
    problem = judge(wanted, {"BOOTY_UNIT": "1a", **running}, health)
    assert (expected in problem) if expected else problem == ""
