"""Refuse a run that an option or a setting of Ansible would keep from doing what the playbook says.

A play's `hosts:` is evaluated whatever tasks were chosen, so neither --tags nor --start-at-task skips this filter.
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

ROOT = Path(__file__).resolve().parents[3]
SANDBOX = ROOT / "inventory" / "sandbox"
# What the controller imports beyond ansible-core.
PACKAGES = ("uv", "packaging", "cyclonedx", "rich")
# A play's `hosts:` that matches none, without a warning.
NO_HOST = "localhost:!localhost"
# Settings of Ansible that a play can't pin: what each must be, and what another value would do.
SETTINGS: dict[str, tuple[Any, str]] = {
    "DEFAULT_NO_LOG": (False, "a failure would be shown without its reason"),
    "ENABLE_TASK_DEBUGGER": (False, "a failed step would wait for a person instead of going back"),
    "TASK_TIMEOUT": (0, "Ansible would give up on a step that goes on on the host"),
}
# Options that choose some tasks of a playbook, by their name in `context.CLIARGS`; the variable that sets each as well;
# and the values that leave no task of Booty out: Ansible's default, and what molecule always skips.
PARTIAL: dict[str, tuple[str, str, set[str]]] = {
    "tags": ("--tags", "ANSIBLE_RUN_TAGS", {"all"}),
    "skip_tags": ("--skip-tags", "ANSIBLE_SKIP_TAGS", {"molecule-notest", "molecule-idempotence-notest", "notest"}),
    "start_at_task": ("--start-at-task", "", set()),
    "step": ("--step", "", set()),
}


def options(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Say which options of ansible-playbook must go.

    Args:
        arguments: those of the command line by name, with Ansible's settings as their defaults.
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
    """Say which settings of Ansible must be others, where they come from, and how to change them."""
    for name, (needed, otherwise) in SETTINGS.items():
        value, origin = C.config.get_config_value_and_origin(name)
        if value != needed:
            _, of_environment, variable = str(origin).partition("env: ")
            remedy = f"Unset {variable}." if of_environment else f"Remove it from {origin}."
            yield f"Ansible's setting {name} is {value} ({origin}) and must be {needed}: {otherwise}. {remedy}"


def inventory(arguments: Mapping[str, Any], command: list[str]) -> Iterator[str]:
    """Say that the inventory is a default other than the sandbox: no default leads to a real host.

    Args:
        arguments: those of the command line by name, with Ansible's settings as their defaults.
        command: the command line itself, since the default may have been named there.
    """
    sources = [*(arguments.get("inventory") or ())]
    if sources != [*C.DEFAULT_HOST_LIST] or [*map(os.path.realpath, sources)] == [os.path.realpath(SANDBOX)]:
        return
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-i", "--inventory", "--inventory-file", action="append")
    if not parser.parse_known_args(command)[0].inventory:
        _, origin = C.config.get_config_value_and_origin("DEFAULT_HOST_LIST")
        named = ",".join(sources)
        yield (
            f"No inventory was named, and Ansible's default is {named} ({origin}), which is not Booty's sandbox. Name"
            f" the inventory that you mean: -i {named}, or -i {SANDBOX} for the sandbox."
        )


def hosts(variables: Context) -> Iterator[str]:
    """Say that the run has no host: it would succeed and do nothing."""
    if not {*variables.get("groups", {}).get("booty", [])} & {*variables.get("ansible_play_hosts_all", [])}:
        limit = variables.get("ansible_limit")
        yield (
            f"The inventory has no host in the group 'booty'{f' that --limit {limit} leaves' if limit else ''}. Boot"
            " sandbox hosts with `make sandbox`, or name an inventory of your own: -i inventory/production"
        )


def unparsed() -> Iterator[str]:
    """Say which inventory file Ansible left out because it could not read it: its hosts would keep what they have.

    With `any_unparsed_is_failed`, which Booty's own ansible.cfg sets, Ansible itself has refused it before.
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
    """Say which Python packages the controller lacks. bootstrap.yml, which has the role host, needs none of them."""
    missing = [name for name in PACKAGES if not find_spec(name)] if "host" not in roles else []
    if missing:
        yield (
            f"The Python of ansible-playbook lacks {', '.join(missing)}. Install what Booty needs: {sys.executable}"
            f" -m pip install --require-hashes -r {ROOT}/requirements/controller.txt"
        )


def drift(variables: Context) -> Iterator[str]:
    """Say that drift needs an app to be chosen: what a deploy would change is another thing for each app."""
    if variables.get("app_drift") and apps.described() and apps.chosen(variables) is None:
        yield "app_drift says what a deploy of one app would change: choose the app with -e app=NAME"


@pass_context
def refuse(variables: Context, faults: list[str]) -> str:
    """End ansible-playbook with exit status 4, as a wrong playbook does, when something is wrong with the run.

    Ansible would show an exception of a filter as an error in a line of the playbook, and the playbook is right.

    Args:
        variables: those of the play.
        faults: what is wrong with the roles' variables.

    Returns:
        `hosts:` of a play that does nothing.
    """
    arguments = context.CLIARGS
    if any(arguments.get(name) for name in ("syntax", "listhosts", "listtasks", "listtags")):
        return NO_HOST
    run = [*options(arguments), *inventory(arguments, sys.argv[1:]), *settings(), *unparsed()]
    run += [*packages(variables.get("__app_roles", [])), *drift(variables)]
    if found := run or [*hosts(variables)] or faults:
        message = "\n".join([*found, "Nothing was changed."])
        Display().error(message, wrap_text=False)
        if variables.get("status_format") == "json":  # of status.yml, whose standard output is then a document always
            counts = {"hosts": 0, "levels": dict.fromkeys(("ok", "look", "broken"), 0), "releases": {}, "drifting": []}
            at = datetime.now(UTC).isoformat(timespec="seconds")
            Display().display(json.dumps({"at": at, "summary": counts, "hosts": [], "message": message}, indent=2))
        raise SystemExit(4)
    return NO_HOST
