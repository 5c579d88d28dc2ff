"""Switch an app on a host to a staged release: prove the release first, lose no request, go back if a step fails."""

from __future__ import annotations

import pkgutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from booty_host import HostError, config, journal, lease, programs, sockets, stage, static
from booty_host.app import App
from booty_host.controller import Controller
from booty_host.files import parse_pointer, read, write_atomically
from booty_host.handover import Handover, LostError, RefusedError, obstacles
from booty_host.processes import labels
from booty_host.programs import Programs
from booty_host.prune import prune
from booty_host.release import (
    Release,
    ask_installed,
    ask_itself,
    differs,
    fault,
    labels_on_disk,
    manifest,
    question,
    unsettled,
)
from booty_host.state import State
from booty_host.systemd import Systemd

# A line of the candidate's unit: the candidate is ready once its tracker has accepted an event.
GATED = "BOOTY_TELEMETRY_GATE=true"
# A release from this number on tells the proxy's socket apart from the internal one; see `contract` in its manifest.
SERVES_PROXY = 3
# How many times in a row the service must answer once nothing else is left that could.
ANSWERS = 5
NO_HEALTH_PATH = (
    "No health path is set, so any answer of GET / below 500 counts as healthy, which proves little. Name a path that"
    " checks what the app needs: app_health_path"
)


def cutover(
    app: App,
    pointer: str,
    units: dict[str, str],
    keep: int,
    keep_assets: int,
    by: str,
    run: str,
    wait: int,
    over_ssh: bool,
    dest: str,
    sha256: str,
    files: dict[str, str],
    user: str,
    seen: dict[str, str],
    goes_back: bool,
    commands: list[dict[str, Any]],
    places: dict[str, str],
    host: str,
    process_seconds: int,
    restart: bool,
    check: bool,
) -> dict[str, Any]:
    """Switch to a release.

    The release starts as a candidate beside the service, on the same sockets. Once it is ready, the old process pauses
    while the candidate answers on the real socket. Then the units and release.env are replaced, the candidate becomes
    the service's main process, and the old one drains. If no handover is possible (see `handover.obstacles`), the
    service restarts while the candidate answers, and the candidate retires. Then the processes and timers follow. A
    failure of the candidate leaves the service untouched; a later failure goes back. A service that is in order is left
    alone. The steps run in a process of their own, which holds the app's deploy lock. If the controller dies, that
    process ends the step that it has begun, but it begins no switch, because no controller could take the switch back.

    Args:
        app: the app.
        pointer: the text of release.env.
        units: the text of each unit by its name.
        keep: how many releases that served are kept.
        keep_assets: how many releases before the running one the proxy has static files of.
        by: who asks and for what; other runs show it while the lock is held.
        run: the run of the playbook that asks; only the same run can take the cutover back.
        wait: how long to wait for another run's lock, in seconds.
        over_ssh: whether the call came over SSH.
        dest: where the release that came with the call is staged first; "" if it is on the host.
        sha256: the digest of its archive.
        files: the files of app_config_dir, as `config.stage` takes them.
        user: the service's user, whose group may read these files.
        seen: `seen` in the answer of `info` when the release was judged; if the host has changed since, the cutover is
            refused.
        goes_back: whether this is a rollback, which goes on if the tracker accepts no event.
        commands: the records of the commands that ran on other hosts, as in `State.commands`.
        places: the host of each process and timer with one_host, by name.
        host: this host's name there.
        process_seconds: how long a new process must stay up.
        restart: whether the service and the processes restart although they are in order.
        check: only return what would change.

    Returns:
        `pid` of the process that serves; `notices` for a person to read; `warnings`, which are the same on all hosts;
        `unpruned`, why old releases can't be removed; or `failed` and `msg`, with `seen` anew if the host has changed.

    Raises:
        HostError: the release that came with the call can't be staged, or another run holds the lock.
    """
    release = Release(app, pointer, units)
    result = {"changed": True, "diff": [*difference(release), *config.difference(app, release.labels, files)]}
    if check:
        return result
    if dest:
        stage.stage(app, dest, sha256, archive="", url="", check=False)
    controller, steps = Controller(over_ssh), Cutover(app, Systemd(app))

    def work() -> dict[str, Any]:
        if commands:
            state = State.load(app)
            state.note(commands)
            state.save()
        if refusal := changed_since(app, seen, release.sha, by, run):
            return refusal
        config.stage(app, release.labels, files, user)
        # history.yml takes a cutover without a result for one that was cut off.
        fields = {"release": release.sha, "from": seen["release"], "by": by, "run": run}
        journal.log(app, f"the cutover to {release.sha} begins", **fields)
        by_name = programs.places_of(places, host)
        return steps.cut_over(
            release, keep, keep_assets, by, run, controller, goes_back, by_name, process_seconds, restart=restart
        )

    return {**result, **lease.detached(app, work, by, wait)}


