"""The difference between the release that serves and the one that should."""

from __future__ import annotations

from typing import Any

import pytest
from booty_host.app import App
from booty_host.release import Release, fault

WANTED = {
    "SENTRY_RELEASE": "a" * 40,
    "SENTRY_ENVIRONMENT": "staging",
    "BOOTY_RELEASE_DIR": "/opt/booty/releases/a",
}
HEALTHY = {"status": 200, "release": "a" * 40, "environment": "staging"}


@pytest.mark.parametrize(
    ("running", "health", "expected"),
    [
        (WANTED, HEALTHY, None),
        ({}, HEALTHY, "SENTRY_RELEASE is None"),
        ({**WANTED, "BOOTY_UNIT": "2b"}, HEALTHY, "BOOTY_UNIT is 2b, not 1a"),
        ({**WANTED, "SENTRY_RELEASE": "b"}, HEALTHY, "SENTRY_RELEASE is b, not aaaa"),
        ({**WANTED, "BOOTY_RELEASE_DIR": "/b"}, HEALTHY, "BOOTY_RELEASE_DIR is /b"),
        (WANTED, {"status": 0, "reason": "refused"}, "/health says 0: refused"),
        (WANTED, {"status": 503}, "/health says 503: no reason given"),
        (WANTED, {**HEALTHY, "release": None}, "/health answers None for SENTRY_RELEASE"),
        (
            WANTED,
            {**HEALTHY, "environment": "production"},
            "/health answers production for SENTRY_ENVIRONMENT",
        ),
    ],
)
def test_fault_names_what_differs(running: dict[str, str], health: dict[str, Any], expected: str | None) -> None:
    app = App()
    wanted = Release(
        app, "".join(f"{name}={value}\n" for name, value in WANTED.items()), {app.service: "BOOTY_UNIT=1a"}
    )
    found = fault(wanted, {"BOOTY_UNIT": "1a", **running}, health)
    assert (expected in str(found)) if expected else found is None
