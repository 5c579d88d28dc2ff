"""Measurements: tables and ratios to read, never assertions."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sandbox import hosts

Measured = TypeVar("Measured")
# Two runs at once on one machine need two names, as those of tests do.
INSTANCE = os.environ.get("BOOTY_TEST_INSTANCE", "bench")


def on_hosts(measure: Callable[[list[hosts.Host], Path], Measured], count: int = 1) -> Measured:
    """Measure on sandbox hosts of its own, with a directory that holds their inventory; remove both."""
    with tempfile.TemporaryDirectory(prefix="booty-bench-") as name:
        try:
            return measure(hosts.up(INSTANCE, count, with_tracker=False, inventory=Path(name, "hosts.yml")), Path(name))
        finally:
            hosts.down(INSTANCE)