def take_back(app: App, release: str, by: str, run: str, wait: int, refuse: str, check: bool) -> dict[str, Any]:
    """Undo the last cutover, to `release`, if the same run made it; the other arguments are those of `cutover`.

    With `refuse`, the result of the watch that found the release bad, the host refuses the release from now on.

    Returns:
        `notices`, which name the release that the host went back to.
    """
    if check:
        return {"changed": False}
    steps = Cutover(app, Systemd(app))
    return {"changed": True, **lease.detached(app, lambda: steps.undo(release, by, run, refuse), by, wait)}


def difference(release: Release) -> list[dict[str, str]]:
    """Return what changes on disk, as Ansible shows it."""
    app = release.app
    units = {**dict.fromkeys(programs.on_disk(app), ""), **release.units}
    pairs = [(app.unit_files / name, text) for name, text in units.items()] + [(app.release_env, release.env)]
    return [
        {"before": before, "after": after, "before_header": str(path), "after_header": str(path)}
        for path, after in pairs
        if (before := read(path)) != after
    ]


def changed_since(app: App, seen: dict[str, str], release: str, by: str, run: str) -> dict[str, Any]:
    """Refuse the cutover if the host changed since the release was judged; return {} if it did not.

    Args:
        app: the app.
        seen: `seen` in the answer of `info`.
        release: the release to serve.
        by: who asks and for what.
        run: the run of the playbook that asks.
    """
    now = lease.seen(app)
    # A reboot clears the note.
    if now["pointer"] == seen["pointer"] and now["last"] in {"", seen["last"]}:
        return {}
    serving = now["release"] or "Nothing"
    last = f"the last one: {now['last']}" if now["last"] != seen["last"] else "release.env was changed by hand"
    reason = (
        f"{release} does not serve: another run was here since this one asked ({last}). {serving} serves, and was not"
        " touched. Deploy the one that all hosts are to serve: ansible-playbook deploy.yml -e app_release=<sha>"
    )
    journal.log(app, reason, result="refused", release=release, **{"from": serving}, by=by, run=run)
    return {"failed": True, "changed": False, "state": "not switched", "msg": reason, "seen": now}


@contextmanager
def unsaved(app: App, notices: list[str]) -> Iterator[None]:
    """Turn a failure to write state.json into a notice: the next deploy of the host writes it."""
    try:
        yield
    except OSError as error:
        notices.append(f"But {app.state} can't be written: {error}. Make room there; the next deploy writes it.")
        journal.log(app, notices[-1])


def without_tracker(sha: str, reason: str) -> str:
    """Return the notice that a release serves although its tracker accepted no event, with the journal's line on it."""
    lines = [line.strip() for line in reason.splitlines() if "tracker" in line]
    return f"{sha} goes back all the same, although its tracker did not accept an event: {(lines or [reason])[0]}"


