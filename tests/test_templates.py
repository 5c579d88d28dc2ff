"""The templates, rendered by Ansible's own templar."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from tests.conftest import ROLE

POINTER = {
    "SENTRY_RELEASE": "a" * 40,
    "SENTRY_ENVIRONMENT": "staging",
    "BOOTY_RELEASE_DIR": f"/opt/booty/releases/{'a' * 40}",
}


def render(name: str, **variables: Any) -> str:
    """Render a template with the role's defaults, as the template module would."""
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    given = {**defaults, "ansible_managed": "Ansible managed", "__app_pointer": POINTER, **variables}
    templar = Templar(loader=DataLoader(), variables=given)
    text = templar.template(trust_as_template("#jinja2: trim_blocks: True\n" + (ROLE / "templates" / name).read_text()))
    assert isinstance(text, str)
    return text


def values(text: str, name: str) -> list[str]:
    """Return the values of a directive, in order."""
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("path", sorted((ROLE / "templates").glob("*.j2")), ids=lambda path: path.name)
def test_each_says_who_manages_it_and_holds_no_date(path: Any) -> None:
    assert path.read_text().startswith("{{ ansible_managed | comment }}")
    assert not re.search(r"ansible_date_time|now\(|strftime", path.read_text())


def test_the_pointer_holds_the_code_and_its_label_alone() -> None:
    lines = [line for line in render("release.env.j2").splitlines() if line and not line.startswith("#")]
    assert lines == [f"{name}={value}" for name, value in POINTER.items()]


def test_the_later_environment_file_is_the_pointer() -> None:
    unit = render("booty.service.j2")
    assert values(unit, "EnvironmentFile") == ["-/etc/booty/secrets.env", "/etc/booty/release.env"]
    assert values(unit, "ExecStart") == ["/usr/bin/env ${BOOTY_RELEASE_DIR}/bin/serve"]


@pytest.mark.parametrize(
    ("address", "stream"),
    [("0.0.0.0", "0.0.0.0:8000"), ("10.1.2.3", "10.1.2.3:8000"), ("::", "[::]:8000"), ("fd00::1", "[fd00::1]:8000")],
)
def test_the_address_is_named(address: str, stream: str) -> None:
    assert values(render("booty.socket.j2", app_address=address), "ListenStream") == [
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
    assert values(render("booty.service.j2", **{variable: value}), directive) == [expected]


def test_a_changed_unit_has_another_name_in_the_process() -> None:
    def name(**variables: Any) -> str:
        return str(re.findall(r"BOOTY_UNIT=(\w+)", render("booty.service.j2", **variables))[0])

    assert name() == name()
    assert name() != name(app_drain_seconds=5)
