"""Refuse a run that an option or a setting of Ansible would keep from doing what the playbook says.

A play's `hosts:` is evaluated whatever tasks were chosen, so neither --tags nor --start-at-task skips this filter.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible import context
from ansible.utils.display import Display
from jinja2 import pass_context
from jinja2.runtime import Context

ROOT = Path(__file__).resolve().parents[3]
SANDBOX = ROOT / "inventory" / "sandbox"
# A play's `hosts:` that matches none, without a warning.
NO_HOST = "localhost:!localhost"
# Settings of Ansible that a play can't pin: what each must be, and what another value would do.
SETTINGS: dict[str, tuple[Any, str]] = {
    "INVENTORY_ANY_UNPARSED_IS_FAILED": (True, "the hosts of an inventory file with a typing error would be left out"),
    "DEFAULT_NO_TARGET_SYSLOG": (True, "each host's journal would hold the arguments of every task"),
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
    from_file = False
    for name, (needed, otherwise) in SETTINGS.items():
        value, origin = C.config.get_config_value_and_origin(name)
        if value == needed:
            continue
        _, of_environment, variable = str(origin).partition("env: ")
        from_file |= not of_environment
        remedy = f" Unset {variable}." if of_environment else ""
        yield f"Ansible's setting {name} is {value} ({origin}) and must be {needed}: {otherwise}.{remedy}"
    if from_file:
        read = f"The ansible.cfg that counts here is {C.CONFIG_FILE}" if C.CONFIG_FILE else "No ansible.cfg counts here"
        if ROOT.stat().st_mode & stat.S_IWOTH:
            read += f"; Ansible ignores that of {ROOT}, where everybody can write (chmod o-w {ROOT})"
        yield (
            f"{read}. Use Booty's: cd {ROOT}, or export ANSIBLE_CONFIG={ROOT}/ansible.cfg. Or write the settings into"
            " your own ansible.cfg."
        )


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
    run = [*options(arguments), *inventory(arguments, sys.argv[1:]), *settings()]
    if found := run or [*hosts(variables)] or faults:
        message = "\n".join([*found, "Nothing was changed."])
        Display().error(message, wrap_text=False)
        if variables.get("status_format") == "json":  # of status.yml, whose standard output is then a document always
            counts = {"hosts": 0, "levels": dict.fromkeys(("ok", "look", "broken"), 0), "releases": {}, "drifting": []}
            at = datetime.now(UTC).isoformat(timespec="seconds")
            Display().display(json.dumps({"at": at, "summary": counts, "hosts": [], "message": message}, indent=2))
        raise SystemExit(4)
    return NO_HOST
