#!/usr/bin/python
"""Install systemd units as one set: all of them verified before any is touched."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ansible.module_utils import booty_host as host
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: booty_units
short_description: Install systemd units as one set
description:
  - Units that name each other can only be verified together, so they are written beside each other first.
    C(systemd-analyze verify) exits 0 on an unknown key, so anything it says is a failure.
options:
  units: {description: The text of each unit by its name., type: dict, required: true}
  enable: {description: The units that start at boot., type: list, elements: str, default: []}
author: [Booty]
"""
EXAMPLES = r"""
- booty_units: {units: {booty.socket: "[Socket]…"}, enable: [booty.socket]}
"""
RETURN = r"""#"""


def verify(units: dict[str, str]) -> str:
    """Return what systemd finds wrong with a set of units; nothing when all is right."""
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory, name) for name in units]
        for path in paths:
            path.write_text(units[path.name])
        done = host.run("systemd-analyze", "verify", "--man=no", *map(str, paths))
        # It verifies what these need as well: another package's fault is not ours to report.
        said = [line.replace(f"{directory}/", "") for line in done.stderr.splitlines() if "booty" in line]
    return "\n".join(said)


def main() -> None:
    """Install what differs, and reload systemd."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "dict", "required": True},
            "enable": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    units: dict[str, str] = module.params["units"]
    before = {name: path.read_text() if (path := host.UNITS / name).exists() else "" for name in units}
    changed = [name for name in units if before[name] != units[name]]
    enable = [name for name in module.params["enable"] if host.unit(name).get("UnitFileState") != "enabled"]
    diff = [
        {
            "before": before[name],
            "after": units[name],
            "before_header": str(host.UNITS / name),
            "after_header": str(host.UNITS / name),
        }
        for name in changed
    ]
    if changed and (faults := verify(units)):
        module.fail_json(msg=f"systemd finds fault with the units; none was installed:\n{faults}")
    if not module.check_mode:
        for name in changed:
            host.write_atomically(host.UNITS / name, units[name])
        if changed:
            host.run("systemctl", "daemon-reload")
        if enable and (done := host.run("systemctl", "enable", *enable)).returncode:
            module.fail_json(msg=f"{', '.join(enable)} can't be enabled: {done.stderr.strip()}")
    module.exit_json(changed=bool(changed or enable), diff=diff)


if __name__ == "__main__":
    main()
