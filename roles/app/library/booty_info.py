#!/usr/bin/python
"""Tell in one answer all that a deploy asks of a host. Changes nothing."""

from __future__ import annotations

import hashlib
import platform
import pwd
import sys
from pathlib import Path
from typing import Any

from ansible.module_utils import booty_host as host
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: booty_info
short_description: Tell in one answer all that a deploy asks of a host
description:
  - Reads the release pointer, the releases and layers that are there, the units, what runs and how it answers.
  - Judges secrets.env where it lies. No value of it is returned.
options:
  address: {description: What booty.socket listens on., type: str, required: true}
  port: {description: Likewise., type: int, required: true}
  user: {description: The service's user., type: str, required: true}
  units: {description: Names of the units whose files are compared., type: list, elements: str, default: []}
author: [Booty]
"""
EXAMPLES = r"""
- booty_info: {address: 0.0.0.0, port: 8000, user: booty, units: [booty.service]}
"""
RETURN = r"""
python: {description: "The version of the host's Python, as 3.11", returned: always, type: str}
"""


def names(directory: Path) -> list[str]:
    """Return what is whole in a directory: half-made entries have a leading dot."""
    return sorted(path.name for path in directory.glob("[!.]*")) if directory.is_dir() else []


def digest(path: Path) -> str:
    """Return a file's SHA-256; nothing when it is not there."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def user_exists(name: str) -> bool:
    """Tell whether the host knows a user."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def gather(address: str, port: int, user: str, units: list[str]) -> dict[str, Any]:
    """Return everything, each part under the name that the tasks use."""
    service = host.unit(host.SERVICE)
    running = host.labels(int(service.get("MainPID") or 0))
    system = host.parse_assignments(Path("/etc/os-release").read_text())
    return {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "machine": platform.machine(),
        "system": f"{system.get('ID', 'unknown')} {system.get('VERSION_ID', '')}".replace('"', "").strip(),
        "ready": user_exists(user) and host.RELEASES.is_dir() and host.ETC.is_dir(),
        "pointer": host.pointer(),
        "releases": names(host.RELEASES),
        "layers": names(host.LAYERS),
        "units": {name: digest(host.UNITS / name) for name in units},
        "service": service,
        "socket": host.unit(host.SOCKET),
        "candidate": host.unit(host.CANDIDATE).get("ActiveState", "inactive"),
        "served": host.State.load().served,
        "running": running,
        # Asking a stopped service would start it: the socket is systemd's.
        "health": host.health(address, port) if running else {"status": 0, "reason": f"{host.SERVICE} does not run"},
        "secrets": host.secrets(),
    }


def main() -> None:
    """Answer."""
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "user": {"type": "str", "required": True},
            "units": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, host=gather(**module.params))


if __name__ == "__main__":
    main()
