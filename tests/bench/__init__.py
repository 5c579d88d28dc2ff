"""Measurements: tables and ratios to read, never assertions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from sandbox import hosts


def on_a_host(measure: Callable[[hosts.Host, Path], None]) -> None:
    """Measure on a sandbox host of its own, with a directory that holds its inventory; remove both."""
    with tempfile.TemporaryDirectory(prefix="booty-bench-") as name:
        try:
            host = hosts.up("bench", with_tracker=False, inventory=Path(name, "hosts.yml"))[0]
            measure(host, Path(name))
        finally:
            hosts.down("bench")
