"""Tallies: what all processes of a service have counted since its start, in memory that they share."""

import mmap

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


# Requests to the app, without the questions of Booty; and events that the tracker did not accept.
requests = Tally()
lost = Tally()
