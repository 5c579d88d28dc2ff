"""Tallies: what all processes of a service have counted since its start, in memory that they share."""

import json
import mmap
import os
from contextlib import suppress
from typing import Any

# A worker that takes the place of another one gets a slot of its own. After so many workers the slots are used again.
_SLOTS = 512


class Tally:
    """A number to which each process adds in a slot of its own, so no lock is needed."""

    _slot = 0

    def __init__(self) -> None:
        self._counts = memoryview(mmap.mmap(-1, 8 * _SLOTS)).cast("Q")

    @classmethod
    def take_slot(cls) -> None:
        """Give the next process that is forked slots of its own."""
        Tally._slot = (Tally._slot + 1) % _SLOTS

    def add(self) -> None:
        """Count one."""
        self._counts[Tally._slot] += 1

    @property
    def total(self) -> int:
        """The sum over all processes."""
        return sum(self._counts)


class Latest:
    """A small JSON object that any process replaces, and all read."""

    _BYTES = 1024

    def __init__(self) -> None:
        self._file = os.memfd_create("booty-latest")

    @property
    def value(self) -> dict[str, Any]:
        """The object that was set last; {} before the first one."""
        with suppress(ValueError):
            return dict(json.loads(os.pread(self._file, self._BYTES, 0)))
        return {}

    def set(self, value: dict[str, Any]) -> None:
        """Replace the object, in one write: the kernel writes those of two processes one after the other."""
        os.pwrite(self._file, json.dumps(value).encode().ljust(self._BYTES), 0)


# Requests to the app, without the questions of Booty; and events that the tracker did not accept.
requests = Tally()
lost = Tally()
# The outcome of the last event: `place`, the tracker; `status`; and since when it is the same, in seconds.
event = Latest()
