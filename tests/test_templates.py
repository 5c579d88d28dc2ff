"""What a host is told of a release: release.env and the units, rendered as a deploy does it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from booty_host import host

from tests.conftest import ROLE, load

booty_host = load(ROLE / "action_plugins/booty_host.py", "booty_host_action")
SHA = "a" * 40


def wanted(release: str = SHA, **variables: Any) -> dict[str, Any]:
    """Return it, with the role's defaults."""
    given = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    given |= {"ansible_managed": "Ansible managed", "app_environment": "staging", "app_telemetry_gate": False}
    told: dict[str, Any] = booty_host.wanted({**given, **variables}, release)
    return told


def unit(name: str, **variables: Any) -> str:
    return str(wanted(**variables)["units"][name])


def values(text: str, name: str) -> list[str]:
    """Return the values of a directive, in order."""
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


# What a host holds; status.html is the controller's page.
ON_HOSTS = sorted({*(ROLE / "templates").glob("*.j2")} - {ROLE / "templates/status.html.j2"})


@pytest.mark.parametrize("path", ON_HOSTS, ids=lambda path: path.name)
def test_each_says_who_manages_it_and_holds_no_date(path: Any) -> None:
    assert path.read_text().startswith("{{ ansible_managed | comment }}")
    assert not re.search(r"ansible_date_time|now\(|strftime", path.read_text())


def test_the_pointer_holds_the_code_and_its_label_alone() -> None:
    lines = [line for line in wanted()["pointer"].splitlines() if line and not line.startswith("#")]
    assert lines == [
        f"SENTRY_RELEASE={SHA}",
        "SENTRY_ENVIRONMENT=staging",
        f"BOOTY_RELEASE_DIR=/opt/booty/releases/{SHA}",
    ]


def test_there_is_no_pointer_before_the_release_is_known() -> None:
    assert wanted("")["pointer"] == ""
    assert wanted("")["units"] == wanted()["units"]


def test_the_later_environment_file_is_the_pointer() -> None:
    service = unit("booty.service")
    assert values(service, "EnvironmentFile") == ["-/etc/booty/secrets.env", "/etc/booty/release.env"]
    command = re.sub(r"\\\n +", "", service)
    assert re.search(
        r"^ExecStart=/usr/bin/env (--unset=\w+ )*(\w+=\S+ )+\$\{BOOTY_RELEASE_DIR\}/bin/serve$", command, re.MULTILINE
    )


@pytest.mark.parametrize("name", ["booty.service", "booty-candidate.service"])
def test_no_line_of_the_secrets_overrides_what_the_unit_sets(name: str) -> None:
    text, defaults = unit(name), yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    assert values(text, "Environment") == []  # which secrets.env would override
    command = re.sub(r"\\\n", "", text).partition("ExecStart=")[2].partition("\n")[0]
    variables = re.findall(r"(BOOTY_\w+)\b(?!})", command)
    assert "BOOTY_DRAIN_SECONDS" in variables
    for variable in variables:
        fault, _ = host.judge_secrets(f"{variable}=1\n".encode())
        assert fault == f"line 1 sets {variable}, which the unit sets: remove it" or (
            set(re.findall(r"app_\w+", str(fault))) <= set(defaults) and "and set app_" in str(fault)
        )


@pytest.mark.parametrize(
    ("address", "stream"),
    [("0.0.0.0", "0.0.0.0:8000"), ("10.1.2.3", "10.1.2.3:8000"), ("::", "[::]:8000"), ("fd00::1", "[fd00::1]:8000")],
)
def test_the_address_is_named(address: str, stream: str) -> None:
    assert values(unit("booty.socket", app_address=address), "ListenStream") == [
        stream,
        "/run/booty/internal.sock",
    ]


@pytest.mark.parametrize(
    ("variable", "value", "directive", "expected"),
    [
        ("app_user", "web", "User", "web"),
        ("app_module", "shop", "Description", "Booty: shop"),
        ("app_drain_seconds", 5, "TimeoutStopSec", "15"),
        ("app_workers", 2, "OOMPolicy", "continue"),
        ("app_memory_max", "256M", "MemoryMax", "256M"),
        ("app_tasks_max", "64", "TasksMax", "64"),
    ],
)
def test_each_variable_reaches_the_unit(variable: str, value: Any, directive: str, expected: str) -> None:
    assert values(unit("booty.service", **{variable: value}), directive) == [expected]


def test_a_changed_unit_has_another_name_in_the_process() -> None:
    def name(**variables: Any) -> str:
        return str(re.findall(r"BOOTY_UNIT=(\w+)", unit("booty.service", **variables))[0])

    assert name() == name()
    assert name() != name(app_drain_seconds=5)