def ran_before(state: State, serving: str, release: str) -> str:
    """Return the sentence that the release command of a failed release ran; "" if it has none."""
    commands = [command for entry in state.between(serving, release) for command in entry["command"]]
    return f" The release command of {release} has run, and its changes stay: {'; '.join(commands)}" if commands else ""


class Cutover:
    """The steps of an app's cutover, and of the way back."""

    def __init__(self, app: App, systemd: Systemd) -> None:
        self.app, self.systemd = app, systemd
        self.programs = Programs(app, systemd)

    def cut_over(
        self,
        release: Release,
        keep: int,
        keep_assets: int,
        by: str,
        run: str,
        controller: Controller,
        goes_back: bool,
        places: dict[str, dict[str, Any]],
        process_seconds: float,
        *,
        restart: bool,
    ) -> dict[str, Any]:
        """Prove and switch; go back if the switch fails, and do not begin it if the controller is gone.

        The arguments are those of `cutover`; `places` is as in `State.places`.

        Returns:
            the answer of `cutover`, with `failed` and `msg` if the release does not serve.
        """
        app = self.app
        began = time.monotonic()
        state = State.load(app)
        socket, service, candidate = self.systemd.units(app.socket, app.service, app.candidate)
        running = labels(app, pid := int(service["MainPID"]))
        notices = self.settle(state, pid, candidate["ActiveState"])
        before = self.serving(state, running)

        def record(message: str, result: str) -> None:
            fields = {"release": release.sha, "from": before.sha, "by": by, "run": run}
            journal.log(app, message, result=result, seconds=f"{time.monotonic() - began:.2f}", **fields)

        touched, due = False, True
        try:
            state.previous = {
                "run": run,
                "pointer": before.env,
                "units": before.units,
                "served": state.served,
                "places": state.places,
            }
            state.save()
            self.verify(release, socket)
            restarts = next(obstacles(app, self.systemd, release), "")
            if due := restart or bool(unsettled(app, self.systemd, release)):
                notices += self.try_out(release, socket, candidate, goes_back)
            # If a rollback fails, the other hosts do not return to the newer release; so it needs no controller.
            if not goes_back and controller.gone():
                raise HostError("it is proven, but the controller is gone: nobody could take it back with its wave")
            touched = True
            lease.note(app, by)
            if due and (reopened := self.switch(release, restarts) if restarts else self.hand_over(release)):
                notices.append(reopened)
            self.follow(release, state, places, process_seconds, restart)
        except Exception as error:  # whatever failed, the release that served before must go on
            reason = str(error) or repr(error)
            journal.log(app, f"failed: {reason}")
            state.places = state.previous["places"]
            outcome = (
                self.go_back(before, state.here) if touched else self.leave(before, socket["ActiveState"] == "active")
            )
            with suppress(OSError):
                state.save()
                state.abandon(release.sha, reason.splitlines()[0])
            end = "went back" if touched else "not switched"
            does = "does not serve" if due else "serves, but its processes do not follow"
            record(f"{release.sha} {does}. {outcome}", end)
            return {
                "failed": True,
                "state": end,
                "msg": f"{release.sha} {does}: {reason}\n{outcome}{ran_before(state, before.sha, release.sha)}",
                "notices": notices,
            }
        # The release serves. A failure after this point must not fail the run, which would take back other hosts.
        with unsaved(app, notices):
            state.serve(release.sha, release.env)
        record(f"serving {release.sha}", "switched")
        pid = int(self.systemd.unit(app.service)["MainPID"])
        result: dict[str, Any] = {
            "state": "switched",
            "pid": pid,
            "notices": notices,
            "warnings": [NO_HEALTH_PATH] if (asked := question(app, pid)) and not asked[0] else [],
        }
        try:
            result["pruned"], failures = prune(app, self.systemd, state, keep, keep_assets)
        except Exception as error:
            failures = [repr(error)]
        if failures:
            result["unpruned"] = f"But old releases can't be removed: {'; '.join(failures)}. Remove them by hand."
            notices.append(result["unpruned"])
            journal.log(app, notices[-1])
        return result

    def follow(
        self, release: Release, state: State, places: dict[str, dict[str, Any]], seconds: float, restart: bool
    ) -> None:
        """Bring the processes and timers to a release; the arguments are those of `cut_over`."""
        self.install(release.units)
        if {**state.places, **places} != state.places:
            # Before a process starts, so that a run that is killed leaves none that the host does not know of.
            state.places = {**state.places, **places}
            state.save()
        self.programs.follow(release, state.here, seconds, restart)

    def settle(self, state: State, pid: int, candidate: str) -> list[str]:
        """Clear what an interrupted cutover left, and return notices of it.

        Args:
            state: the host's record of releases.
            pid: the main process of the service.
            candidate: the state of the candidate's unit.
        """
        running = labels(self.app, pid)
        notices = []
        if candidate not in {"inactive", "failed"} or self.app.handover.exists():
            notices.append(f"An interrupted deploy had left {self.app.candidate} running; it is stopped.")
            self.retire()
        on_disk = labels_on_disk(self.app).get("SENTRY_RELEASE")
        if running and running.get("SENTRY_RELEASE") != on_disk:
            notices.append(
                f"An interrupted deploy had left release.env at {on_disk}, while {running.get('SENTRY_RELEASE')} runs."
            )
        elif running and not ask_installed(self.app, pid)["reason"]:
            with suppress(OSError):  # the cutover writes the file next, and reports the failure
                state.serve(running["SENTRY_RELEASE"])
        for notice in notices:
            journal.log(self.app, notice)
        return notices

    def serving(self, state: State, running: dict[str, str]) -> Release:
        """Return the release that serves; an empty one at first.

        Its release.env is the installed one, unless the process was started with one that this host has recorded. The
        process's own labels only choose among these texts: an app can change its environment, and root reads the file.

        Args:
            state: the host's record of releases.
            running: the labels of the service's process.
        """
        app = self.app
        named = {name: value for name, value in running.items() if name != "BOOTY_UNIT"}
        units = {path.name: read(path) for path in map(app.unit_files.joinpath, app.units) if path.exists()}
        units |= programs.on_disk(app)
        texts = (read(app.release_env), state.pointer, state.previous.get("pointer", ""))
        return Release(app, next((text for text in texts if parse_pointer(text) == named), texts[0]), units)

    def verify(self, release: Release, socket: dict[str, str]) -> None:
        """Find faults before anything starts; `socket` is the state of the socket unit."""
        # The units name each other, so they are verified as one set. Installed units were verified before.
        changed = any(read(self.app.unit_files / name) != text for name, text in release.units.items())
        if changed and (faults := self.systemd.verify(release.units)):
            raise HostError(f"systemd finds fault with the units:\n{faults}")
        contract = int(manifest(self.app.releases / release.sha).get("contract", 1))
        if sentences := programs.problems(self.app, release):
            raise HostError("\n".join(sentences))
        if self.app.http_socket in release.units and contract < SERVES_PROXY:
            raise HostError(
                f"{release.sha} was built by a Booty that had no proxy (contract {contract}), and would answer the"
                " proxy with its internal app. Deploy a commit that is built anew, or remove app_domains."
            )
        address, port = release.address
        if takers := sockets.in_the_way(self.app, socket, release.units[self.app.socket]):
            raise HostError(f"{address}:{port} is taken: {takers}. Stop that, or choose another app_port.")

    def prove(self, release: Release, socket: dict[str, str], candidate: dict[str, str]) -> None:
        """Start a release as a candidate beside the service. systemd reports it started when it has checked itself.

        Args:
            release: the release to prove.
            socket: the state of the socket unit.
            candidate: the state of the candidate's unit.
        """
        app, systemctl = self.app, self.systemd.systemctl
        if app.http_socket in release.units:
            static.offer(app, release.sha)
        if socket["ActiveState"] != "active":
            # The candidate needs the sockets, and nothing serves that their units could disturb.
            self.install(release.units)
            systemctl("reset-failed", app.service, app.socket, check=False)
            systemctl("start", app.socket)
        write_atomically(app.candidate_env, release.env)
        write_atomically(app.settle, (pkgutil.get_data(__package__, "settle.sh") or b"").decode())
        self.install({name: text for name, text in release.units.items() if name == app.candidate})
        journal.log(app, f"proving {release.sha}")
        if candidate["ActiveState"] == "failed":
            systemctl("reset-failed", app.candidate)
        try:
            systemctl("start", app.candidate)
            running = self.systemd.labels(app.candidate)
            if difference := differs(release.labels, running) if running else "process is gone":
                raise HostError(f"the candidate's {difference}\n{self.systemd.journal(app.candidate)}")
        except HostError:
            self.retire()
            raise

    def try_out(
        self, release: Release, socket: dict[str, str], candidate: dict[str, str], goes_back: bool
    ) -> list[str]:
        """Prove a release, a rollback's without a tracker if need be; return notices. For the arguments see `prove`."""
        try:
            self.prove(release, socket, candidate)
        except HostError as error:
            if not goes_back or GATED not in release.units[self.app.candidate]:
                raise
            self.prove_without_tracker(release)
            return [without_tracker(release.sha, str(error))]
        return []

    def prove_without_tracker(self, release: Release) -> None:
        """Prove a release once more, with a candidate whose tracker need not accept an event."""
        unit = release.units[self.app.candidate].replace(GATED, GATED.replace("true", "false"))
        ungated = Release(self.app, release.env, {**release.units, self.app.candidate: unit})
        self.prove(ungated, *self.systemd.units(self.app.socket, self.app.candidate))

    def hand_over(self, release: Release) -> str:
        """Make the candidate's process the service; restart the service instead if systemd refuses that.

        Returns:
            a notice as `switch` does; "" after a handover.
        """
        app = self.app
        try:
            handover = Handover(app, self.systemd)
            handover.begin()
        except RefusedError as error:
            return self.switch(release, str(error))
        journal.log(app, f"handing over to {release.sha}, process {handover.new}")
        try:
            handover.confirm(release, timeout=2 if handover.pause() else 15)
            self.install(release.units)
            self.systemd.systemctl("reset-failed", *app.enabled, check=False)
            self.point(release)
            handover.complete()
        except LostError as error:
            # The release is proven, and no process of the one before may keep it from serving.
            return self.switch(release, str(error))
        # systemd settles the handover when the candidate's unit stops.
        self.retire()
        self.confirm(release, settled=True)
        return ""

    def switch(self, release: Release, reason: str) -> str:
        """Replace release.env and restart the service while the candidate answers; then retire the candidate.

        Args:
            release: the one to serve.
            reason: why the service restarts, for the journal.

        Returns:
            a notice if the sockets had to be opened anew; "" if they stayed open.
        """
        app, systemctl = self.app, self.systemd.systemctl
        journal.log(app, f"restarting: {reason}")
        if app.http_socket in release.units:
            # No older release may start with the proxy's socket, so release.env names this one before the units change.
            self.point(release)
        self.open_http(release.units)
        self.install(release.units)
        self.point(release)
        socket, service = states = self.systemd.units(*app.enabled)
        if "yes" in {socket["NeedDaemonReload"], service["NeedDaemonReload"]}:
            systemctl("daemon-reload")  # a person or a program has changed a unit, usually by a drop-in
        # A crash loop fails both units, and a failed socket unit refuses to start. This resets the restarts' count too.
        systemctl("reset-failed", *app.enabled, check=False)
        notice = ""
        changed = sockets.options(sockets.opened(app, socket)) ^ sockets.options(release.units[app.socket])
        if socket["ActiveState"] != "active" or changed:
            # systemd can't change the address, the port or an option of a socket that is open.
            began = time.monotonic()
            systemctl("stop", app.candidate, app.service, app.socket)
            systemctl("start", app.socket)
            if changed:
                notice = (
                    f"{app.socket} changed in {', '.join(sorted(changed))}: its sockets were opened anew, and for"
                    f" {time.monotonic() - began:.1f} s connections waited or were refused."
                )
                journal.log(app, notice)
        if {state["UnitFileState"] for state in states} != {"enabled"}:
            systemctl("enable", *app.enabled)
        if app.http_socket in release.units:
            # systemd opens a socket only while its service does not run. The candidate answers meanwhile.
            systemctl("stop", app.service)
        self.open_http(release.units)
        systemctl("restart", app.service)
        self.confirm(release)
        self.retire()
        # Once more: the candidate may have answered the first time.
        self.confirm(release, settled=True)
        return notice

    def point(self, release: Release) -> None:
        """Have release.env name a release. An equal file is not written, so that a full disk stops no way back."""
        if read(self.app.release_env) != release.env:
            write_atomically(self.app.release_env, release.env)
        if self.app.http_socket in release.units:
            try:
                static.show(self.app, release.sha)
            except OSError as error:  # `unsettled` finds it, and it must not stop a way back
                journal.log(self.app, f"the static files of {release.sha} can't be shown: {error}")
        journal.log(self.app, f"pointing to {release.sha}")

    def confirm(self, release: Release, settled: bool = False, timeout: float = 15) -> None:
        """Wait until a release answers on the real socket; raise HostError if it does not.

        Args:
            release: the one that should answer.
            settled: whether nothing may be left to change either.
            timeout: in seconds.
        """
        app, deadline = self.app, time.monotonic() + timeout
        while problem := (
            unsettled(app, self.systemd, release, ANSWERS)
            if settled
            else fault(release, int(self.systemd.unit(app.service)["MainPID"]), ask_itself)
        ):
            service = self.systemd.unit(app.service)
            # The first restart is enough to give up: a crash loop would end in a failed socket unit as well.
            if time.monotonic() > deadline or service["ActiveState"] == "failed" or service["NRestarts"] != "0":
                raise HostError(f"{problem}\n{self.systemd.journal(app.service)}")
            time.sleep(0.05)

    def go_back(self, before: Release, here: set[str]) -> str:
        """Restore the release that served before, without losing a request, and return how that went.

        Args:
            before: the release.
            here: the names of its processes and timers with one_host that run on this host.
        """
        app, systemctl = self.app, self.systemd.systemctl
        try:
            if not before.sha:
                self.programs.follow(Release(app, "", {}), set(), 0)
                app.release_env.unlink(missing_ok=True)
                systemctl("disable", *app.enabled, check=False)
                self.retire()
                self.close()
                return "Nothing served before, so nothing does now."
            journal.log(app, f"going back to {before.sha}")
            # release.env is first: if a later step is interrupted, the file names a release that served.
            handing_over = app.handover.exists()
            # The candidate's unit still has to settle a handover.
            kept = {app.candidate} if handing_over else set()
            self.install({name: text for name, text in before.units.items() if name not in kept})
            self.point(before)
            if handing_over:
                self.retire()
            if unsettled(app, self.systemd, before):
                self.serve_again(before)
            self.programs.follow(before, here, 0)
        except Exception as error:
            return f"And {before.sha}, which served before, does not come back: {error or repr(error)}"
        return f"Went back to {before.sha}, which serves."

    def serve_again(self, before: Release) -> None:
        """Have the service run the release that served before, whose units are installed and that release.env names."""
        app, systemctl = self.app, self.systemd.systemctl
        systemctl("reset-failed", app.service, app.socket, check=False)
        socket, candidate = self.systemd.units(app.socket, app.candidate)
        if candidate["ActiveState"] != "active":
            try:
                self.prove(before, socket, candidate)
            except (HostError, OSError) as error:
                # The proof may fail for another reason, such as a tracker that is down: the release served before.
                journal.log(app, f"{before.sha} as a candidate: {error}")
        # Else the release that failed as the service still answers as the candidate, while the service restarts.
        self.switch(before, "it goes back")

    def leave(self, before: Release, listened: bool) -> str:
        """Undo the changes of a failed proof, and return what serves.

        Args:
            before: the release that served before.
            listened: whether the sockets were open before the proof.
        """
        self.retire()
        if not listened:
            self.close()
            self.install(before.units)
        untouched = f"{before.sha or 'What served'} was not touched."
        return untouched if self.systemd.labels(self.app.service) else "Nothing was served before."

    def undo(self, release: str, by: str, run: str, refuse: str = "") -> dict[str, Any]:
        """Go back to what the last cutover replaced, if the same run made that cutover, to `release`."""
        app = self.app
        began = time.monotonic()
        state = State.load(app)
        serving = labels_on_disk(app).get("SENTRY_RELEASE", "")
        if serving != release or state.previous.get("run") != run:
            return {"notices": [f"{serving or 'Nothing'} serves, and not by this run: it stays."]}
        before = Release(app, state.previous.get("pointer", ""), state.previous.get("units", {}))
        lease.note(app, by)
        state.places = state.previous.get("places", {})
        notices = [self.go_back(before, state.here) + ran_before(state, before.sha, release)]
        state.served, state.pointer = state.previous.get("served", []), before.env
        with unsaved(app, notices):
            if before.sha != release:
                if refuse:
                    state.refused[release] = refuse
                state.abandon(release, refuse or "taken back, since it failed on another host")
            state.save()
        seconds = f"{time.monotonic() - began:.2f}"
        fields = {"result": "taken back", "release": before.sha, "from": release, "by": by, "run": run}
        journal.log(app, notices[0], seconds=seconds, **fields)
        return {"state": "taken back", "notices": notices}

    def install(self, units: dict[str, str]) -> None:
        """Write the units that differ, and have systemd read them."""
        app = self.app
        changed = [name for name, text in units.items() if read(app.unit_files / name) != text]
        if app.socket in changed:
            sockets.keep_opened(app, self.systemd)
        for name in changed:
            write_atomically(app.unit_files / name, units[name])
        if changed:
            self.systemd.systemctl("daemon-reload")

    def open_http(self, units: dict[str, str]) -> None:
        """Open the proxy's socket if these units have it and it is installed; close it if they have none.

        Args:
            units: the texts of the release that is to serve.
        """
        app, unit = self.app, self.app.http_socket
        installed = read(app.unit_files / unit)
        if unit in units and installed == units[unit]:
            self.systemd.systemctl("enable", "--now", unit)
        elif installed and unit not in units:
            self.systemd.systemctl("disable", "--now", unit, check=False)
            (app.unit_files / unit).unlink()
            self.systemd.systemctl("daemon-reload")
            sockets.leave_proxy(app)

    def retire(self) -> None:
        """Stop the candidate, which drains its connections first, whatever state it is in.

        In a handover the process that is not the service drains: see settle.sh.
        """
        self.systemd.systemctl("stop", self.app.candidate, check=False)
        if self.app.handover.exists():
            journal.log(self.app, "the handover was not settled")
            self.systemd.systemctl("restart", self.app.service, check=False)
            self.app.handover.unlink()
        self.systemd.systemctl("reset-failed", self.app.candidate, check=False)
        self.app.candidate_env.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop the service and its sockets, and clear their failures."""
        units = [self.app.service, self.app.socket]
        if read(self.app.unit_files / self.app.http_socket):
            units.append(self.app.http_socket)
        self.systemd.systemctl("stop", *units, check=False)
        self.systemd.systemctl("reset-failed", *units, check=False)
