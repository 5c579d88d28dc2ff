"""A change of release: what its clients notice, and what one start saves against two.

`python -m tests.bench.cutover` prints three tables:

- failed and slow requests with a plain restart, a held socket, and Booty. `quiet` is a run of the same length on the
  same host without any change;
- the slowest requests to a host during a deploy to it, and during a deploy to another host. Both runs have the same
  load of the controller and of a starting app, so the difference is that of the cutover alone;
- the time and the host's CPU of a deploy with one start (the handover), and with two: a drop-in of the service's unit
  has Booty restart the service on the release that its candidate has proven.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sandbox import hosts
from tests.bench import on_hosts
from tests.conftest import ROOT, ROUTES, Repository
from tests.load import Load

RUNS = 5
SECONDS = 8
# An app that takes 3 s and 200 MB to start; half of the time is work.
HEAVY = """
import time
MEMORY = b"x" * 200_000_000
until = time.process_time() + 1.5
while time.process_time() < until:
    pass
time.sleep(1.5)
"""
DROP_IN = "/etc/systemd/system/booty.service.d/bench.conf"


class Bench:
    """A repository, the hosts of an inventory, and Booty's playbooks."""

    def __init__(self, directory: Path) -> None:
        self.repository, self.inventory = Repository(directory / "repository"), directory / "hosts.yml"
        self.variables = {**self.repository.variables(directory), "app_watch": "off", "app_keep_releases": 2}

    def play(self, playbook: str, on: hosts.Host | None = None, **variables: Any) -> None:
        """Run a playbook, on all hosts or on one."""
        command = [str(Path(sys.executable).parent / "ansible-playbook"), playbook, "-i", str(self.inventory)]
        limit = ["--limit", on.name] if on else []
        subprocess.run(
            [*command, *limit, "-e", json.dumps({**self.variables, **variables})],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=300,
        )

    def release(self, code: str = "") -> None:
        """Commit a change of the app, with more code at its import."""
        self.repository.write("app/src/booty/routes.py", f"{ROUTES}{code}# {time.monotonic()}\n")
        self.repository.commit("Another")

    def deploy(self, on: hosts.Host, code: str = "") -> None:
        """Commit a change, and deploy it to one host."""
        self.release(code)
        self.play("deploy.yml", on)


def under_load(host: hosts.Host, ways: dict[str, Callable[[], Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return a report of the load on a host for each run of each way; the ways take turns."""
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(RUNS):
        for name, way in ways.items():
            with Load(host.address) as load:
                began = time.monotonic()
                way()
                time.sleep(max(0.0, SECONDS - (time.monotonic() - began)))
            reports[name].append(load.report)
    print("| cutover | failed | of | p99.9, ms | slowest, ms |\n| --- | --- | --- | --- | --- |")
    for name, runs in reports.items():
        failed, requests = (sum(report[key] for report in runs) for key in ("failed", "requests"))
        tail, slowest = (statistics.median(report[key] for report in runs) * 1000 for key in ("p99.9", "slowest"))
        print(f"| {name} | {failed} | {requests} | {tail:.0f} | {slowest:.0f} |", flush=True)
    return reports


def clients(bench: Bench, host: hosts.Host, other: hosts.Host) -> None:
    """Print the two tables of what clients notice."""
    print(f"\n24 clients over raw sockets, {RUNS} changes each, {SECONDS} s a run, medians\n")
    ways: dict[str, Callable[[], Any]] = {
        "quiet": lambda: None,
        "plain restart": lambda: host.ssh("systemctl restart booty.socket booty.service"),
        # SIGKILL closes all connections at once, as a stop without any drain does.
        "held socket, no drain": lambda: host.ssh("systemctl kill --signal=KILL booty.service; sleep 3"),
        "held socket, drain": lambda: host.ssh("systemctl restart booty.service"),
        "Booty": partial(bench.deploy, host),
    }
    under_load(host, ways)
    print("\nThe same clients\n")
    names = "a deploy to another host", "a deploy to this host"
    reports = under_load(
        host, dict(zip(names, (partial(bench.deploy, other), partial(bench.deploy, host)), strict=True))
    )
    for key in ("p99.9", "slowest"):
        apart, own = ([report[key] for report in reports[name]] for name in names)
        print(f"\n{key}: {statistics.median(a / b for a, b in zip(own, apart, strict=True)):.2f} (median of the pairs)")


def start_to_end(host: hosts.Host) -> float:
    """Return the seconds from the start of the last release to its confirmation, by the host's journal."""
    lines = host.ssh("journalctl -t booty-deploy --lines=40 --output=json --output-fields=MESSAGE").stdout.splitlines()
    records = [json.loads(line) for line in lines]
    began, ended = (
        max(int(record["__REALTIME_TIMESTAMP"]) for record in records if record["MESSAGE"].startswith(word))
        for word in ("proving", "serving")
    )
    return (ended - began) / 1e6


def starts(bench: Bench, host: hosts.Host) -> None:
    """Print the table of one start and two."""

    def cpu() -> float:
        return int(host.ssh("grep usage_usec /sys/fs/cgroup/cpu.stat").stdout.split()[1]) / 1e6

    print("\n| a deploy | one start: s, CPU s | two starts: s, CPU s | ratios |\n| --- | --- | --- | --- |")
    for kind, code in (("light app", ""), ("heavy app: 3 s, 200 MB", HEAVY)):
        measured: dict[str, list[tuple[float, float]]] = {"one": [], "two": []}
        bench.deploy(host, code)
        for _ in range(RUNS):
            for count, costs in measured.items():
                one = count == "one"
                lines = f"rm -f {DROP_IN}" if one else f"mkdir -p $(dirname {DROP_IN}); echo '[Unit]' > {DROP_IN}"
                host.ssh(f"{lines}; systemctl daemon-reload")
                bench.release(code)
                before = cpu()
                bench.play("deploy.yml", host)
                costs.append((start_to_end(host), cpu() - before))
                way = host.ssh(
                    "journalctl -t booty-deploy --lines=40 --output=cat | tac | grep -m1 -E '^(handing|restart)'"
                )
                assert way.stdout.startswith("handing" if one else "restarting"), way.stdout
        host.ssh(f"rm -f {DROP_IN}; systemctl daemon-reload")
        cells = [
            ", ".join(f"{statistics.median(values):.2f}" for values in zip(*costs, strict=True))
            for costs in measured.values()
        ]
        ratios = [
            statistics.median(one[part] / two[part] for one, two in zip(*measured.values(), strict=True))
            for part in range(2)
        ]
        print(f"| {kind} | {' | '.join(cells)} | {ratios[0]:.2f}, {ratios[1]:.2f} |", flush=True)


def measure(on: list[hosts.Host], directory: Path) -> None:
    """Print the tables."""
    bench = Bench(directory)
    bench.play("bootstrap.yml")
    bench.release()
    bench.play("deploy.yml")
    clients(bench, *on)
    starts(bench, on[0])


if __name__ == "__main__":
    on_hosts(measure, 2)
