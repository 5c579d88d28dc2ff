#!/usr/bin/python
"""Make a staged release the one that serves: proven first, without losing a request, and back again if it fails."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import suppress
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
  pointer: {description: The text of release.env., type: str}
  take_back: {description: Or the release that this run switched to and that is taken back., type: str}
  units: {description: The text of each unit by its name., type: dict, default: {}}
  keep: {description: How many releases that served are kept., type: int, default: 5}
  by: {description: Who asks and for what; shown to others while the lock is held., type: str, required: true}
author: [Booty]
"""
EXAMPLES = r"""
- booty_cutover: {pointer: "SENTRY_RELEASE=…", units: {…}, by: me@here}
"""
RETURN = r"""
unsettled:
  description: What is left to do, as booty_info says it; nothing.
  returned: success
  type: str
notices:
  description: What was found that a person should know.
  returned: always
  type: list
"""


class CutoverError(Exception):
    """A step failed; the message says which and why."""


def main() -> None:
    """Cut over, or say what would change."""
    module = AnsibleModule(
        argument_spec={
            "pointer": {"type": "str"},
            "take_back": {"type": "str"},
            "units": {"type": "dict", "default": {}},
            "keep": {"type": "int", "default": 5},
            "by": {"type": "str", "required": True},
        },
        supports_check_mode=True,
        required_one_of=[("pointer", "take_back")],
        mutually_exclusive=[("pointer", "take_back")],
    )
    wanted = host.Release(module.params["pointer"] or "", module.params["units"])
    diff = difference(wanted)
    if module.check_mode:
        module.exit_json(changed=True, diff=diff)
    try:
        taken, keep = module.params["take_back"], module.params["keep"]
        result = host.detached(lambda: take_back(taken) if taken else cut_over(wanted, keep), by=module.params["by"])
    except host.Held as error:
        module.fail_json(msg=str(error))
    if "failed" in result:
        module.fail_json(**result, diff=diff)
    module.exit_json(changed=True, diff=diff, **result)


def difference(wanted: host.Release) -> list[dict[str, str]]:
    """Return what changes on disk, as Ansible shows it."""
    pairs = [(host.UNITS / name, text) for name, text in wanted.units.items()] + [(host.POINTER, wanted.pointer)]
    return [
        {"before": before, "after": after, "before_header": str(path), "after_header": str(path)}
        for path, after in pairs
        if (before := host.read(path)) != after and wanted.pointer
    ]


def cut_over(wanted: host.Release, keep: int) -> dict[str, Any]:
    """Prove, point, restart, retire; go back when that fails.

    Returns:
        the module's result, with `failed` and `msg` when the release does not serve.
    """
    state = host.State.load()
    notices = settle(state)
    before = what_serves(wanted)
    listened = host.unit(host.SOCKET)["ActiveState"] == "active"
    touched = False
    try:
        state.previous = {"pointer": before.pointer, "units": before.units, "served": state.served}
        state.save()
        verify(wanted)
        prove(wanted)
        touched = True
        switch(wanted)
    except Exception as error:  # whatever it was, what served before comes first
        why = str(error) or repr(error)
        host.log(f"failed: {why}")
        outcome = go_back(before) if touched else leave(before, listened)
        with suppress(OSError):
            state.abandon(wanted.sha, why.splitlines()[0])
        return {"failed": True, "msg": f"{wanted.sha} does not serve: {why}\n{outcome}", "notices": notices}
    state.serve(wanted.sha)
    host.log(f"serving {wanted.sha}")
    result = {"unsettled": host.unsettled(wanted), "notices": notices}
    try:
        return {**result, "pruned": prune(state, keep)}
    except (OSError, ValueError) as error:
        return {**result, "unpruned": f"{wanted.sha} serves, but old releases can't be removed: {error}"}


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
    elif labels and host.health(*host.parse_stream(host.read(host.UNITS / host.SOCKET)))["status"] == 200:
        state.serve(labels["SENTRY_RELEASE"])
    for notice in notices:
        host.log(notice)
    return notices


def what_serves(like: host.Release) -> host.Release:
    """Return the release that serves now, or that release.env names; an empty one on a new host."""
    labels = {name: value for name, value in running().items() if name in like.labels} or host.pointer()
    units = {path.name: host.read(path) for path in map(host.UNITS.joinpath, host.ALL_UNITS) if path.exists()}
    text = host.read(host.POINTER)
    if labels and host.parse_assignments(text) != labels:
        header = [line for line in like.pointer.splitlines() if line.startswith("#")]
        text = "\n".join([*header, *(f"{name}={value}" for name, value in labels.items()), ""])
    return host.Release(text, units)


