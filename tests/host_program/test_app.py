"""Every path and unit of an app follows from its name."""

from __future__ import annotations

from pathlib import Path

import pytest
from booty_host.app import App


def test_the_default_app_keeps_its_names() -> None:
    """Hosts in service have these paths and units; a changed name would orphan them."""
    names = {name: str(value) for name, value in vars(App()).items() if isinstance(value, (Path, str))}
    assert names == {
        "name": "booty",
        "root": "/",
        "etc": "/etc/booty",
        "release_env": "/etc/booty/release.env",
        "secrets_env": "/etc/booty/secrets.env",
        "opt": "/opt/booty",
        "releases": "/opt/booty/releases",
        "layers": "/opt/booty/layers",
        "configs": "/opt/booty/config",
        "incoming": "/opt/booty/incoming",
        "state": "/opt/booty/state.json",
        "var": "/var/lib/booty",
        "static": "/var/lib/booty-front/static/booty",
        "candidate_env": "/run/booty/candidate.env",
        "handover": "/run/booty/handover",
        "settle": "/run/booty/settle",
        "started": "/run/booty/started",
        "opened": "/run/booty/opened",
        "internal_socket": "/run/booty/internal.sock",
        "commands": "/run/booty/commands",
        "shell": "/run/booty/shell",
        "lock": "/run/booty-deploy.lock",
        "last": "/run/booty-deploy.last",
        "stamps": "/var/lib/systemd/timers",
        "unit_files": "/etc/systemd/system",
        "service": "booty.service",
        "socket": "booty.socket",
        "http_socket": "booty-http.socket",
        "candidate": "booty-candidate.service",
        "slice": "system-booty.slice",
    }
    sockets = ("booty.socket", "booty-http.socket")
    assert App().units == ("system-booty.slice", *sockets, "booty.service", "booty-candidate.service")


def test_two_apps_share_no_name() -> None:
    one, other = vars(App("shop")), vars(App("shop-api"))
    shared = {name for name in one if one[name] == other[name]}
    assert shared == {"root", "stamps", "unit_files"}


@pytest.mark.parametrize(("name", "expected"), [("shop", "system-shop.slice"), ("a-b-c", r"system-a\x2db\x2dc.slice")])
def test_the_slice_of_one_app_is_not_inside_of_another_s(name: str, expected: str) -> None:
    assert App(name).slice == expected
