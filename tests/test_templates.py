"""The files of a release on a host: release.env and the units, rendered as a deploy renders them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.booty.deploy.plugins.module_utils.controller import host_program
from booty_host import secrets

from tests.conftest import ROLE

SHA = "a" * 40


def wanted(release: str = SHA, description: dict[str, Any] | None = None, **variables: Any) -> dict[str, Any]:
    """Return release.env and the units, rendered with the role's defaults and these variables."""
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    defaults |= {"ansible_managed": "Ansible managed", "app_environment": "staging", "app_telemetry_gate": False}
    files: dict[str, Any] = host_program.rendered({**defaults, **variables}, release, description or {})
    return files


def unit(name: str, **variables: Any) -> str:
    return str(wanted(**variables)["units"][name])


def values(text: str, name: str) -> list[str]:
    """Return the values of a directive, in order."""
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


# The templates of files on hosts. Pages are rendered for the controller.
ON_HOSTS = sorted({*(ROLE / "templates").glob("*.j2")} - {*(ROLE / "templates").glob("*.html.j2")})


@pytest.mark.parametrize("path", ON_HOSTS, ids=lambda path: path.name)
def test_each_says_who_manages_it_and_holds_no_date(path: Any) -> None:
    assert path.read_text().startswith("{{ ansible_managed | comment }}")
    assert not re.search(r"ansible_date_time|now\(|strftime", path.read_text())


def assignments(**variables: Any) -> list[str]:
    return [line for line in wanted(**variables)["pointer"].splitlines() if line and not line.startswith("#")]


def test_the_pointer_holds_the_code_and_its_label_alone() -> None:
    """The last two are there without a value too, so that a process with a setting that was removed is found."""
    assert assignments() == [
        f"SENTRY_RELEASE={SHA}",
        "SENTRY_ENVIRONMENT=staging",
        f"BOOTY_RELEASE_DIR=/opt/booty/releases/{SHA}",
        "BOOTY_CONFIG_DIR=",
        "BOOTY_SETTINGS=",
    ]


def test_the_pointer_holds_the_settings() -> None:
    settings = {"DEBUG": "false", "EMPTY": "", "GREETING": "it's $5"}
    assert assignments(app_settings=settings)[4:] == [
        "BOOTY_SETTINGS=DEBUG,EMPTY,GREETING",
        "DEBUG=false",
        "EMPTY=''",
        """GREETING='it'"'"'s $5'""",
    ]


def test_the_pointer_names_the_files_of_app_config_dir(tmp_path: Path) -> None:
    def place() -> str:
        return assignments(app_config_dir=str(tmp_path))[3]

    (tmp_path / "certs").mkdir()
    (tmp_path / "certs/ca.pem").write_text("one")
    before = place()
    assert re.fullmatch("BOOTY_CONFIG_DIR=/opt/booty/config/[0-9a-f]{20}", before)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/x.pyc").write_text("one")
    assert place() == before
    (tmp_path / "certs/ca.pem").write_text("two")
    assert place() != before


def start(**variables: Any) -> list[str]:
    """Return the variables that the service's unit sets at the start."""
    command = re.sub(r"\\\n +", "", unit("booty.service", **variables))
    return str(re.findall(r"^ExecStart=/usr/bin/env (.*)$", command, re.MULTILINE)[0]).split()