def verify(release: host.Release) -> None:
    """Find what can be known before anything is started."""
    # The units name each other, so they are verified as one set; what is installed was verified before.
    changed = any(host.read(host.UNITS / name) != text for name, text in release.units.items())
    if changed and (faults := host.verify_units(release.units)):
        raise CutoverError(f"systemd finds fault with the units:\n{faults}")
    address, port = release.address
    if host.listener(address, port) == "another program":
        raise CutoverError(f"{address}:{port} is taken by another program. See which: ss -ltnp 'sport = :{port}'")


def prove(release: host.Release) -> None:
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
        if fault := host.differs(release.labels, labels) if labels else "process is gone":
            raise CutoverError(f"the candidate's {fault}\n{host.journal_of(host.CANDIDATE)}")
    except CutoverError:
        retire()
        raise


def switch(release: host.Release) -> None:
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
    if {unit["UnitFileState"] for unit in host.units(*host.ENABLED)} != {"enabled"}:
        systemctl("enable", *host.ENABLED)
    systemctl("restart", host.SERVICE)
    confirm(release)
    retire()
    confirm(release)


def go_back(before: host.Release) -> str:
    """Restore what served before, without losing a request, and say how that went."""
    try:
        if not before.sha:
            host.POINTER.unlink(missing_ok=True)
            systemctl("disable", *host.ENABLED, check=False)
            retire()
            close()
            return "Nothing served before, so nothing does now."
        host.log(f"going back to {before.sha}")
        # The pointer first: whatever happens from here on, it names a release that served.
        install(before.units)
        host.write_atomically(host.POINTER, before.pointer)
        systemctl("reset-failed", host.SERVICE, host.SOCKET, check=False)
        if host.unit(host.CANDIDATE)["ActiveState"] != "active":
            try:
                prove(before)
            except CutoverError as error:
                # Its proof may fail for what is not its fault, such as a tracker that is down: it served before.
                host.log(f"{before.sha} as a candidate: {error}")
        # Else the release that failed as the service still answers as the candidate, while the service restarts.
        switch(before)
    except Exception as error:
        return f"And {before.sha}, which served before, does not come back: {error or repr(error)}"
    return f"Went back to {before.sha}, which serves."


def leave(before: host.Release, listened: bool) -> str:
    """Undo what a failed proof needed, and say what serves."""
    retire()
    if not listened:
        close()
        install(before.units)
    return f"{before.sha or 'What served'} was not touched." if running() else "Nothing was served before."


def close() -> None:
    """Stop serving, and clear what failed."""
    systemctl("stop", host.SERVICE, host.SOCKET, check=False)
    systemctl("reset-failed", host.SERVICE, host.SOCKET, check=False)


def take_back(taken: str) -> dict[str, Any]:
    """Undo this host's last cutover, if that was the one to the release `taken`."""
    state = host.State.load()
    serving = host.pointer().get("SENTRY_RELEASE", "")
    if serving != taken:
        return {"notices": [f"{serving} serves by now, from another deploy: it stays."]}
    outcome = go_back(host.Release(state.previous.get("pointer", ""), state.previous.get("units", {})))
    state.served = state.previous.get("served", [])
    state.abandon(taken, "taken back, since it failed on another host")
    return {"notices": [outcome]}


def confirm(release: host.Release, timeout: float = 15) -> None:
    """See the release that was asked for answer on the real socket; raise CutoverError when it does not."""
    deadline = time.monotonic() + timeout
    while found := host.fault(release, running(), host.health(*release.address)):
        service = host.unit(host.SERVICE)
        # A first restart is enough: a crash loop would end in a failed socket as well.
        if time.monotonic() > deadline or service["ActiveState"] == "failed" or service["NRestarts"] != "0":
            raise CutoverError(f"{found}\n{host.journal_of(host.SERVICE)}")
        time.sleep(0.05)


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
    now = time.time()
    staged = {path.name: path.stat().st_mtime for path in host.RELEASES.glob("[!.]*")}
    inuse = {host.pointer().get("SENTRY_RELEASE", ""), *host.releases_in_use()}
    removed = removable(staged, state.served, {*state.abandoned}, inuse, keep, now)
    for name in removed:
        host.log(f"removing {name}")
        host.remove(host.RELEASES / name)
    layers = {json.loads(path.read_text())["layer"] for path in host.RELEASES.glob("*/release.json")}
    for path in host.LAYERS.glob("[!.]*"):
        # One that another deploy has just staged has no release yet.
        if path.name not in layers and path.stat().st_mtime < now - DAY:
            host.remove(path)
    for path in (*host.RELEASES.glob(".*"), *host.LAYERS.glob(".*")):  # what a killed run left
        if path.stat().st_mtime < now - DAY:
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
