"""Refuse a run in which an option, a setting of Ansible, the inventory or a variable would break the playbook.

The filter `refuse` is in the `hosts:` of a play. Ansible evaluates `hosts:` even if --tags or --start-at-task skips all
tasks.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible import context
from ansible.errors import AnsibleError
from ansible.inventory import manager
from ansible.parsing.dataloader import DataLoader
from ansible.utils.display import Display
from jinja2 import pass_context
from jinja2.runtime import Context

from . import apps
from .playbook import NO_HOST, completed

ROOT = Path(__file__).resolve().parents[3]
SANDBOX = ROOT / "inventory" / "sandbox"
# The packages that the controller code imports besides ansible-core.
PACKAGES = ("uv", "packaging", "cyclonedx", "rich")
# Settings of Ansible that a play can't override: the required value, and the effect of another one.
SETTINGS: dict[str, tuple[Any, str]] = {
    "DEFAULT_NO_LOG": (False, "a failure would be shown without its reason"),
    "ENABLE_TASK_DEBUGGER": (False, "a failed step would wait for a person instead of going back"),
    "TASK_TIMEOUT": (0, "Ansible would end a step that continues on the host"),
}
# The values of `-e maintenance`.
SWITCH = {"on", "off", "true", "false", "yes", "no"}
# Options that run only some tasks, by their names in `context.CLIARGS`: the option, the variable that sets it too, and
# the values that skip no task of Booty, which are Ansible's default and the tags that molecule always skips.
PARTIAL: dict[str, tuple[str, str, set[str]]] = {
    "tags": ("--tags", "ANSIBLE_RUN_TAGS", {"all"}),
    "skip_tags": ("--skip-tags", "ANSIBLE_SKIP_TAGS", {"molecule-notest", "molecule-idempotence-notest", "notest"}),
    "start_at_task": ("--start-at-task", "", set()),
    "step": ("--step", "", set()),
}


def options(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield a problem for each option of ansible-playbook that skips tasks or replaces the connection.

    Args:
        arguments: `context.CLIARGS`: the command line, with Ansible's settings as defaults.
    """
    for name, (option, variable, harmless) in PARTIAL.items():
        value = arguments.get(name)
        if not value or (harmless and {*value} <= harmless):
            continue
        other = f" ({variable}, and [tags] in ansible.cfg, set it as well)" if variable else ""
        yield (
            f"{option} would run some steps of the playbook, and each needs those before it. Leave it out{other}."
            " --check shows what all steps would do, and --limit chooses hosts."
        )
    connection = arguments.get("connection", "ssh")
    if connection not in {"ssh", "smart", "ansible.builtin.ssh"}:
        yield (
            f"The connection of the run is {connection} (-c, ANSIBLE_TRANSPORT, or transport in ansible.cfg): the hosts"
            " of the inventory would not be reached by SSH. Leave it out. A host that has another connection says so in"
            " the inventory: ansible_connection"
        )


def settings() -> Iterator[str]:
    """Yield a problem for each setting of Ansible with a value other than the required one."""
    for name, (required, effect) in SETTINGS.items():
        value, origin = C.config.get_config_value_and_origin(name)
        if value != required:
            _, of_environment, variable = str(origin).partition("env: ")
            remedy = f"Unset {variable}." if of_environment else f"Remove it from {origin}."
            yield f"Ansible's setting {name} is {value} ({origin}) and must be {required}: {effect}. {remedy}"


def inventory(arguments: Mapping[str, Any], command: list[str]) -> Iterator[str]:
    """Yield a problem if no inventory was named and Ansible's default is not the sandbox: it may lead to real hosts.

    Args:
        arguments: `context.CLIARGS`.
        command: the words of the command line, where -i may name the default.
    """
    sources = [*(arguments.get("inventory") or ())]
    if sources != [*C.DEFAULT_HOST_LIST] or [*map(os.path.realpath, sources)] == [os.path.realpath(SANDBOX)]:
        return
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-i", "--inventory", "--inventory-file", action="append")
    if not parser.parse_known_args(command)[0].inventory:
        _, origin = C.config.get_config_value_and_origin("DEFAULT_HOST_LIST")
        default = ",".join(sources)
        sandbox = f", or -i {SANDBOX} for the sandbox" if SANDBOX.exists() else ""
        yield (
            f"No inventory was named, and Ansible's default is {default} ({origin}), which is not Booty's sandbox. Name"
            f" the inventory that you mean: -i {default}{sandbox}."
        )


