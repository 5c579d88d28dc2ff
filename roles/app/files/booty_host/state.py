"""The releases that a host served and gave up."""

from __future__ import annotations

import json
from typing import Any

from booty_host import HostError
from booty_host.app import App
from booty_host.files import read, write_atomically


class State:
    """A host's record of an app's releases, in `/opt/NAME/state.json`.

    Attributes:
        served: the releases that were proven and served, the newest first.
        abandoned: the other releases, each with the reason why it was given up.
        previous: the texts of release.env and of the units that the last cutover replaced, and that cutover's run.
    """

    def __init__(self, app: App, served: list[str], abandoned: dict[str, str], previous: dict[str, Any]) -> None:
        self.path, self.served, self.abandoned, self.previous = app.state, served, abandoned, previous

    @classmethod
    def load(cls, app: App) -> State:
        """Read the file; without a file, nothing was served.

        Raises:
            HostError: the file is damaged. A guess could remove releases that a rollback needs.
        """
        try:
            fields = {"served": [], "abandoned": {}, "previous": {}, **json.loads(read(app.state) or "{}")}
        except (OSError, ValueError, TypeError):
            fields = {}
        match fields:
            case {"served": list(served), "abandoned": dict(abandoned), "previous": dict(previous)}:
                if all(isinstance(release, str) for release in served):
                    return cls(app, served, abandoned, previous)
        raise HostError(
            f"{app.state} is damaged; it says what this host can go back to. Put a copy of it back. Or remove it: the"
            " host then has nothing to go back to until the next deploy."
        )

    def save(self) -> None:
        """Replace the file in one rename."""
        fields = {"served": self.served, "abandoned": self.abandoned, "previous": self.previous}
        write_atomically(self.path, json.dumps(fields, indent=1) + "\n")

    def serve(self, release: str) -> None:
        """Record that a release serves now."""
        if self.served[:1] != [release] or release in self.abandoned:
            self.served = [release, *(other for other in self.served if other != release)]
            self.abandoned.pop(release, None)
            self.save()

    def abandon(self, release: str, reason: str) -> None:
        """Record why a release was given up; a release that has served stays among `served`."""
        if release not in self.served:
            self.abandoned[release] = reason
            self.save()

    def forget(self, staged: set[str]) -> None:
        """Drop the releases that are no longer on the host, so that the file does not grow with each deploy."""
        served = [release for release in self.served if release in staged]
        abandoned = {release: reason for release, reason in self.abandoned.items() if release in staged}
        if (served, abandoned) != (self.served, self.abandoned):
            self.served, self.abandoned = served, abandoned
            self.save()
