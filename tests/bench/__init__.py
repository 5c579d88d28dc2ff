"""Benchmarks: they print tables and ratios, and assert nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sandbox import hosts

Measured = TypeVar("Measured")
# The name of the sandbox instance. Two benchmarks at once on one machine need different names.
INSTANCE = os.environ.get("BOOTY_TEST_INSTANCE", "bench")


def on_hosts(measure: Callable[[list[hosts.Host], Path], Measured], count: int = 1) -> Measured:
    """Call `measure` with new sandbox hosts and a directory that holds their inventory; remove both afterwards."""
    with tempfile.TemporaryDirectory(prefix="booty-bench-") as name:
        try:
            return measure(hosts.up(INSTANCE, count, with_tracker=False, inventory=Path(name, "hosts.yml")), Path(name))
        finally:
            hosts.down(INSTANCE)
