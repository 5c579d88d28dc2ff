"""Loads the role's plugins as Ansible does, and shares what tests of several files need."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
ROLE = ROOT / "roles" / "app"


def load(path: Path, name: str) -> ModuleType:
    """Import a plugin from its file under the name that Ansible gives it."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# Ansible ships the role's module_utils to the host as ansible.module_utils.*; modules import it from there.
import ansible.module_utils  # noqa: E402

ansible.module_utils.booty_host = load(ROLE / "module_utils" / "booty_host.py", "ansible.module_utils.booty_host")


@pytest.fixture(scope="session")
def plugin() -> object:
    """Return a function that imports a plugin of the role: `plugin("library/booty_info.py")`."""
    return lambda path: load(ROLE / path, Path(path).stem)


class Repository:
    """A git repository that holds a copy of the bundled app."""

    def __init__(self, path: Path) -> None:
        self.path = path
        subprocess.run(["git", "init", "--quiet", "--initial-branch=main", path], check=True)
        tracked = self.git("-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "app").splitlines()
        for name in tracked:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes((ROOT / name).read_bytes())
        self.commit("The bundled app")

    def git(self, *arguments: str) -> str:
        """Run git in the repository and return its output."""
        done = subprocess.run(
            ["git", "-C", self.path, *arguments], check=True, capture_output=True, text=True, timeout=60
        )
        return done.stdout.strip()

    def write(self, name: str, text: str) -> None:
        """Write a file of the working tree."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(text)

    def commit(self, message: str) -> str:
        """Commit the whole working tree and return the SHA."""
        self.git("add", "--all")
        self.git("-c", "user.name=Test", "-c", "user.email=test@example.com", "commit", "--quiet", "-m", message)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository of its own to the test."""
    return Repository(tmp_path / "repository")
