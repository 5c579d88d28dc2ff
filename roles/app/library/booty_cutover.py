#!/usr/bin/python
"""Make a staged release the one that serves."""

from __future__ import annotations

import time
from typing import Any

from ansible.module_utils import booty_host as host
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: booty_cutover
short_description: Make a staged release the one that serves
description:
  - Replaces release.env in one rename, restarts the service behind its held socket, and confirms that the release that
    answers there is the one that was asked for, in memory as on disk.
options:
  pointer: {description: The text of release.env., type: str, required: true}
  address: {description: What booty.socket listens on., type: str, required: true}
  port: {description: Likewise., type: int, required: true}
  timeout: {description: How many seconds the release may take to answer rightly., type: int, default: 15}
author: [Booty]
"""
EXAMPLES = r"""
- booty_cutover: {pointer: "SENTRY_RELEASE=…", address: 0.0.0.0, port: 8000}
"""
RETURN = r"""#"""


class CutoverError(Exception):
    """The release does not serve; the message says why."""


def fault(wanted: dict[str, str], running: dict[str, str], health: dict[str, Any]) -> str | None:
    """Say how what serves differs from what was asked for; None when it does not.

    Args:
        wanted: the labels of release.env.
        running: the labels that the main process was started with.
        health: what the real socket answered.
    """
    for name, value in wanted.items():
        if running.get(name) != value:
            return f"the running process has {name}={running.get(name)}, not {value}"
    if health["status"] != 200:
        return f"/health says {health['status']}: {health.get('reason', 'no reason given')}"
    answers = {"SENTRY_RELEASE": health.get("release"), "SENTRY_ENVIRONMENT": health.get("environment")}
    for name, answer in answers.items():
        if answer != wanted[name]:
            return f"/health answers {answer} for {name}, not {wanted[name]}"
    return None


def systemctl(verb: str, name: str) -> None:
    """Have systemd do something; raise CutoverError with the journal's last lines when it fails."""
    done = host.run("systemctl", verb, name)
    if done.returncode:
        raise CutoverError(f"systemctl {verb} {name} failed: {done.stderr.strip().splitlines()[0]}")


def cut_over(text: str, address: str, port: int, timeout: float) -> dict[str, Any]:
    """Point, restart and confirm.

    Returns:
        the evidence: `pointer`, `running` and `health`, as booty_info has them.

    Raises:
        CutoverError: the release does not serve; the message says why.
    """
    wanted = host.parse_assignments(text)
    host.write_atomically(host.POINTER, text)
    # A crash loop leaves both of them failed, and a failed socket refuses to start.
    host.run("systemctl", "reset-failed", host.SERVICE, host.SOCKET)
    if host.unit(host.SOCKET)["ActiveState"] != "active" or not host.listens(address, port):
        systemctl("stop", host.SERVICE)
        systemctl("restart", host.SOCKET)
    systemctl("restart", host.SERVICE)
    deadline = time.monotonic() + timeout
    while True:
        running = host.labels(int(host.unit(host.SERVICE)["MainPID"]))
        health = host.health(address, port)
        found = fault(wanted, running, health)
        if found is None:
            return {"pointer": host.pointer(), "running": running, "health": health}
        if time.monotonic() > deadline:
            raise CutoverError(found)
        time.sleep(0.1)


def main() -> None:
    """Cut over."""
    module = AnsibleModule(
        argument_spec={
            "pointer": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "timeout": {"type": "int", "default": 15},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    before = host.POINTER.read_text() if host.POINTER.exists() else ""
    diff = {
        "before": before,
        "after": wanted["pointer"],
        "before_header": str(host.POINTER),
        "after_header": str(host.POINTER),
    }
    answer = {"changed": True, "diff": diff}
    if not module.check_mode:
        try:
            answer["host"] = cut_over(wanted["pointer"], wanted["address"], wanted["port"], wanted["timeout"])
        except CutoverError as error:
            lines = "\n  ".join(host.journal(host.SERVICE))
            module.fail_json(msg=f"The release does not serve: {error}\nIts journal ends with:\n  {lines}", diff=diff)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