def test_the_unit_sets_what_apps_expect() -> None:
    assert {
        "PORT=8000",
        "WEB_CONCURRENCY=2",
        "PYTHONUNBUFFERED=1",
        "SPT_NOENV=1",
        "HOME=/var/lib/booty",
        "PATH=${BOOTY_RELEASE_DIR}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    } <= {*start(app_workers=2)}
    assert not [each for each in start() if each.startswith(("BOOTY_HEALTH", "BOOTY_TRUSTED"))]
    assert {"BOOTY_HEALTH_PATH=/a%%20b?x=1", "BOOTY_HEALTH_HOST=shop.test", "BOOTY_TRUSTED_PROXIES=10.0.0.1,::/8"} <= {
        *start(app_health_path="/a%20b?x=1", app_health_host="shop.test", app_trusted_proxies=["10.0.0.1", "::/8"])
    }


@pytest.mark.parametrize(
    ("domains", "of_inventory", "of_commit", "host"),
    [
        (["Bücher.example", "b.example"], "", "", "xn--bcher-kva.example"),
        (["a.example"], "", "commit.example", None),
        (["a.example"], "inventory.example", "commit.example", "inventory.example"),
        ([], "", "", None),
    ],
)
def test_the_question_for_health_has_the_first_domain(
    domains: list[str], of_inventory: str, of_commit: str, host: str | None
) -> None:
    """Django refuses localhost. Without a variable, the release takes the host of its commit, or else localhost."""
    description = {"health": {"path": "", "host": of_commit}}
    hosts = [
        each.partition("=")[2]
        for each in start(description=description, app_domains=domains, app_health_host=of_inventory)
        if each.startswith("BOOTY_HEALTH_HOST=")
    ]
    assert hosts == [host] * bool(host)


def test_the_sandbox_allows_writable_code_on_demand_alone() -> None:
    for name in ("booty.service", "booty-candidate.service"):
        assert "MemoryDenyWriteExecute=true" in unit(name)
        changed = {*unit(name).splitlines()} ^ {*unit(name, app_sandbox_allow=["jit"]).splitlines()}
        assert {line.split("=")[0].strip() for line in changed} <= {"MemoryDenyWriteExecute", "BOOTY_UNIT"}


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
        fault, _ = secrets.judge_content(f"{variable}=1\n".encode())
        assert fault == f"line 1 sets {variable}, which the unit sets: remove it" or (
            set(re.findall(r"app_\w+", str(fault))) <= set(defaults) and "and set app_" in str(fault)
        )


@pytest.mark.parametrize(
    ("address", "stream"),
    [("0.0.0.0", "0.0.0.0:8000"), ("10.1.2.3", "10.1.2.3:8000"), ("::", "[::]:8000"), ("fd00::1", "[fd00::1]:8000")],
)
def test_the_socket_listens_on_the_address(address: str, stream: str) -> None:
    assert values(unit("booty.socket", app_address=address), "ListenStream") == [
        stream,
        "/run/booty/internal.sock",
    ]


@pytest.mark.parametrize(
    ("variable", "value", "directive", "expected"),
    [
        ("app_user", "web", "User", "web"),
        ("app_drain_seconds", 5, "TimeoutStopSec", "15"),
        ("app_workers", 2, "OOMPolicy", "continue"),
        ("app_memory_max", "256M", "MemoryMax", "256M"),
        ("app_tasks_max", "64", "TasksMax", "64"),
        ("app_start_seconds", 60, "TimeoutStartSec", "60"),
    ],
)
def test_each_variable_reaches_the_unit(variable: str, value: Any, directive: str, expected: str) -> None:
    assert values(unit("booty.service", **{variable: value}), directive) == [expected]


def test_the_unit_leaves_the_watchdog_to_the_process() -> None:
    """WatchdogSec= would kill an older release that sends no pings, and a rollback may go back to such a release."""
    service = unit("booty.service", app_watchdog_seconds=9)
    assert " BOOTY_WATCHDOG_SECONDS=9 " in service
    assert values(service, "WatchdogSec") == []


def test_the_slice_holds_service_and_candidate_to_one_limit() -> None:
    units = wanted(app_memory_max="256M")["units"]
    assert values(units["system-booty.slice"], "MemoryMax") == ["256M"]
    for name in ("booty.service", "booty-candidate.service"):
        assert values(units[name], "Slice") == ["system-booty.slice"]


# The files and programs that the unit's pause uses, each replaced by one of the test.
PLACES = {
    "/run/booty/%n.starts": "starts",
    "/proc/uptime": "uptime",
    "/bin/systemctl": "systemctl",
    "/bin/sleep": "sleep",
}


def test_the_pauses_between_restarts(tmp_path: Path) -> None:
    """A pair is a start: the uptime and NRestarts. The start then waits some seconds in addition to RestartSec=."""
    line = re.findall(r"ExecStartPre=-\+/bin/sh -c '(.*?)'$", unit("booty.service"), re.MULTILINE | re.DOTALL)[0]
    script = line.replace("\\\n", "").replace("$$", "$").replace("%%", "%")
    for place, name in PLACES.items():
        script = script.replace(place, str(tmp_path / name))
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\ncat {tmp_path}/restarts\n")
    (tmp_path / "sleep").write_text("#!/bin/sh\necho $1\n")
    for name in ("systemctl", "sleep"):
        (tmp_path / name).chmod(0o755)

    def pause(uptime: float, restarts: int) -> int:
        (tmp_path / "uptime").write_text(f"{uptime} 1.0\n")
        (tmp_path / "restarts").write_text(f"{restarts}\n")
        done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return int(done.stdout or 0)

    starts = [(100.5, 0), (101.5, 1), (103, 2), (106, 3), (112, 4), (121, 5), (138, 6), (170, 7), (202, 8)]
    assert [pause(*start) for start in starts] == [0, 0, 1, 3, 7, 15, 29, 29, 29]
    # After a start by hand NRestarts is 0, or unchanged in the second before an automatic restart.
    assert [pause(*start) for start in [(233, 8), (234, 0), (236, 1), (238, 2)]] == [0, 0, 0, 1]
    # A crash one hour later begins a new series, although NRestarts goes on.
    assert [pause(*start) for start in [(4000, 3), (4002, 4), (4004, 5), (4008, 6)]] == [0, 0, 1, 3]


def test_a_changed_unit_changes_booty_unit() -> None:
    def name(**variables: Any) -> str:
        return str(re.findall(r"BOOTY_UNIT=(\w+)", unit("booty.service", **variables))[0])

    assert name() == name()
    assert name() != name(app_drain_seconds=5)


def test_only_an_app_with_domains_has_the_proxys_socket() -> None:
    without, units = wanted()["units"], wanted(app_domains=["shop.example.com"])["units"]
    assert "booty-http.socket" not in without
    assert values(without["booty.service"], "Sockets") == ["booty.socket"]
    assert values(units["booty.service"], "Sockets") == ["booty.socket booty-http.socket"]
    assert values(units["booty-candidate.service"], "Sockets") == ["booty.socket booty-http.socket"]
    assert values(units["booty-http.socket"], "FileDescriptorName") == ["http"]
    # A change here would open the app's own sockets anew.
    assert units["booty.socket"] == without["booty.socket"]


def test_a_command_stands_in_its_unit_as_it_is() -> None:
    """The unit holds its own hash, in place of a mark that a command may hold as well."""
    worker = {"command": "echo @HASH@", "count": 1, "stop_signal": "SIGTERM", "stop_seconds": 60, "one_host": False}
    text = wanted(description={"processes": {"worker": worker}})["units"]["booty-worker@.service"]
    assert '/bin/bash -c "echo @HASH@"' in text
    assert re.search(r"BOOTY_UNIT=[0-9a-f]{40} ", text)
