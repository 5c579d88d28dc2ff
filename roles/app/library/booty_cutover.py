#!/usr/bin/python
"""Make a staged release the one that serves: proven first, without losing a request, and back again if it fails."""

from __future__ import annotations

import json
import shutil
import time
from typing import Any

from ansible.module_utils import booty_host as host
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: booty_cutover
short_description: Make a staged release the one that serves
description:
  - Starts the release as a candidate beside the one that serves, on the same sockets. Only when it is ready are the
    units and release.env replaced and the service restarted, while the candidate answers; then the candidate retires.
  - A failure before release.env is replaced leaves what serves untouched. A failure after it goes back.
  - The steps run in a process of their own on the host, which ends them also when the connection is gone, and which
    holds the host's deploy lock.
options:
  pointer: {description: The text of release.env. Without it the last cutover is taken back., type: str}
  units: {description: The text of each unit by its name., type: dict, default: {}}
  keep: {description: How many releases that served are kept., type: int, default: 5}
  by: {description: Who asks and for what; shown to others while the lock is held., type: str, required: true}
author: [Booty]
"""
EXAMPLES = r"""
- booty_cutover: {pointer: "SENTRY_RELEASE=…", units: {…}, by: me@here}
"""
RETURN = r"""
host:
  description: The evidence, in booty_info's words; pointer, running and health.
  returned: success
  type: dict
notices:
  description: What was found that a person should know.
  returned: always
  type: list
