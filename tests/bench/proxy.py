"""An app through the proxy beside the same app on its own port: requests a second, p99, and the tail during a deploy.

    .venv/bin/python -m tests.bench.proxy [--seconds 4] [--rounds 7]

The ways get requests in turns, so that other load of the machine affects all, and each ratio is the median of the
rounds' ratios to the app alone. Booty redirects plain HTTP, so the plain way through the proxy has a site that only
this bench adds. wrk sends the requests, from the same machine.
"""

from __future__ import annotations

import argparse
import functools
import re
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from sandbox import acme, hosts
from tests.bench import on_hosts
from tests.conftest import Repository, start
from tests.load import Load

NAME, PLAIN = (f"{label}.{acme.DOMAIN}" for label in ("bench", "plain"))
CONNECTIONS = (20, 1)
# Seconds of a run with or without a deploy, and how many there are of each.
SECONDS, RUNS = 12, 5
ROUTES = """
import asyncio
from fastapi import APIRouter, Response
router = APIRouter()
@router.get("/quick")
async def quick() -> Response:
    return Response("hello")
@router.get("/slow")
async def slow() -> Response:
    await asyncio.sleep(1)
    return Response("hello")
"""
SITE = f"""server {{
    listen 80;
    server_name {PLAIN};
    location / {{
        include proxy.conf;
        proxy_pass http://booty_booty;
    }}
}}
"""
WAYS = {"app alone": f"http://{PLAIN}:8000", "proxy": f"http://{PLAIN}", "proxy, TLS": f"https://{NAME}"}


def rates(names: Path, seconds: int, connections: int) -> dict[str, tuple[float, float]]:
    """Return the requests a second and the p99 in milliseconds of each way, one after the other.

    Args:
        names: a file like /etc/hosts, which wrk sees in place of this machine's.
        seconds: how long each way gets requests.
        connections: how many clients there are.
    """
    measured = {}
    for way, url in WAYS.items():
        wrk = f"wrk --latency -t1 -c{connections} -d{seconds}s {url}/quick"
        command = ["unshare", "--mount", "sh", "-c", f"mount --bind {names} /etc/hosts && exec {wrk}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rate, tail = re.search(r"Requests/sec: +([\d.]+)", done), re.search(r"99% +([\d.]+)(us|ms|s)", done)
        assert rate, done
        assert tail, done
        assert "Non-2xx" not in done, done
        measured[way] = (float(rate[1]), float(tail[1]) * {"us": 0.001, "ms": 1, "s": 1000}[tail[2]])
    return measured


def measure(on: list[hosts.Host], directory: Path, seconds: int, rounds: int) -> None:
    """Deploy an app behind the proxy, and print the tables."""
    (host,) = on
    ca = acme.find(hosts.INSTANCES / host.instance / "acme")
    assert ca
    repository = Repository(directory / "repository")
    variables: dict[str, Any] = {
        **repository.variables(directory),
        **{"app_domains": [NAME], "host_firewall_ports": [8000], "app_registration": False},
        "app_client_connections": 0,
    }

    def play(playbook: str) -> None:
        played = start(playbook, directory / "hosts.yml", variables).end()
        assert played.status == 0, played.output

    def deploy() -> None:
        repository.write("app/src/booty/routes.py", f"{ROUTES}# {time.monotonic()}\n")
        repository.commit("Another")
        play("deploy.yml")

    ca.point(NAME, [host.address])
    play("bootstrap.yml")
    deploy()
    done = host.ssh(
        "cat > /etc/booty-front/apps/zz-bench.conf && systemctl start booty-front@h && systemctl stop booty-front@a",
        input=SITE,
    )
    assert done.returncode == 0, done.stderr
    names = directory / "names"
    names.write_text(f"{host.address} {NAME} {PLAIN}\n")

    print("| connections | way | requests a second | ratio | p99, ms | ratio |\n| --- | --- | --- | --- | --- | --- |")
    for connections in CONNECTIONS:
        rates(names, 1, connections)  # warms up
        turns = [rates(names, seconds, connections) for _ in range(rounds)]
        for way in WAYS:
            rate, tail = (statistics.median(turn[way][number] for turn in turns) for number in range(2))
            ratios = [
                statistics.median(turn[way][number] / turn["app alone"][number] for turn in turns)
                for number in range(2)
            ]
            print(
                f"| {connections} | {way} | {rate:.0f} | {ratios[0]:.2f} | {tail:.1f} | {ratios[1]:.2f} |", flush=True
            )

    service: dict[str, Any] = {"quick": "/quick", "key": "", "host": NAME}
    ports: dict[str, dict[str, Any]] = {"app alone": {"port": 8000}, "proxy, TLS": {"port": 443, "ca": str(ca.root)}}
    tails: dict[str, list[list[float]]] = {way: [] for way in ports}
    failed = 0
    for _ in range(RUNS):
        for way, more in ports.items():
            pair = []
            for change in (time.sleep, lambda _: deploy()):
                with Load(host.address, **service, **more) as load:
                    began = time.monotonic()
                    change(0)
                    time.sleep(max(0.0, SECONDS - (time.monotonic() - began)))
                pair.append(load.report["p99.9"] * 1000)
                failed += load.report["failed"]
            tails[way].append(pair)
    print("\n| 24 clients | p99.9 quiet, ms | p99.9 during a deploy, ms | ratio |\n| --- | --- | --- | --- |")
    for way, pairs in tails.items():
        quiet, during = (statistics.median(pair[number] for pair in pairs) for number in range(2))
        ratio = statistics.median(pair[1] / pair[0] for pair in pairs)
        print(f"| {way} | {quiet:.0f} | {during:.0f} | {ratio:.2f} |")
    print(f"\n{failed} requests failed")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=4, help="of each way in a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="of which the median counts (%(default)s)")
    args = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("this bench needs wrk: apt-get install wrk")
    on_hosts(functools.partial(measure, seconds=args.seconds, rounds=args.rounds), with_acme=True)


if __name__ == "__main__":
    main()
