"""The collection as a user installs it: from an archive, into a folder that holds only an inventory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from ansible_collections.booty.deploy.plugins.filter.booty import FILTERS

from sandbox import demo
from sandbox import hosts as sandbox
from sandbox.hosts import Host
from tests.conftest import INSTANCE, ROOT, Repository

BIN = Path(sys.executable).parent
DOCUMENTED = {
    "module": sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py")),
    "filter": sorted(path.stem for path in (ROOT / "plugins/filter").glob("*.yml")),
    "callback": ["brief", "notify"],
    "role": ["app", "host", "proxy"],
}


@dataclass
class Elsewhere:
    """A user's folder: an inventory, the installed collection, a virtual environment with ansible-core alone."""

    folder: Path
    host: Host

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command of the virtual environment in the folder, without ANSIBLE_ variables."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        home = {"HOME": str(self.folder), "XDG_CACHE_HOME": str(Path.home() / ".cache"), "ANSIBLE_NOCOLOR": "1"}
        return subprocess.run(
            [self.folder / "venv/bin" / command[0], *command[1:]],
            cwd=self.folder,
            env={**kept, **home},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elsewhere]:
    folder, name = tmp_path_factory.mktemp("elsewhere"), f"{INSTANCE}-collection"
    archives = tmp_path_factory.mktemp("archives")
    checkout = Repository(tmp_path_factory.mktemp("checkout") / "booty", ".").path

    def checked(*command: str | Path, cwd: Path = folder) -> None:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    checked(BIN / "ansible-galaxy", "collection", "build", f"--output-path={archives}", cwd=checkout)
    (archive,) = archives.glob("*.tar.gz")
    path_option = f"--collections-path={folder}/.ansible/collections"
    checked(BIN / "ansible-galaxy", "collection", "install", "--offline", path_option, archive)
    checked(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    locked = subprocess.run([BIN / "uv", "pip", "freeze"], capture_output=True, text=True, check=True).stdout
    (core,) = (line for line in locked.splitlines() if line.startswith("ansible-core=="))
    checked(BIN / "uv", "pip", "install", "--quiet", f"--python={folder}/venv/bin/python", core)
    try:
        (host,) = sandbox.up(name, 1, with_tracker=False, inventory=folder / "inventory/hosts.yml")
        yield Elsewhere(folder, host)
    finally:
        sandbox.down(name)


def test_the_installed_collection_bootstraps_and_deploys(elsewhere: Elsewhere, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "shop")
    sha = repository.git("rev-parse", "HEAD")
    shop = {"app_repository": str(repository.path), "app_path": "app"}
    variables = {"app_environment": "staging", "app_registration": False, **shop}
    (elsewhere.folder / "inventory/group_vars").mkdir()
    (elsewhere.folder / "inventory/group_vars/booty.yml").write_text(yaml.safe_dump(variables))

    def play(verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return elsewhere.run("ansible-playbook", f"booty.deploy.{verb}", "-i", "inventory", *arguments)

    bootstrapped = play("bootstrap")
    assert bootstrapped.returncode == 0, bootstrapped.stdout + bootstrapped.stderr
    refused = play("deploy")
    assert refused.returncode == 4, refused.stdout + refused.stderr
    message = " ".join(refused.stderr.split())
    requirements = (
        elsewhere.folder / ".ansible/collections/ansible_collections/booty/deploy/requirements/controller.txt"
    )
    python = elsewhere.folder / "venv/bin/python"
    assert (
        "The Python of ansible-playbook lacks uv, cyclonedx, rich. Install what Booty needs:"
        f" {python} -m pip install --require-hashes -r {requirements}"
    ) in message
    # The message's command, but with uv in place of pip.
    install: list[str | Path] = [
        BIN / "uv",
        "pip",
        "install",
        "--quiet",
        f"--python={python}",
        "--require-hashes",
        "-r",
        requirements,
    ]
    subprocess.run(install, check=True)
    deployed = play("deploy")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    assert demo.health(elsewhere.host)["release"] == sha
    again = play("deploy")
    assert "changed=0" in again.stdout, again.stdout
    shown = play("status")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert f"{sha[:9]}" in shown.stdout


def test_without_an_inventory_no_host_is_reached(elsewhere: Elsewhere) -> None:
    (elsewhere.folder / "ansible.cfg").write_text("[defaults]\ninventory = inventory\n")
    try:
        refused = elsewhere.run("ansible-playbook", "booty.deploy.deploy")
    finally:
        (elsewhere.folder / "ansible.cfg").unlink()
    assert refused.returncode == 4
    assert "No inventory was named" in refused.stderr


@pytest.mark.parametrize(("kind", "names"), DOCUMENTED.items(), ids=DOCUMENTED)
def test_ansible_doc_shows_plugins_and_roles(kind: str, names: list[str]) -> None:
    names = [f"booty.deploy.{name}" for name in names]
    done = subprocess.run(
        [BIN / "ansible-doc", "--json", "-t", kind, *names], cwd=ROOT, capture_output=True, check=True
    )
    assert [*json.loads(done.stdout)] == names, done.stderr


def test_every_plugin_is_documented() -> None:
    assert sorted(path.stem for path in (ROOT / "plugins/action").glob("*.py")) == DOCUMENTED["module"]
    assert sorted(FILTERS) == DOCUMENTED["filter"]