"""


class CutoverError(Exception):
    """A step failed; the message says which and why."""


class Release:
    """What a host is told to serve: the text of release.env, and of the units that belong to it."""

    def __init__(self, pointer: str, units: dict[str, str]) -> None:
        self.pointer, self.units = pointer, units
        self.labels = host.parse_assignments(pointer)
        self.sha = self.labels.get("SENTRY_RELEASE", "")

    @property
    def address(self) -> tuple[str, int]:
        """The address and port that it is served on."""
        found: tuple[str, int] = host.parse_stream(self.units[host.SOCKET])
        return found


def main() -> None:
    """Cut over, or say what would change."""
    module = AnsibleModule(
        argument_spec={
            "pointer": {"type": "str"},
            "units": {"type": "dict", "default": {}},
            "keep": {"type": "int", "default": 5},
            "by": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    wanted = Release(module.params["pointer"] or "", module.params["units"])
    diff = difference(wanted)
    if module.check_mode:
        module.exit_json(changed=True, diff=diff)
    try:
        result = host.detached(lambda: cut_over(wanted, module.params["keep"]), by=module.params["by"])
    except host.Held as error:
        module.fail_json(msg=str(error))
    if "failed" in result:
        module.fail_json(**result, diff=diff)
    module.exit_json(changed=True, diff=diff, **result)


def difference(wanted: Release) -> list[dict[str, str]]:
    """Return what changes on disk, as Ansible shows it."""
    pairs = [(host.UNITS / name, text) for name, text in wanted.units.items()] + [(host.POINTER, wanted.pointer)]
    return [
        {"before": before, "after": after, "before_header": str(path), "after_header": str(path)}
        for path, after in pairs
        if (before := host.read(path)) != after and wanted.pointer
    ]


def cut_over(wanted: Release, keep: int) -> dict[str, Any]:
    """Prove, point, restart, retire; go back when that fails, or when nothing is wanted.

    Returns:
        the module's result, with `failed` and `msg` when the release does not serve.
    """
    state = host.State.load()
    notices = settle(state)
    before = what_serves(wanted)
    if not wanted.pointer:
        return take_back(state)
    touched = False
    try:
        verify(wanted)
        prove(wanted)
        state.previous = {"pointer": before.pointer, "units": before.units}
        state.save()
        touched = True
        switch(wanted)
    except Exception as error:  # whatever it was, what served before comes first
        host.log(f"failed: {error}")
        state.abandon(wanted.sha, str(error).splitlines()[0])
        outcome = go_back(before) if touched else untouched(before)
        return {"failed": True, "msg": f"{wanted.sha} does not serve: {error}\n{outcome}", "notices": notices}
    state.serve(wanted.sha)
    evidence = {"pointer": host.pointer(), "running": running(), "health": host.health(*wanted.address)}
    host.log(f"serving {wanted.sha}")
    try:
        removed = prune(state, keep)
    except OSError as error:
        return {"failed": True, "msg": f"{wanted.sha} serves, but old releases can't be removed: {error}"}
    return {"host": evidence, "notices": notices, "pruned": removed}


def settle(state: host.State) -> list[str]:
    """Clear what an interrupted cutover left, and return what was found, for a person to read."""
    notices = []
    if host.unit(host.CANDIDATE)["ActiveState"] not in {"inactive", "failed"}:
        notices.append(f"An interrupted deploy had left {host.CANDIDATE} running; it is stopped.")
        retire()
    labels, pointer = running(), host.pointer()
    if labels and labels.get("SENTRY_RELEASE") != pointer.get("SENTRY_RELEASE"):
        notices.append(
            f"An interrupted deploy had left release.env at {pointer.get('SENTRY_RELEASE')},"
            f" while {labels.get('SENTRY_RELEASE')} runs."
        )
    elif labels:
        state.serve(labels["SENTRY_RELEASE"])
    for notice in notices:
        host.log(notice)
    return notices


def what_serves(like: Release) -> Release:
    """Return the release that serves now, or that release.env names; an empty one on a new host."""
    labels = {name: value for name, value in running().items() if name in like.labels} or host.pointer()
    units = {path.name: host.read(path) for path in map(host.UNITS.joinpath, host.ALL_UNITS) if path.exists()}
    text = host.read(host.POINTER)
    if labels and host.parse_assignments(text) != labels:
        text = "".join(f"{name}={value}\n" for name, value in labels.items())
    return Release(text, units)


def verify(release: Release) -> None:
    """Find what can be known before anything is started."""
    # The units name each other, so they are verified as one set; what is installed was verified before.
    changed = any(host.read(host.UNITS / name) != text for name, text in release.units.items())
    if changed and (faults := host.verify_units(release.units)):
        raise CutoverError(f"systemd finds fault with the units:\n{faults}")
    address, port = release.address
    if host.listener(address, port) == "another program":
        raise CutoverError(f"{address}:{port} is taken by another program. See which: ss -ltnp 'sport = :{port}'")


def prove(release: Release) -> None:
    """Start a release as a candidate beside what serves; it is ready when it has checked itself."""
    if host.unit(host.SOCKET)["ActiveState"] != "active":
        # Nothing is served, so there is nothing to lose: the candidate needs the sockets.
        install(release.units)
        systemctl("reset-failed", host.SERVICE, host.SOCKET, check=False)
        systemctl("start", host.SOCKET)
    host.write_atomically(host.CANDIDATE_POINTER, release.pointer)
    install({name: text for name, text in release.units.items() if name == host.CANDIDATE})
    host.log(f"proving {release.sha}")
    systemctl("reset-failed", host.CANDIDATE, check=False)
    try:
        systemctl("start", host.CANDIDATE)
        labels = host.labels(int(host.unit(host.CANDIDATE)["MainPID"]))
        if fault := differs(release.labels, labels):
            raise CutoverError(f"the candidate's {fault}")
    except CutoverError:
        retire()
        raise


def switch(release: Release) -> None:
    """Point to a proven release and restart the service while the candidate answers; then let that one go."""
    install(release.units)
    host.write_atomically(host.POINTER, release.pointer)
    host.log(f"pointing to {release.sha}")
    # A crash loop leaves both of them failed, and a failed socket refuses to start.
    systemctl("reset-failed", host.SERVICE, host.SOCKET, check=False)
    if host.unit(host.SOCKET)["ActiveState"] != "active" or host.listener(*release.address) != "systemd":
        # Another address or port: the one change that can't be made without letting go of the old socket.
        systemctl("stop", host.CANDIDATE, host.SERVICE)
        systemctl("restart", host.SOCKET)
    systemctl("restart", host.SERVICE)
    confirm(release)
    retire()
    confirm(release)
    if not all(host.unit(name).get("UnitFileState") == "enabled" for name in host.ENABLED):
        systemctl("enable", *host.ENABLED)


def go_back(before: Release) -> str:
    """Restore what served before, without losing a request, and say how that went."""
    if not before.sha:
        host.POINTER.unlink(missing_ok=True)
        retire()
        systemctl("stop", host.SERVICE, host.SOCKET, check=False)
        systemctl("reset-failed", host.SERVICE, host.SOCKET, check=False)
        return "Nothing served before, so nothing does now."
    host.log(f"going back to {before.sha}")
    retire()
    try:
        prove(before)
    except CutoverError as error:
        # Its proof may fail for what is not its fault, such as a tracker that is down: it served before.
        host.log(f"{before.sha} as a candidate: {error}")
    try:
        switch(before)
    except CutoverError as error:
        return f"And {before.sha}, which served before, does not come back: {error}"
    return f"Went back to {before.sha}, which serves."


def untouched(before: Release) -> str:
    """Say what serves after a failed proof."""
    return f"{before.sha or 'What served'} was not touched." if running() else "Nothing was served before."


def take_back(state: host.State) -> dict[str, Any]:
    """Undo the last cutover of this host: what it switched to is given up, as if it had failed here."""
    previous = Release(state.previous.get("pointer", ""), state.previous.get("units", {}))
    taken = host.pointer().get("SENTRY_RELEASE", "")
    outcome = go_back(previous)
    if taken != previous.sha:
        state.served = [release for release in state.served if release != taken]
        state.abandon(taken, "taken back, since it failed on another host")
    return {"notices": [outcome]}


def confirm(release: Release, timeout: float = 15) -> None:
    """See the release that was asked for answer on the real socket; raise CutoverError when it does not."""
    deadline = time.monotonic() + timeout
    while found := fault(release.labels, running(), host.health(*release.address)):
        if time.monotonic() > deadline or host.unit(host.SERVICE)["ActiveState"] == "failed":
            raise CutoverError(f"{found}\n{host.journal_of(host.SERVICE)}")
        time.sleep(0.05)


def fault(wanted: dict[str, str], found: dict[str, str], health: dict[str, Any]) -> str | None:
    """Say how what serves differs from what was asked for; None when it does not.

    Args:
        wanted: the labels of release.env.
        found: the labels that the main process was started with.
        health: what the real socket answered.
    """
    if difference := differs(wanted, found):
        return f"the running process's {difference}"
    if health["status"] != 200:
        return f"/health says {health['status']}: {health.get('reason', 'no reason given')}"
    answers = {"SENTRY_RELEASE": health.get("release"), "SENTRY_ENVIRONMENT": health.get("environment")}
    for name, answer in answers.items():
        if answer != wanted[name]:
            return f"/health answers {answer} for {name}, not {wanted[name]}"
    return None


def differs(wanted: dict[str, str], found: dict[str, str]) -> str | None:
    """Name the first label that differs; None when none does."""
    for name, value in wanted.items():
        if found.get(name) != value:
            return f"{name} is {found.get(name)}, not {value}"
    return None


def running() -> dict[str, str]:
    """Return the labels of the service's main process; none when it does not run."""
    found: dict[str, str] = host.labels(int(host.unit(host.SERVICE).get("MainPID") or 0))
    return found


