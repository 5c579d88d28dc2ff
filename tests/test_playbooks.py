"""Playbooks, roles and inventories as data."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox import demo
from tests.conftest import ROOT

BIN = Path(sys.executable).parent
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml"))
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())


def tasks(path: Path) -> Iterator[dict[str, Any]]:
    """Return the tasks of a file, including those in blocks."""

    def flat(nested: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for task in nested:
            yield task
            for part in ("block", "rescue", "always"):
                yield from flat(task.get(part, []))

    yield from flat(yaml.safe_load(path.read_text()) or [])


TASKS = [(path, task) for path in sorted(ROOT.glob("roles/*/tasks/*.yml")) for task in tasks(path)]


@pytest.mark.parametrize("path", PLAYBOOKS, ids=lambda path: path.name)
def test_every_verb_is_reached_from_the_root(path: Path) -> None:
    if path.name == "hosts.yml":  # imported by the verbs, and no verb itself
        return
    (play,) = yaml.safe_load((ROOT / path.name).read_text())
    assert play["ansible.builtin.import_playbook"] == f"playbooks/{path.name}"
    assert yaml.safe_load(path.read_text())[0]["ansible.builtin.import_playbook"] == "hosts.yml"


@pytest.mark.parametrize("path", PLAYBOOKS, ids=lambda path: path.name)
def test_every_play_sets_its_hosts_and_its_strategy(path: Path) -> None:
    for play in yaml.safe_load(path.read_text()):
        if "ansible.builtin.import_playbook" in play:
            continue
        # Without these keys a user's settings decide: with the strategy `free`, a host would not wait for its wave.
        assert play["gather_facts"] is False
        assert play["strategy"] == "ansible.builtin.linear"
        if path.name == "hosts.yml" or "booty.deploy.end_with" in play["hosts"]:
            # These plays have no tasks: the template in their `hosts:` ends the run.
            assert not {"tasks", "roles", "pre_tasks", "post_tasks", "become"} & {*play}
        else:
            assert play["hosts"] == "booty" or "booty.deploy.hosts_with" in play["hosts"]
            assert play["become"] is True
            # Without this key the run would go on without a failed host.
            assert play["any_errors_fatal"] is True


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
def test_argument_specs_equal_defaults(role: Path) -> None:
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text())
    assert {name: spec["default"] for name, spec in specs.items() if "default" in spec} == defaults
    assert {name for name, spec in specs.items() if "default" not in spec} == {
        name for name, spec in specs.items() if spec.get("required")
    }
    assert all(name.startswith(f"{role.name}_") for name in specs)


def test_no_task_hides_a_failure_or_writes_the_secrets() -> None:
    for path, task in TASKS:
        assert "ignore_errors" not in task, path
        module = {name: value for name, value in task.items() if "." in name or name.startswith("booty_")}
        words = json.dumps({name: value for name, value in module.items() if "assert" not in name})
        assert "secrets.env" not in words, path


def test_a_host_that_can_not_be_reached_ends_no_run_that_ignores_it() -> None:
    """any_errors_fatal of the play would end it in spite of ignore_unreachable."""
    for path, task in TASKS:
        assert task.get("ignore_unreachable", False) is not task.get("any_errors_fatal", True), (path, task["name"])


def test_a_rescue_ends_in_failure() -> None:
    for path, task in TASKS:
        # These show a failure with the answers of the other hosts, and fail at their end.
        if "rescue" in task and path.name not in {"status.yml", "logs.yml", "history.yml"}:
            assert "ansible.builtin.fail" in task["rescue"][-1], path


def ansible(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_the_default_inventory_holds_sandbox_hosts_alone() -> None:
    done = ansible("ansible-inventory", "--list")
    assert done.returncode == 0, done.stderr
    for host in json.loads(done.stdout)["_meta"]["hostvars"].values():
        # RFC 2544's range for test beds, which no real host has.
        assert host["ansible_host"].startswith("198.18.")


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_a_fresh_inventory_has_no_host(environment: str) -> None:
    listed = json.loads(ansible("ansible-inventory", "-i", f"inventory/{environment}", "--list").stdout)
    assert not listed["_meta"]["hostvars"]
    variables = yaml.safe_load((ROOT / f"inventory/{environment}/group_vars/booty.yml").read_text())
    assert variables["app_environment"] == environment


@pytest.mark.parametrize("path", [path for path in PLAYBOOKS if path.name != "hosts.yml"], ids=lambda path: path.name)
def test_without_a_host_a_playbook_fails(path: Path) -> None:
    done = ansible("ansible-playbook", path.name, "-i", "inventory/production", "-e", "maintenance=on")
    assert done.returncode != 0
    assert "has no host in the group 'booty'" in " ".join((done.stdout + done.stderr).split())


def test_an_environment_is_required(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("[booty]\nnowhere.invalid\n")
    done = ansible("ansible-playbook", "deploy.yml", "-i", str(tmp_path / "hosts"))
    assert done.returncode != 0
    assert "app_environment is not set: write it in the inventory" in " ".join((done.stdout + done.stderr).split())


def test_the_command_that_places_the_secrets_is_the_same_everywhere() -> None:
    printed = yaml.safe_load((ROOT / "roles/app/vars/main.yml").read_text())["__app_secrets_steps"]["write"][1]
    printed = re.sub(r"{{ __app_as_root\[.\] }}", "'", printed).replace("{{ __app_secrets }}", "/etc/booty/secrets")
    document = (ROOT / "docs/new-host.md").read_text()
    commands = [" ".join(command.split()) for command in re.findall(r"'(umask [^']*)'", printed + document)]
    assert commands == [demo.PLACE_SECRETS] * 4  # one printed by the role; one typed and two piped in the document
