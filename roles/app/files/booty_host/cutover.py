"""Make a staged release the one that serves: proven first, without losing a request, and back again if it fails."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from booty_host import host, stage
from booty_host.controller import Controller


class CutoverError(Exception):
    """A step failed; the message says which and why."""


def cutover(
    pointer: str,
    units: dict[str, str],
    keep: int,
    by: str,
    run: str,
    wait: int,
    over_ssh: bool,
    dest: str,
    sha256: str,
    seen: dict[str, str],
    goes_back: bool,
    check: bool,
) -> dict[str, Any]:
    """Make a release the one that serves.

    It starts as a candidate beside the one that serves, on the same sockets. Only when it is ready are the units and
    release.env replaced and the service restarted, while the candidate answers; then the candidate retires. A failure
    before release.env is replaced leaves what serves untouched; a failure after it goes back. The steps run in a
    process of their own, which holds the host's deploy lock. When the controller is gone it ends what it has begun, but
    it does not begin what nobody could take back.

    Args:
        pointer: the text of release.env.
        units: the text of each unit by its name.
        keep: how many releases that served are kept.
        by: who asks and for what; shown to others while the lock is held.
        run: the run of the playbook that asks; it alone can take back what it did.
        wait: how long to wait for somebody else's lock, in seconds.
        over_ssh: whether the call came over SSH.
        dest: where the release that came along is staged first; none when it is there.
        sha256: the digest of its archive.
        seen: what `info` answered as `seen` when the release was judged; a host that changed since then is left alone.
        goes_back: whether this is a rollback, which a tracker that accepts no event does not stop.
        check: only say what would change.

    Returns:
        `notices`, what was found that a person should know; `unpruned`, why old releases can't be removed; or `failed`
        and `msg`, with `seen` anew when the host has changed.

    Raises:
        host.HostError: the release that came along can't be staged, or somebody else holds the lock.
    """
    wanted = host.Release(pointer, units)
    result = {"changed": True, "diff": difference(wanted)}
    if check:
        return result
    if dest:
        stage.stage(dest, sha256, archive="", url="", check=False)
    controller = Controller(over_ssh)

    def work() -> dict[str, Any]:
        return changed_since(seen, wanted.sha, by) or cut_over(wanted, keep, by, run, controller, goes_back)

    return {**result, **host.detached(work, by, wait)}


def difference(wanted: host.Release) -> list[dict[str, str]]:
    """Return what changes on disk, as Ansible shows it."""
    pairs = [(host.UNITS / name, text) for name, text in wanted.units.items()] + [(host.POINTER, wanted.pointer)]
    return [
        {"before": before, "after": after, "before_header": str(path), "after_header": str(path)}
        for path, after in pairs
        if (before := host.read(path)) != after
    ]


def changed_since(seen: dict[str, str], release: str, by: str) -> dict[str, Any]:
    """Refuse the cutover if the host changed since the release was judged; return nothing if it did not.

    Args:
        seen: what `info` answered.
        release: the one that was to serve.
        by: who asks and for what.
    """
    now = host.seen()
    # A reboot clears the note.
    if now["pointer"] == seen["pointer"] and now["last"] in {"", seen["last"]}:
        return {}
    serving = now["release"] or "Nothing"
    last = f"the last one: {now['last']}" if now["last"] != seen["last"] else "release.env was changed by hand"
    why = (
        f"{release} does not serve: another run was here since this one asked ({last}). {serving} serves, and was not"
        " touched. Deploy the one that all hosts are to serve: ansible-playbook deploy.yml -e app_release=<sha>"
    )
    host.log(why, result="refused", release=release, **{"from": serving}, by=by)
    return {"failed": True, "changed": False, "state": "not switched", "msg": why, "seen": now}


def cut_over(
    wanted: host.Release, keep: int, by: str, run: str, controller: Controller, goes_back: bool
) -> dict[str, Any]:
    """Prove, point, restart, retire; go back when that fails, and stop before the point when the controller is gone.

    Returns:
        what `cutover` answers, with `failed` and `msg` when the release does not serve.
    """
    began = time.monotonic()
    state = host.State.load()
    socket, service, candidate = host.units(host.SOCKET, host.SERVICE, host.CANDIDATE)
    labels = host.labels(int(service["MainPID"]))
    notices = settle(state, labels, candidate["ActiveState"])
    before = what_serves(wanted, labels)

    def record(message: str, result: str) -> None:
        seconds = f"{time.monotonic() - began:.2f}"
        host.log(message, result=result, release=wanted.sha, **{"from": before.sha}, by=by, seconds=seconds)

    touched = False
    try:
        state.previous = {"run": run, "pointer": before.pointer, "units": before.units, "served": state.served}
        state.save()
        verify(wanted)
        try:
            prove(wanted, socket, candidate)
        except CutoverError as error:
            if not goes_back or GATED not in wanted.units[host.CANDIDATE]:
                raise
            prove_without_tracker(wanted)
            notices.append(without_tracker(wanted.sha, str(error)))
        # After a rollback no host goes the other way, so it needs no controller.
        if not goes_back and controller.gone():
            raise CutoverError("it is proven, but the controller is gone: nobody could take it back with its wave")
        touched = True
        host.note(by)
        if closed := switch(wanted):
            notices.append(closed)
    except Exception as error:  # whatever it was, what served before comes first
        why = str(error) or repr(error)
        host.log(f"failed: {why}")
        outcome = go_back(before) if touched else leave(before, socket["ActiveState"] == "active")
        with suppress(OSError):
            state.abandon(wanted.sha, why.splitlines()[0])
        ended = "went back" if touched else "not switched"
        record(f"{wanted.sha} does not serve. {outcome}", ended)
        return {
            "failed": True,
            "state": ended,
            "msg": f"{wanted.sha} does not serve: {why}\n{outcome}",
            "notices": notices,
        }
    # The release serves. From here on nothing is a reason to fail, or to take back others.
    with unsaved(notices):
        state.serve(wanted.sha)
    record(f"serving {wanted.sha}", "switched")
    result: dict[str, Any] = {"state": "switched", "notices": notices}
    try:
        result["pruned"], failures = prune(state, keep)
    except Exception as error:
        failures = [repr(error)]
    if failures:
        result["unpruned"] = f"But old releases can't be removed: {'; '.join(failures)}. Remove them by hand."
        notices.append(result["unpruned"])
        host.log(notices[-1])
    return result


@contextmanager
def unsaved(notices: list[str]) -> Iterator[None]:
    """Turn a failure to write state.json into a notice: the next deploy of the host writes it."""
    try:
        yield
    except OSError as error:
        notices.append(f"But {host.STATE} can't be written: {error}. Make room there; the next deploy writes it.")
        host.log(notices[-1])


# In the candidate's unit: it is ready once its tracker has accepted an event.
GATED = "BOOTY_TELEMETRY_GATE=true"


def prove_without_tracker(release: host.Release) -> None:
    """Prove a release once more, without an event that its tracker has to accept."""
    unit = release.units[host.CANDIDATE].replace(GATED, GATED.replace("true", "false"))
    prove(
        host.Release(release.pointer, {**release.units, host.CANDIDATE: unit}), *host.units(host.SOCKET, host.CANDIDATE)
    )


def without_tracker(sha: str, why: str) -> str:
    """Return the notice that a release serves without an event that was accepted, with the journal's line of why."""
    lines = [line.strip() for line in why.splitlines() if "tracker" in line]
    return f"{sha} goes back all the same, although its tracker did not accept an event: {(lines or [why])[0]}"


