#!/usr/bin/python
"""Tell in one answer all that a deploy asks of a host. Changes nothing."""

from __future__ import annotations

import json
import platform
import pwd
import sys
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
  user: {description: The service's user., type: str, required: true}
  pointer: {description: The text of the release.env that is wanted., type: str, default: ""}
  units: {description: The text of each unit that is wanted., type: dict, default: {}}
author: [Booty]
"""
EXAMPLES = r"""
- booty_info: {user: booty}
"""
RETURN = r"""
python: {description: "The version of the host's Python, as 3.11", returned: always, type: str}
"""


def releases(python: str) -> list[str]:
    """Return the releases that are staged for this Python: a half-made one has a leading dot, and no manifest yet."""
    found = host.RELEASES.glob("[!.]*/release.json")
    return sorted(path.parent.name for path in found if json.loads(path.read_text())["python"] == python)


def user_exists(name: str) -> bool:
    """Tell whether the host knows a user."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def gather(user: str, pointer: str, units: dict[str, str]) -> dict[str, Any]:
    """Return everything, each part under the name that the tasks use."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {
        "python": python,
        "machine": platform.machine(),
        "ready": user_exists(user) and host.RELEASES.is_dir() and host.ETC.is_dir(),
        "pointer": host.pointer(),
        "releases": releases(python),
        "layers": sorted(path.name for path in host.LAYERS.glob("[!.]*")),
        "served": host.State.load().served,
        "running": host.labels(int(host.unit(host.SERVICE)["MainPID"])),
        "unsettled": host.unsettled(host.Release(pointer, units)) if units else "",
        "secrets": host.secrets(),
    }


def main() -> None:
    """Answer."""
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "str", "required": True},
            "pointer": {"type": "str", "default": ""},
            "units": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, host=gather(**module.params))


if __name__ == "__main__":
    main()
