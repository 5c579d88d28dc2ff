"""How long a deploy takes: with Booty, with the plainest deploy in pyinfra, and with a shell script as the floor.

`python -m tests.bench.deploy [--runs N] [HOSTS …]` prints medians and ratios for each number of hosts (default 1): the
seconds, and for each host the controller's CPU seconds and the kilobytes sent. The tools take turns on the same hosts.
With several numbers of hosts it also prints a chart. pyinfra and the script ship one archive with the app and its
dependencies; with `apart` they ship only the app, because the dependencies are on the host already, as with Booty.
Only Booty also proves, drains and confirms, and deploys in waves: one host, then the rest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sandbox import hosts
from sandbox.machine import build_once, cache, run
from tests.bench import INSTANCE, on_hosts
from tests.conftest import ROOT, Repository, artifact

BIN = Path(sys.executable).parent
HEALTH = """python3 -c "
import time, urllib.request
for _ in range(600):
    try:
        assert urllib.request.urlopen('http://127.0.0.1:9000/health').status == 200; break
    except OSError: time.sleep(0.05)
else: raise SystemExit('no health')" """
# The plainest unit: the service binds its port itself, and systemd does not wait until it is ready.
UNIT = """[Service]
EnvironmentFile=/opt/booty/plain/release.env
ExecStart=/usr/bin/env ${RELEASE_DIR}/bin/serve --host 127.0.0.1 --port 9000
[Install]
WantedBy=multi-user.target
"""


@dataclass
class Cost:
    """The cost of a run: seconds, and for each host the controller's CPU seconds and the kilobytes sent."""

    seconds: float
    cpu: float
    kilobytes: float


def cost(action: Callable[[], None], on: list[hosts.Host]) -> Cost:
    """Run an action and return its cost."""

    def spent() -> float:
        # Children that have ended, and their children: all processes of a tool but ssh's masters, which outlive it.
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def sent() -> int:
        ends = (Path(f"/sys/class/net/vb-{host.container.machine}/statistics/tx_bytes") for host in on)
        return sum(int(end.read_text()) for end in ends)

    began, cpu, sent_before = time.monotonic(), spent(), sent()
    action()
    seconds = time.monotonic() - began
    return Cost(seconds, (spent() - cpu) / len(on), (sent() - sent_before) / len(on) / 1000)