def settle(state: host.State, labels: dict[str, str], candidate: str) -> list[str]:
    """Clear what an interrupted cutover left, and return what was found, for a person to read.

    Args:
        state: what the host remembers.
        labels: those of the service's process.
        candidate: the state of the candidate's unit.
    """
    notices = []
    if candidate not in {"inactive", "failed"}:
        notices.append(f"An interrupted deploy had left {host.CANDIDATE} running; it is stopped.")
        retire()
    pointer = host.pointer()
    if labels and labels.get("SENTRY_RELEASE") != pointer.get("SENTRY_RELEASE"):
        notices.append(
            f"An interrupted deploy had left release.env at {pointer.get('SENTRY_RELEASE')},"
            f" while {labels.get('SENTRY_RELEASE')} runs."
        )
    elif labels and host.installed_health()["status"] == 200:
        with suppress(OSError):  # the cutover writes it next, and fails in words if it can't
            state.serve(labels["SENTRY_RELEASE"])
    for notice in notices:
        host.log(notice)
    return notices


def what_serves(like: host.Release, labels: dict[str, str]) -> host.Release:
    """Return the release that serves now, as its process's labels say, or that release.env names; none at first."""
    labels = {name: value for name, value in labels.items() if name in like.labels} or host.pointer()
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
    if taken := host.takers(address, port):
        raise CutoverError(f"{address}:{port} is taken: {taken}. Stop that, or choose another app_port.")


