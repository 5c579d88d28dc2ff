"""Measurements: tables and ratios to read, never assertions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from sandbox import hosts


def on_hosts(measure: Callable[[list[hosts.Host], Path], None], count: int = 1) -> None:
    """Measure on sandbox hosts of its own, with a directory that holds their inventory; remove both."""
    with tempfile.TemporaryDirectory(prefix="booty-bench-") as name:
        try:
            measure(hosts.up("bench", count, with_tracker=False, inventory=Path(name, "hosts.yml")), Path(name))
        finally:
            hosts.down("bench")
