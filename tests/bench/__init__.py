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


def on_hosts(
    measure: Callable[[list[hosts.Host], Path], Measured], count: int = 1, with_acme: bool = False
) -> Measured:
    """Call `measure` with new sandbox hosts and a directory that holds their inventory; remove both afterwards."""
    with tempfile.TemporaryDirectory(prefix="booty-bench-") as name:
        inventory = Path(name, "hosts.yml")
        try:
            up = hosts.up(INSTANCE, count, with_tracker=False, inventory=inventory, with_acme=with_acme)
            return measure(up, Path(name))
        finally:
            hosts.down(INSTANCE)