def prove(release: host.Release, socket: dict[str, str], candidate: dict[str, str]) -> None:
    """Start a release as a candidate beside what serves; it is ready when it has checked itself.

    Args:
        release: the one on trial.
        socket: what systemd says of the sockets' unit.
        candidate: likewise, of the candidate's.
    """
    if socket["ActiveState"] != "active":
        # Nothing is served, so there is nothing to lose: the candidate needs the sockets.
        install(release.units)
        systemctl("reset-failed", host.SERVICE, host.SOCKET, check=False)
        systemctl("start", host.SOCKET)
    host.write_atomically(host.CANDIDATE_POINTER, release.pointer)
    install({name: text for name, text in release.units.items() if name == host.CANDIDATE})
    host.log(f"proving {release.sha}")
    if candidate["ActiveState"] == "failed":
        systemctl("reset-failed", host.CANDIDATE)
    try:
        systemctl("start", host.CANDIDATE)
        labels = host.labels(int(host.unit(host.CANDIDATE)["MainPID"]))
        if fault := host.differs(release.labels, labels) if labels else "process is gone":
            raise CutoverError(f"the candidate's {fault}\n{host.journal_of(host.CANDIDATE)}")
    except CutoverError:
        retire()
        raise


def switch(release: host.Release) -> str:
    """Point to a proven release and restart the service while the candidate answers; then let that one go.

    Returns:
        what a person should know of sockets that had to be opened anew; nothing when they stayed open.
    """
    install(release.units)
    point(release)
    socket, service = told = host.units(*host.ENABLED)
    if "yes" in {socket["NeedDaemonReload"], service["NeedDaemonReload"]}:
        systemctl("daemon-reload")  # somebody else's change: a drop-in, usually
    # A crash loop leaves both of them failed, and a failed socket refuses to start; the count of starts goes as well.
    systemctl("reset-failed", *host.ENABLED, check=False)
    closed = ""
    changed = host.socket_options(host.opened(socket)) ^ host.socket_options(release.units[host.SOCKET])
    if socket["ActiveState"] != "active" or changed:
        # Another address, port or option: systemd can't change a socket that is open.
        began = time.monotonic()
        systemctl("stop", host.CANDIDATE, host.SERVICE, host.SOCKET)
        systemctl("start", host.SOCKET)
        if changed:
            closed = (
                f"{host.SOCKET} changed in {', '.join(sorted(changed))}: its sockets were opened anew, and for"
                f" {time.monotonic() - began:.1f} s connections waited or were refused."
            )
            host.log(closed)
    if {unit["UnitFileState"] for unit in told} != {"enabled"}:
        systemctl("enable", *host.ENABLED)
    systemctl("restart", host.SERVICE)
    confirm(release)
    retire()
    # Once more: until then, it may have been the candidate that answered.
    confirm(release, settled=True)
    return closed


def point(release: host.Release) -> None:
    """Have release.env name a release. A file that is right is not written, so that a full disk stops no way back."""
    if host.read(host.POINTER) != release.pointer:
        host.write_atomically(host.POINTER, release.pointer)
    host.log(f"pointing to {release.sha}")


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
        point(before)
        systemctl("reset-failed", host.SERVICE, host.SOCKET, check=False)
        socket, candidate = host.units(host.SOCKET, host.CANDIDATE)
        if candidate["ActiveState"] != "active":
            try:
                prove(before, socket, candidate)
            except (CutoverError, OSError) as error:
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


