"""The releases that a host served and gave up, and the commands that ran between them."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from booty_host import HostError
from booty_host.app import App
from booty_host.files import read, write_atomically

# The number of commands, and of releases that a watch took back, that a host remembers.
KEPT = 20


class State:
    """A host's record of an app's releases, in `/opt/NAME/state.json`.

    Attributes:
        served: the releases that were proven and served, the newest first.
        abandoned: the other releases, each with the reason why it was given up.
        commands: the release commands and post-deploy commands that ran, here or on another host, the newest last:
            `id`, `kind`, `release`, `command`, `at` in seconds since 1970, `result` (began, failed, done), and
            `before`, the releases that served before the command ran and not since.
        places: the host of each process and timer with one_host, by name: `host`, its name in the inventory, and
            `here`, whether it is this one.
        previous: the texts of release.env and of the units that the last cutover replaced, that cutover's run, and
            the places before.
        refused: the releases that a watch took back, each with its result; a deploy refuses them until it is forced.
        pointer: the text of release.env of the last cutover that went well.
    """

    def __init__(
        self,
        app: App,
        served: list[str],
        abandoned: dict[str, str],
        previous: dict[str, Any],
        commands: list[dict[str, Any]],
        places: dict[str, dict[str, Any]],
        refused: dict[str, str],
        pointer: str = "",
    ) -> None:
        self.path, self.served, self.abandoned, self.previous = app.state, served, abandoned, previous
        self.commands, self.places, self.refused, self.pointer = commands, places, refused, pointer

    @classmethod
    def load(cls, app: App) -> State:
        """Read the file; without a file, nothing was served.

        Raises:
            HostError: the file is damaged. A guess could remove releases that a rollback needs.
        """
        try:
            fields = {
                "served": [],
                "abandoned": {},
                "previous": {},
                "commands": [],
                "places": {},
                "refused": {},
                "pointer": "",
                **json.loads(read(app.state) or "{}"),
            }
        except (OSError, ValueError, TypeError):
            fields = {}
        match fields:
            case {
                "served": list(served),
                "abandoned": dict(abandoned),
                "previous": dict(previous),
                "commands": list(commands),
                "places": dict(places),
                "refused": dict(refused),
                "pointer": str(pointer),
            }:
                if all(isinstance(release, str) for release in served):
                    return cls(app, served, abandoned, previous, commands, places, refused, pointer)
        raise HostError(
            f"{app.state} is damaged; it says what this host can go back to. Put a copy of it back. Or remove it: the"
            " host then has nothing to go back to until the next deploy."
        )

    def save(self) -> None:
        """Replace the file in one rename."""
        fields = {
            "served": self.served,
            "abandoned": self.abandoned,
            "previous": self.previous,
            "commands": self.commands[-KEPT:],
            "places": self.places,
            "refused": dict([*self.refused.items()][-KEPT:]),
            "pointer": self.pointer,
        }
        write_atomically(self.path, json.dumps(fields, indent=1) + "\n")

    def serve(self, release: str, pointer: str = "") -> None:
        """Record that a release serves now, and the text of its release.env, if that is known."""
        pointer = pointer or self.pointer
        if (self.served[:1], self.pointer) != ([release], pointer) or release in {*self.abandoned, *self.refused}:
            self.pointer = pointer
            for entry in self.commands:
                entry["before"] = [other for other in entry["before"] if other != release]
            self.served = [release, *(other for other in self.served if other != release)]
            self.abandoned.pop(release, None)
            self.refused.pop(release, None)
            self.save()

    @property
    def here(self) -> set[str]:
        """The names of the processes and timers with one_host that run on this host."""
        return {name for name, place in self.places.items() if place["here"]}

    def abandon(self, release: str, reason: str) -> None:
        """Record why a release was given up; a release that has served stays among `served`."""
        if release not in self.served:
            self.abandoned[release] = reason
            self.save()

    def note(self, commands: list[dict[str, Any]]) -> None:
        """Add what other hosts know of the commands that ran."""
        own = {entry["id"]: entry for entry in self.commands}
        for entry in commands:
            if entry["id"] in own:
                if entry["result"] != "began":
                    own[entry["id"]]["result"] = entry["result"]
            else:
                self.commands.append({**entry, "before": [*self.served] if entry["kind"] == "release" else []})
        self.commands.sort(key=lambda entry: float(entry["at"]))

    def ran(self, kind: str, release: str, command: list[str]) -> bool:
        """Return whether the last commands of a kind were these, of this release, and succeeded."""
        last = next((entry for entry in reversed(self.commands) if entry["kind"] == kind), {"result": ""})
        return last["result"] == "done" and (last["release"], last["command"]) == (release, command)

    def begin(self, kind: str, release: str, command: list[str]) -> str:
        """Record that commands begin, and return the ID of the record."""
        fields = {"kind": kind, "release": release, "command": command, "at": time.time(), "result": "began"}
        self.note([{"id": (name := uuid.uuid4().hex), **fields}])
        self.save()
        return name

    def finish(self, name: str, result: str) -> None:
        """Record how the commands of a record ended."""
        for entry in self.commands:
            if entry["id"] == name:
                entry["result"] = result
        self.save()

    def between(self, release: str, newer: str = "") -> list[dict[str, Any]]:
        """Return the release commands that ran since a release served, of one newer release or of all."""
        return [entry for entry in self.commands if release in entry["before"] and newer in {"", entry["release"]}]

    def forget(self, staged: set[str]) -> None:
        """Drop the releases that are no longer on the host, so that the file does not grow with each deploy."""
        served = [release for release in self.served if release in staged]
        abandoned = {release: reason for release, reason in self.abandoned.items() if release in staged}
        if (served, abandoned) != (self.served, self.abandoned):
            self.served, self.abandoned = served, abandoned
            self.save()