def checked(*command: str | Path) -> None:
    """Run a command; if it fails, print its output and exit."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def pyinfra() -> list[str | Path]:
    """Return the command of pyinfra, which is installed in a virtual environment of its own."""
    lock = ROOT / "requirements" / "bench.txt"

    def build(work: Path) -> None:
        run(BIN / "uv", "venv", "--quiet", "--python", sys.executable, work / "venv")
        python = work / "venv/bin/python"
        run(
            BIN / "uv",
            "pip",
            "install",
            "--quiet",
            "--python",
            python,
            "--compile-bytecode",
            "--require-hashes",
            "-r",
            lock,
        )

    key = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()[:16]
    return [build_once(cache() / "bench" / key, build) / "venv/bin/python", "-m", "pyinfra"]


# The costs of all runs, by tool and by kind of run.
Took = dict[str, dict[str, list[Cost]]]


def measure(on: list[hosts.Host], directory: Path, runs: int) -> Took:  # noqa: PLR0915 - reads from top to bottom
    """Deploy to the same hosts with each tool in turn, and print the table."""
    repository = Repository(directory / "repository")
    variables = repository.variables(directory)

    def ours(sha: str) -> None:
        extra = json.dumps({**variables, "app_release": sha})
        checked(BIN / "ansible-playbook", "deploy.yml", "-i", directory / "hosts.yml", "-e", extra)

    command, inventory = pyinfra(), directory / "inventory.py"

    def files_of(release: str, apart: bool) -> tuple[Path, Path]:
        (archive,) = directory.glob(f"artifacts/releases/{release}-*.tar.gz")
        if not apart:
            archive = whole(archive)
        pointer = directory / "plain.env"
        pointer.write_text(f"SENTRY_RELEASE={release}\nRELEASE_DIR=/opt/booty/plain/{release}\n")
        return archive, pointer

    unit = directory / "plain.service"
    unit.write_text(UNIT)

    def whole(release: Path) -> Path:
        layers = directory.glob("artifacts/layers/*.tar.gz")
        below = f"lib/python{python}/site-packages/"
        archive = directory / f"whole-{release.name}"
        if not archive.exists():
            with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
                for part, prefix in ((release, ""), *((layer, below) for layer in layers)):
                    with tarfile.open(part) as source:
                        for member in source:
                            content = source.extractfile(member) if member.isfile() else None
                            member.name = prefix + member.name
                            tar.addfile(member, content)
        return archive

    def with_pyinfra(release: str, apart: bool = False) -> None:
        archive, pointer = files_of(release, apart)
        options = hosts.ssh_options(INSTANCE)
        known = next(word.partition("=")[2] for word in options if word.startswith("UserKnownHostsFile"))
        data = {
            "ssh_user": "root",
            "ssh_key": options[1],
            "ssh_known_hosts_file": known,
            "release": release,
            "archive": str(archive),
            "pointer": str(pointer),
            "unit": str(unit),
            "health": HEALTH,
        }
        inventory.write_text(f"bench = {[(host.address, data) for host in on]!r}\n")
        checked(*command, "-y", inventory, ROOT / "tests/bench/pyinfra_deploy.py")

    def with_shell(release: str, apart: bool = False) -> None:
        archive, pointer = files_of(release, apart)

        def deploy_to(host: hosts.Host) -> None:
            ssh = ["-F", "none", *hosts.ssh_options(INSTANCE), f"root@{host.address}"]
            checked("sh", ROOT / "tests/bench/deploy.sh", *ssh, "--", archive, release, pointer, unit, HEALTH)

        with ThreadPoolExecutor(len(on)) as pool:
            list(pool.map(deploy_to, on))

    checked(BIN / "ansible-playbook", "bootstrap.yml", "-i", directory / "hosts.yml", "-e", json.dumps(variables))
    for host in on:
        host.ssh("mkdir -p /opt/booty/plain")

    def release() -> str:
        repository.write("app/src/booty/version.py", f"# {time.monotonic()}\n")
        sha = repository.commit("Another")
        artifact(repository.path, sha, directory / "artifacts", python=f"{python}.0")
        return sha

    python = on[0].ssh("python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'").stdout.strip()
    tools: dict[str, Callable[[str], None]] = {
        "Booty": ours,
        "pyinfra": with_pyinfra,
        "pyinfra, apart": partial(with_pyinfra, apart=True),
        "shell": with_shell,
        "shell, apart": partial(with_shell, apart=True),
    }
    took: Took = {name: {"re-deploy": [], "nothing to do": []} for name in tools}
    for name, tool in tools.items():  # the first deploy installs files that the later ones keep
        tool(release())
        print(f"{name} is ready", file=sys.stderr)
    for _ in range(runs):
        for name, tool in tools.items():
            sha = release()
            if name != "Booty":
                whole(files_of(sha, apart=True)[0])
            for costs in took[name].values():
                costs.append(cost(lambda tool=tool, sha=sha: tool(sha), on))  # type: ignore[misc]
    print(
        f"\n{len(on)} hosts over SSH, medians of {runs} runs that took turns: s (min to max), CPU s a host, kB a host\n"
    )
    print("| | " + " | ".join(took["Booty"]) + " |\n| --- | --- | --- |")
    for name, kinds in took.items():
        print(f"| {name} | " + " | ".join(cell(costs) for costs in kinds.values()) + " |")
    for other in [name for name in tools if name != "Booty"]:
        ratios = [
            statistics.median(
                a.seconds / b.seconds for a, b in zip(took["Booty"][kind], took[other][kind], strict=True)
            )
            for kind in took["Booty"]
        ]
        print(f"| Booty / {other} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    return took


def cell(costs: list[Cost]) -> str:
    """Format the costs of several runs."""
    seconds = [each.seconds for each in costs]
    cpu, sent = (
        statistics.median(values) for values in zip(*((each.cpu, each.kilobytes) for each in costs), strict=True)
    )
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f}), {cpu:.2f}, {sent:.0f}"


def chart(kind: str, by_count: dict[int, Took]) -> None:
    """Print the seconds by number of hosts, as a Mermaid chart."""
    tools = list(next(iter(by_count.values())))
    print(f'\n```mermaid\nxychart-beta\n    title "{kind}, s: {", ".join(tools)}"')
    print(f'    x-axis "hosts" {list(by_count)}\n    y-axis "s"')
    for tool in tools:
        medians = [statistics.median(each.seconds for each in took[tool][kind]) for took in by_count.values()]
        print(f"    line {[round(seconds, 1) for seconds in medians]}")
    print("```")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("hosts", nargs="*", type=int, default=[1], help="numbers of hosts")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    by_count = {count: on_hosts(partial(measure, runs=options.runs), count) for count in options.hosts}
    if len(by_count) > 1:
        for kind in ("re-deploy", "nothing to do"):
            chart(kind, by_count)