def install(units: dict[str, str]) -> None:
    """Write the units that differ, and have systemd read them."""
    changed = [name for name, text in units.items() if host.read(host.UNITS / name) != text]
    for name in changed:
        host.write_atomically(host.UNITS / name, units[name])
    if changed:
        systemctl("daemon-reload")


def retire() -> None:
    """Let the candidate drain and end, whatever state it is in."""
    systemctl("stop", host.CANDIDATE, check=False)
    systemctl("reset-failed", host.CANDIDATE, check=False)
    host.CANDIDATE_POINTER.unlink(missing_ok=True)


def systemctl(verb: str, *names: str, check: bool = True) -> None:
    """Have systemd do something; raise CutoverError with the journal's last lines when it fails."""
    done = host.run("systemctl", verb, *names)
    if done.returncode and check:
        said = next(iter(done.stderr.strip().splitlines()), "no reason given")
        raise CutoverError(f"systemctl {verb} {' '.join(names)}: {said}\n{host.journal_of(names[0]) if names else ''}")


def prune(state: host.State, keep: int) -> list[str]:
    """Remove releases and layers that nobody needs any more; return the releases' names."""
    staged = {path.name: path.stat().st_mtime for path in host.RELEASES.glob("[!.]*")}
    inuse = {host.pointer().get("SENTRY_RELEASE", ""), *host.releases_in_use()}
    removed = removable(staged, state.served, {*state.abandoned}, inuse, keep, time.time())
    for name in removed:
        host.log(f"removing {name}")
        shutil.rmtree(host.RELEASES / name)
    layers = {json.loads(path.read_text()).get("layer") for path in host.RELEASES.glob("*/release.json")}
    for path in host.LAYERS.glob("[!.]*"):
        # One that another deploy has just staged has no release yet.
        if path.name not in layers and path.stat().st_mtime < time.time() - DAY:
            shutil.rmtree(path)
    return removed


DAY = 86400


def removable(
    staged: dict[str, float], served: list[str], abandoned: set[str], inuse: set[str], keep: int, now: float
) -> list[str]:
    """Choose the releases to remove.

    Args:
        staged: when each release was staged, in seconds since 1970.
        served: the releases that were proven, the newest first.
        abandoned: the releases that failed.
        inuse: releases that release.env names or a process runs.
        keep: how many of those that were proven stay.
        now: the time.

    Returns:
        names; never one in use, nor the one to roll back to, nor one that may be on its way to its first proof.
    """
    there = [name for name in served if name in staged]
    kept = {*there[: max(keep, 2)], *inuse}
    fresh = {name for name, at in staged.items() if name not in {*served, *abandoned} and at > now - DAY}
    return sorted(set(staged) - kept - fresh)


if __name__ == "__main__":
    main()
