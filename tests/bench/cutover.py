"""Failed and slow requests during a change of release: with a plain restart, a held socket, and Booty.

`python -m tests.bench.cutover` prints a row for each: failed requests, all requests, and the slowest ones. The row
`quiet` is a run of the same length on the same host without any change.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sandbox import hosts
from tests.bench import on_hosts
from tests.conftest import ROOT, ROUTES, Repository
from tests.load import Load

RUNS = 5
SECONDS = 8


def measure(on: list[hosts.Host], directory: Path) -> None:
    """Change the release on one host, each way in turn, and print the table."""
    (host,) = on
    repository = Repository(directory / "repository")
    variables = repository.variables(directory)

    def play(playbook: str) -> None:
        command = [str(Path(sys.executable).parent / "ansible-playbook"), playbook, "-i", str(directory / "hosts.yml")]
        subprocess.run(
            [*command, "-e", json.dumps(variables)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=300
        )

    def ours() -> None:
        repository.write("app/src/booty/routes.py", f"{ROUTES}# {time.monotonic()}\n")
        repository.commit("Another")
        play("deploy.yml")

    play("bootstrap.yml")
    ours()
    ways: dict[str, Callable[[], Any]] = {
        "quiet": lambda: None,
        "plain restart": lambda: host.ssh("systemctl restart booty.socket booty.service"),
        # SIGKILL closes all connections at once, as a stop without any drain does.
        "held socket, no drain": lambda: host.ssh("systemctl kill --signal=KILL booty.service; sleep 3"),
        "held socket, drain": lambda: host.ssh("systemctl restart booty.service"),
        "Booty": ours,
    }
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(RUNS):
        for name, way in ways.items():
            with Load(host.address) as load:
                began = time.monotonic()
                way()
                time.sleep(max(0.0, SECONDS - (time.monotonic() - began)))
            reports[name].append(load.report)
    print(f"\n24 clients over raw sockets, {RUNS} changes each, {SECONDS} s a run\n")
    print("| cutover | failed | of | p99.9, ms | slowest, ms |\n| --- | --- | --- | --- | --- |")
    for name, runs in reports.items():
        failed, requests = (sum(report[key] for report in runs) for key in ("failed", "requests"))
        tail, slowest = (sorted(report[key] for report in runs)[RUNS // 2] * 1000 for key in ("p99.9", "slowest"))
        print(f"| {name} | {failed} | {requests} | {tail:.0f} | {slowest:.0f} |")


if __name__ == "__main__":
    on_hosts(measure)
