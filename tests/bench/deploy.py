"""How long a deploy of one host takes: ours, the plainest one in pyinfra, and a shell script as the floor.

`python -m tests.bench.deploy` prints medians over runs that take turns on the same host, and their ratios. The plain
ones ship one archive with the app and its dependencies, as plain ones do; with `apart`, the app alone, the dependencies
being there already, which Booty always does. Ours also proves, drains and confirms.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sandbox import hosts
from sandbox.machine import build_once, cache, run
from tests.bench import on_a_host
from tests.conftest import ROOT, Repository, load

RUNS = 7
BIN = Path(sys.executable).parent
HEALTH = """python3 -c "
import time, urllib.request
for _ in range(100):
    try:
        assert urllib.request.urlopen('http://127.0.0.1:9000/health').status == 200; break
    except OSError: time.sleep(0.05)
else: raise SystemExit('no health')" """
# As plain as a unit gets: it binds its port itself, and is up when it is started.
UNIT = """[Service]
EnvironmentFile=/opt/plain/release.env
ExecStart=/usr/bin/env ${RELEASE_DIR}/bin/serve --host 127.0.0.1 --port 9000
[Install]
WantedBy=multi-user.target
"""


def timed(action: Callable[[], None]) -> float:
    """Return how many seconds an action took."""
    began = time.monotonic()
    action()
    return time.monotonic() - began


def checked(*command: str | Path) -> None:
    """Run a command; say what it said and stop when it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def pyinfra() -> list[str | Path]:
    """Return pyinfra's command, in an environment of its own."""
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


def measure(host: hosts.Host, directory: Path) -> None:  # noqa: PLR0915 - a measurement reads from top to bottom
    """Take turns on one host, and print the table."""
    repository = Repository(directory / "repository")
    artifact = load(ROOT / "roles/app/action_plugins/booty_artifact.py", "booty_artifact")
    variables = {
        "app_environment": "staging",
        "app_repository": str(repository.path),
        "app_cache": str(directory / "artifacts"),
    }

    def ours(sha: str) -> None:
        extra = json.dumps({**variables, "app_release": sha})
        checked(BIN / "ansible-playbook", "deploy.yml", "-i", directory / "hosts.yml", "-e", extra)

    command, inventory = pyinfra(), directory / "inventory.py"

    def files_of(release: str, apart: bool) -> tuple[Path, Path]:
        (archive,) = directory.glob(f"artifacts/releases/{release}-*.tar.gz")
        if not apart:
            archive = whole(archive)
        pointer = directory / "plain.env"
        pointer.write_text(f"SENTRY_RELEASE={release}\nRELEASE_DIR=/opt/plain/{release}\n")
        return archive, pointer

    unit = directory / "plain.service"
    unit.write_text(UNIT)

    def whole(release: Path) -> Path:
        (layer,) = directory.glob("artifacts/layers/*.tar.gz")
        archive = directory / f"whole-{release.name}"
        if not archive.exists():
            with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
                for part, prefix in ((release, ""), (layer, f"lib/python{python}/site-packages/")):
                    with tarfile.open(part) as source:
                        for member in source:
                            content = source.extractfile(member) if member.isfile() else None
                            member.name = prefix + member.name
                            tar.addfile(member, content)
        return archive

    def with_pyinfra(release: str, apart: bool = False) -> None:
        archive, pointer = files_of(release, apart)
        options = hosts.ssh_options("bench")
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
        inventory.write_text(f"bench = [({host.address!r}, {data!r})]\n")
        checked(*command, "-y", inventory, ROOT / "tests/bench/pyinfra_deploy.py")

    def with_shell(release: str, apart: bool = False) -> None:
        archive, pointer = files_of(release, apart)
        ssh = ["-F", "none", *hosts.ssh_options("bench"), f"root@{host.address}"]
        checked("sh", ROOT / "tests/bench/deploy.sh", *ssh, "--", archive, release, pointer, unit, HEALTH)

    checked(BIN / "ansible-playbook", "bootstrap.yml", "-i", directory / "hosts.yml", "-e", json.dumps(variables))
    host.ssh("mkdir -p /opt/plain")

    def release() -> str:
        repository.write("app/src/booty/version.py", f"# {time.monotonic()}\n")
        sha = repository.commit("Another")
        artifact.build(repository.path, "app", "booty", sha, python, "x86_64", directory / "artifacts")
        return sha

    python = host.ssh("python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'").stdout.strip()
    tools: dict[str, Callable[[str], None]] = {
        "Booty": ours,
        "pyinfra": with_pyinfra,
        "pyinfra, apart": partial(with_pyinfra, apart=True),
        "shell": with_shell,
        "shell, apart": partial(with_shell, apart=True),
    }
    took: dict[str, dict[str, list[float]]] = {name: {"re-deploy": [], "nothing to do": []} for name in tools}
    for name, tool in tools.items():  # the first one installs what stays
        tool(release())
        print(f"{name} is ready", file=sys.stderr)
    for _ in range(RUNS):
        for name, tool in tools.items():
            sha = release()
            if name != "Booty":
                whole(files_of(sha, apart=True)[0])
            took[name]["re-deploy"].append(timed(lambda tool=tool, sha=sha: tool(sha)))  # type: ignore[misc]
            took[name]["nothing to do"].append(timed(lambda tool=tool, sha=sha: tool(sha)))  # type: ignore[misc]
    print(f"\nSeconds, one host over SSH, medians of {RUNS} runs that took turns (min to max)\n")
    print("| | " + " | ".join(took["Booty"]) + " |\n| --- | --- | --- |")
    for name, kinds in took.items():
        cells = [f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})" for times in kinds.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")
    for other in [name for name in tools if name != "Booty"]:
        ratios = [
            statistics.median(a / b for a, b in zip(took["Booty"][kind], took[other][kind], strict=True))
            for kind in took["Booty"]
        ]
        print(f"| Booty / {other} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")


if __name__ == "__main__":
    on_a_host(measure)