def take_back(release: str, by: str, run: str, wait: int, check: bool) -> dict[str, Any]:
    """Undo this host's last cutover, if that was this run's, to `release`; the other arguments are those of `cutover`.

    Returns:
        `notices`, which say where the host went back to.
    """
    return {"changed": not check, **({} if check else host.detached(lambda: undo(release, by, run), by, wait))}


def undo(release: str, by: str, run: str) -> dict[str, Any]:
    """Go back to what the last cutover replaced, if that was this run's, to `release`."""
    began = time.monotonic()
    state = host.State.load()
    serving = host.pointer().get("SENTRY_RELEASE", "")
    if serving != release or state.previous.get("run") != run:
        return {"notices": [f"{serving or 'Nothing'} serves, and not by this run: it stays."]}
    before = host.Release(state.previous.get("pointer", ""), state.previous.get("units", {}))
    host.note(by)
    notices = [go_back(before)]
    state.served = state.previous.get("served", [])
    with unsaved(notices):
        state.abandon(release, "taken back, since it failed on another host")
    seconds = f"{time.monotonic() - began:.2f}"
    host.log(notices[0], result="taken back", release=before.sha, **{"from": release}, by=by, seconds=seconds)
    return {"state": "taken back", "notices": notices}


def confirm(release: host.Release, settled: bool = False, timeout: float = 15) -> None:
    """See the release that was asked for answer on the real socket; raise CutoverError when it does not.

    Args:
        release: the one that was asked for.
        settled: whether nothing may be left to do by now.
        timeout: seconds.
    """
    deadline = time.monotonic() + timeout
    while found := (
        host.unsettled(release) if settled else host.fault(release, running(), host.health(*release.address))
    ):
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
    if host.SOCKET in changed:
        host.keep_opened()
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


def prune(state: host.State, keep: int) -> tuple[list[str], list[str]]:
    """Remove releases and layers that nobody needs any more; return the releases' names, and why some are left."""
    now, removed, failures = time.time(), [], []

    def attempt(remove: Callable[[Path], Any], path: Path) -> bool:
        try:
            remove(path)
        except OSError as error:  # the others can go all the same
            failures.append(f"{path}: {error.strerror or error}")
            return False
        return True

    # What a killed run left: directories that are half-made or half-removed, and archives that did not arrive whole,
    # some of them in the directory that Ansible's copy makes in the login's home. Read first: a release whose removal
    # fails below gets such a name too.
    arriving = (*host.INCOMING.glob("*"), *host.login_home().glob(".ansible/tmp/ansible-tmp-*"))
    leftovers = (*host.RELEASES.glob(".*"), *host.LAYERS.glob(".*"), *arriving)
    staged = {path.name: path.stat().st_mtime for path in host.directories(host.RELEASES)}
    inuse = {host.pointer().get("SENTRY_RELEASE", ""), *host.releases_in_use()}
    for name in removable(staged, state.served, {*state.abandoned}, inuse, keep, now):
        host.log(f"removing {name}")
        if attempt(host.remove, host.RELEASES / name):
            removed.append(name)
    attempt(lambda _: state.forget(set(staged) - {*removed}), host.STATE)
    manifests = [host.manifest(path) for path in host.directories(host.RELEASES)]
    needed = {layer for manifest in manifests for layer in host.layers_of(manifest)}
    # A release whose manifest is damaged does not say which layers it needs: then all of them stay.
    for path in host.directories(host.LAYERS) if all(manifests) else []:
        # A layer that another deploy has just staged has no release yet.
        if path.name not in needed and path.stat().st_mtime < now - DAY:
            attempt(host.remove, path)
    for path in leftovers:
        if path.lstat().st_mtime < now - DAY:
            if path.is_dir() and not path.is_symlink():
                attempt(shutil.rmtree, path)
            elif path in arriving:
                attempt(Path.unlink, path)
    return removed, failures


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