def hosts(variables: Context) -> Iterator[str]:
    """Yield a problem if the run has no host, because Ansible would report a success."""
    if not {*variables.get("groups", {}).get("booty", [])} & {*variables.get("ansible_play_hosts_all", [])}:
        limit = variables.get("ansible_limit")
        yield (
            f"The inventory has no host in the group 'booty'{f' that --limit {limit} leaves' if limit else ''}. Boot"
            " sandbox hosts with `make sandbox`, or name an inventory of your own: -i inventory/production"
        )


def unparsed() -> Iterator[str]:
    """Yield a problem for an inventory file that Ansible could not parse, because the run would skip its hosts.

    With `any_unparsed_is_failed`, which Booty's ansible.cfg sets, Ansible itself refuses the file.
    """
    if C.INVENTORY_ANY_UNPARSED_IS_FAILED:
        return
    ignored = manager.IGNORED
    C.INVENTORY_ANY_UNPARSED_IS_FAILED = True
    manager.IGNORED = re.compile(ignored.pattern + b"|^apps$")
    try:
        manager.InventoryManager(DataLoader(), [*context.CLIARGS["inventory"]])
    except AnsibleError as error:
        yield f"An inventory file can't be read, so the run would leave its hosts out. {error.message}"
    finally:
        C.INVENTORY_ANY_UNPARSED_IS_FAILED = False
        manager.IGNORED = ignored


def packages(roles: list[str]) -> Iterator[str]:
    """Yield a problem if the controller lacks Python packages. bootstrap.yml, the playbook of role host, needs none."""
    missing = [name for name in PACKAGES if not find_spec(name)] if "host" not in roles else []
    if missing:
        yield (
            f"The Python of ansible-playbook lacks {', '.join(missing)}. Install what Booty needs: {sys.executable}"
            f" -m pip install --require-hashes -r {ROOT}/requirements/controller.txt"
        )


def drift(variables: Context) -> Iterator[str]:
    """Yield a problem if app_drift is set, the inventory has several apps, and none of them was chosen."""
    if variables.get("app_drift") and apps.described() and apps.chosen(variables) is None:
        yield "app_drift shows the changes of a deploy of one app: choose the app with -e app=NAME"


def maintenance(variables: Context) -> Iterator[str]:
    """Yield a problem if maintenance.yml is not told whether to close the app or to open it."""
    if variables.get("__app_closes") and str(variables.get("maintenance")).lower() not in SWITCH:
        word = variables.get("maintenance")
        wrong = "There is no -e maintenance." if word is None else f"maintenance is {word}, and must be on or off."
        command = "ansible-playbook maintenance.yml -e maintenance"
        yield f"{wrong} To close the app: {command}=on. To open it: {command}=off"


@pass_context
def end_with(variables: Context, name: str) -> str:
    """End ansible-playbook with the `status` in a variable that a task registered, if a host has it.

    Args:
        variables: the variables of the play.
        name: the variable.

    Returns:
        a pattern for `hosts:` that matches no host.
    """
    if "hostvars" in variables:
        for host in variables.get("groups", {}).get("booty", []):
            registered = variables["hostvars"].raw_get(host).get(name, {})
            if "status" in registered:
                raise SystemExit(registered["status"])
    return NO_HOST


@pass_context
def refuse(variables: Context, problems: list[str]) -> str:
    """End ansible-playbook with exit status 4 if the run has a problem, as Ansible does for a wrong playbook.

    It raises SystemExit, because Ansible would blame a line of the playbook for any other exception of a filter.

    Args:
        variables: the variables of the play.
        problems: the problems with the roles' variables.

    Returns:
        a pattern for `hosts:` that matches no host.
    """
    arguments = context.CLIARGS
    if any(arguments.get(name) for name in ("syntax", "listhosts", "listtasks", "listtags")):
        return NO_HOST
    of_run = [*options(arguments), *inventory(arguments, sys.argv[1:]), *settings(), *unparsed()]
    of_run += [*packages(variables.get("__app_roles", [])), *drift(variables), *maintenance(variables)]
    if sentences := of_run or [*hosts(variables)] or problems:
        message = completed("\n".join([*sentences, "Nothing was changed."]), variables.get_all())
        Display().error(message, wrap_text=False)
        if variables.get("status_format") == "json":  # status.yml promises a JSON document on standard output
            counts = {"hosts": 0, "levels": dict.fromkeys(("ok", "look", "broken"), 0), "releases": {}, "drifting": []}
            at = datetime.now(UTC).isoformat(timespec="seconds")
            nothing: dict[str, list[Any]] = {
                "hosts": [],
                "runs": [],
                "remarks": [],
            }  # history.yml promises such a document as well
            Display().display(json.dumps({"at": at, "summary": counts, **nothing, "message": message}, indent=2))
        raise SystemExit(4)
    return NO_HOST
