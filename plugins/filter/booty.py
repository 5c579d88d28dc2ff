"""The filters of the collection, each by its name."""

from collections.abc import Callable
from typing import Any

from ansible_collections.booty.deploy.plugins.module_utils.controller import (
    fleet,
    host_access,
    host_files,
    playbook,
    run_check,
    variables,
)

FILTERS: dict[str, Callable[..., Any]] = {
    "app_ports": host_access.app_ports,
    "command_of": playbook.playbook,
    "end_with": run_check.end_with,
    "problems": variables.all_problems,
    "fleet": fleet.fleet,
    "keep_open": host_access.keep_open,
    "listeners": host_access.listeners,
    "misplaced": host_files.misplaced,
    "refuse": run_check.refuse,
    "removed": host_files.removed,
    "host_values": host_files.host_values,
    "hosts_with": fleet.hosts_with,
    "sshd_refusals": host_access.sshd_refusals,
    "stale": host_files.stale,
    "typed": variables.typed_value,
    "waves": variables.waves,
    "way_back": fleet.way_back,
}


class FilterModule:
    """The class that Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return FILTERS
