"""What a release is built from: the commit's own content, whatever the controller's git, uv, shell and locale are.

Where a commit does not have what a release needs, the message names the file, the line, the reason and the next step.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import ROLE, ROOT, Repository, load

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
MACHINE = platform.machine()
# The smallest package of the bundled app's lock.
(LOCK,) = re.findall(r"^annotated-doc==(?:.*\\\n)+.*\n", (ROOT / "app/requirements.txt").read_text(), re.MULTILINE)
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "shop"
version = "1"
dependencies = ["annotated-doc"]
"""
# A build backend that ships the folder `data`, and all that it can see of the controller.
BACKEND = """
import json, os, pathlib, sys, time, zipfile

PLACES = ("HOME", "LD_LIBRARY_PATH", "NETRC", "PATH", "SSL_", "TMPDIR", "UV_", "VIRTUAL_ENV", "XDG_")

def build_wheel(directory, settings=None, metadata=None):
    seen = {name: value for name, value in os.environ.items() if not name.startswith(PLACES)}
    seen |= {"umask": os.umask(0o22), "zone": time.tzname, "hash": hash("a"), "settings": settings}
    seen["encoding"] = sys.getfilesystemencoding()
    files = {"shop/seen.json": json.dumps(seen, sort_keys=True).encode()}
    metadata = "Metadata-Version: 2.1\\nName: shop\\nVersion: 1\\nRequires-Dist: annotated-doc\\n"
    files["shop-1.dist-info/METADATA"] = metadata.encode()
    files["shop-1.dist-info/WHEEL"] = b"Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    with zipfile.ZipFile(pathlib.Path(directory, "shop-1-py3-none-any.whl"), "w") as wheel:
        for path in sorted(path for path in pathlib.Path("data").rglob("*") if path.is_file()):
            wheel.write(path, f"shop/{path}")
        for name, content in files.items():
            wheel.writestr(name, content)
        wheel.writestr("shop-1.dist-info/RECORD", "".join(f"{name},,\\n" for name in wheel.namelist()))
    return "shop-1-py3-none-any.whl"
"""
ATTRIBUTES = """
windows.txt text eol=lf
lines.txt ident export-subst
run.sh export-ignore
data/*.py working-tree-encoding=UTF-16
"""


@pytest.fixture(scope="module")
def artifact() -> ModuleType:
    return load(ROLE / "action_plugins/booty_artifact.py", "booty_artifact")


def small(path: Path) -> Repository:
    """Make a repository with a small app in `app/`, full of what git's attributes and settings can change."""
    repository = Repository(path, "LICENSE")
    repository.write("app/pyproject.toml", PROJECT)
    repository.write("app/requirements.txt", LOCK)
    repository.write("app/backend.py", BACKEND)
    repository.write("app/.gitattributes", ATTRIBUTES)
    repository.write("app/data/lines.txt", "one\ntwo\n$Id$\n$Format:%H %D$\n")
    (repository.path / "app/data/windows.txt").write_bytes(b"one\r\ntwo\r\n")
    repository.write("app/data/ünïcödé näme.py", "print('ä')\n")
    repository.write("app/data/run.sh", "#!/bin/sh\n")
    (repository.path / "app/data/run.sh").chmod(0o755)
    (repository.path / "app/data/link").symlink_to("lines.txt")
    # As it is: `git add` would convert it.
    attributes = repository.path / ".git/info/attributes"
    attributes.write_text("* -text -ident -working-tree-encoding\n")
    repository.commit("A small app")
    attributes.unlink()
    return repository


def build(artifact: ModuleType, repository: Path, cache: Path, sha: str, path: str = "app") -> Any:
    return artifact.build(repository, path, "shop", sha, PYTHON, MACHINE, cache)


def contents(archive: str) -> dict[str, bytes]:
    """Return the files of an archive, by their names in its site-packages."""
    with tarfile.open(archive) as tar:
        files = ((entry.name, tar.extractfile(entry)) for entry in tar if entry.isfile())
        return {name.partition("site-packages/")[2] or name: file.read() for name, file in files if file}


class Controller:
    """A controller of its own kind: its repository, its home, its environment."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, repository: Repository) -> None:
        self.home, self.monkeypatch, self.origin = directory / "home", monkeypatch, repository
        self.repository = directory / "clone"
        subprocess.run(["git", "clone", "--quiet", repository.path, self.repository], check=True)
        # Where packages are kept may be the user's: nothing of it is in an artifact.
        monkeypatch.setenv("XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"))
        monkeypatch.setenv("HOME", str(self.home))
        self.home.mkdir()

    def sets(self, **variables: str) -> dict[str, str]:
        """Set variables of the environment."""
        for name, value in variables.items():
            self.monkeypatch.setenv(name, value)
        return variables

    def writes(self, name: str, text: str) -> Path:
        """Write a file of the home directory."""
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def git(self, *arguments: str) -> str:
        who = ("-c", "user.name=T", "-c", "user.email=t@example.com")
        done = subprocess.run(
            ["git", "-C", self.repository, *who, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def attributes(self, text: str) -> None:
        (self.repository / ".git/info/attributes").write_text(text)


def replaced(controller: Controller) -> None:
    controller.git("replace", "HEAD:app/data/lines.txt", controller.git("rev-parse", "HEAD:LICENSE"))
    (controller.repository / "app/data/lines.txt").unlink()
    other = controller.git("commit-tree", "-m", "Another", controller.git("mktree"))
    controller.git("replace", "HEAD", other)


def bare(controller: Controller) -> Path:
    mirror = controller.home / "bare.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", controller.repository, mirror], check=True)
    controller.repository = mirror
    return mirror


def attributes_file(controller: Controller) -> None:
    file = controller.writes("all", "*.txt text eol=crlf\n* export-ignore\n")
    controller.writes(".gitconfig", f"[core]\n attributesFile = {file}\n")


def smudges(controller: Controller) -> None:
    controller.writes(".gitconfig", '[filter "loud"]\n smudge = tr a-z A-Z\n required = true\n')
    controller.attributes("*.txt filter=loud\n")


def in_another_repository(controller: Controller) -> None:
    subprocess.run(["git", "init", "--quiet", controller.home / "other"], check=True)
    other = str(controller.home / "other/.git")
    controller.sets(GIT_DIR=other, GIT_WORK_TREE=str(controller.home), GIT_INDEX_FILE=f"{other}/none", GIT_PREFIX="x/")


def umask(controller: Controller) -> None:
    os.umask(0o177)


def above(controller: Controller) -> None:
    for name, text in {
        "uv.toml": 'link-mode = "symlink"\nconfig-settings = {loud = "yes"}\n',
        ".gitignore": "*\n",
        "pyproject.toml": '[tool.uv.workspace]\nmembers = ["**"]\n[tool.uv.sources]\nannotated-doc = {path = "x"}\n',
    }.items():
        controller.writes(f"tmp/{name}", text)
    controller.monkeypatch.setattr("tempfile.tempdir", str(controller.home / "tmp"))


def variables_of_everybody(controller: Controller) -> None:
    controller.sets(
        **{"CFLAGS": "-g", "PYTHONPATH": "/tmp", "PYTHONHASHSEED": "1", "PYTHONUTF8": "0", "PYTHONOPTIMIZE": "2"},
        **{"PIP_NO_BINARY": ":all:", "PIP_CONSTRAINT": "x", "VIRTUAL_ENV": "/nowhere", "CONDA_PREFIX": "/nowhere"},
        **{"SETUPTOOLS_SCM_PRETEND_VERSION": "9", "HATCH_BUILD_HOOKS_ENABLE": "1", "SOURCE_DATE_EPOCH": "1"},
        **{"DIST_EXTRA_CONFIG": "x", "TZ": "Asia/Tokyo", "LANG": "tr_TR.UTF-8", "LC_ALL": "tr_TR.UTF-8", "A": "b"},
    )


def variables_of_uv(controller: Controller) -> None:
    controller.sets(
        **{"UV_LINK_MODE": "symlink", "UV_COMPILE_BYTECODE": "1", "UV_NO_BINARY": "1", "UV_NO_VERIFY_HASHES": "1"},
        **{"UV_EXCLUDE_NEWER": "2015-01-01", "UV_CONSTRAINT": "x", "UV_OVERRIDE": "x", "UV_PYTHON": "3.8"},
        **{"UV_NO_BUILD_ISOLATION": "1", "UV_PROJECT": "/nowhere", "UV_WORKING_DIR": "/", "UV_RESOLUTION": "lowest"},
        **{"UV_SYSTEM_PYTHON": "1", "UV_BUILD_CONSTRAINT": "x", "UV_PYTHON_DOWNLOADS": "automatic"},
    )


SETTINGS = 'link-mode = "symlink"\nconfig-settings = {loud = "yes"}\nexclude-newer = "2015-01-01"\n'


CONTROLLERS: dict[str, Callable[[Controller], object]] = {
    "plain": lambda _: None,
    "core.autocrlf": lambda it: it.writes(".gitconfig", "[core]\n autocrlf = true\n eol = crlf\n"),
    "core.attributesFile": attributes_file,
    "the default attributes file": lambda it: it.writes(".config/git/attributes", "*.txt text eol=crlf\n"),
    "info/attributes": lambda it: it.attributes("*.txt text eol=crlf\n"),
    "info/attributes that ignore": lambda it: it.attributes("data/ export-ignore\n"),
    "a filter": smudges,
    "tar.umask": lambda it: it.writes(".gitconfig", "[tar]\n umask = 0777\n"),
    "core.symlinks": lambda it: it.writes(".gitconfig", "[core]\n symlinks = false\n fileMode = false\n"),
    "what shows": lambda it: it.writes(
        ".gitconfig",
        "[core]\n abbrev = 4\n quotePath = true\n pager = false\n[color]\n ui = always\n[log]\n showSignature = true\n"
        "[i18n]\n logOutputEncoding = UTF-16\n commitEncoding = UTF-16\n[format]\n pretty = raw\n",
    ),
    "replacements": replaced,
    "other refs": lambda it: (it.git("tag", "v9"), it.git("branch", "other")),
    "a shallow clone": lambda it: it.git("fetch", "--quiet", "--depth=1", "origin"),
    "a sparse checkout": lambda it: it.git("sparse-checkout", "set", "nothing"),
    "a dirty working tree": lambda it: (it.repository / "app/data/lines.txt").write_text("changed\n"),
    "a bare repository": bare,
    "bare, explicit only": lambda it: (bare(it), it.writes(".gitconfig", "[safe]\n bareRepository = explicit\n")),
    "GIT_DIR": in_another_repository,
    "GIT_CONFIG_COUNT": lambda it: it.sets(
        GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="core.autocrlf", GIT_CONFIG_VALUE_0="true"
    ),
    "GIT_OBJECT_DIRECTORY": lambda it: it.sets(GIT_OBJECT_DIRECTORY="/nowhere", GIT_COMMON_DIR="/nowhere"),
    "GIT_NAMESPACE": lambda it: it.sets(GIT_NAMESPACE="x", GIT_QUARANTINE_PATH="/nowhere", GIT_ICASE_PATHSPECS="1"),
    "a umask": umask,
    "variables": variables_of_everybody,
    "variables of uv": variables_of_uv,
    "uv.toml of the user": lambda it: it.writes(".config/uv/uv.toml", SETTINGS),
    "uv.toml of the machine": lambda it: (
        it.writes("xdg/uv/uv.toml", SETTINGS),
        it.sets(XDG_CONFIG_DIRS=str(it.home / "xdg")),
    ),
    "UV_CONFIG_FILE": lambda it: it.sets(UV_CONFIG_FILE=str(it.writes("own.toml", SETTINGS))),
    "settings above the temporary folder": above,
}


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return small(tmp_path_factory.mktemp("origin") / "repository")


@pytest.fixture(scope="module")
def reference(artifact: ModuleType, origin: Repository, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build(artifact, origin.path, tmp_path_factory.mktemp("cache"), origin.git("rev-parse", "HEAD"))


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: Repository) -> Iterator[Controller]:
    before = os.umask(0o22)
    os.umask(before)
    yield Controller(tmp_path, monkeypatch, origin)
    os.umask(before)


@pytest.mark.parametrize("kind", CONTROLLERS)
def test_each_controller_makes_the_same_bytes(
    artifact: ModuleType, origin: Repository, reference: Any, controller: Controller, tmp_path: Path, kind: str
) -> None:
    sha = origin.git("rev-parse", "HEAD")
    CONTROLLERS[kind](controller)
    made = build(artifact, controller.repository, tmp_path / "cache", sha)
    for part in ("release", "layer"):
        if made[part]["sha256"] != reference[part]["sha256"]:
            assert contents(made[part]["file"]) == contents(reference[part]["file"])
        assert made[part]["sha256"] == reference[part]["sha256"]


def test_a_release_has_what_git_keeps(reference: Any) -> None:
    """The commit's own attributes have no say either: what `$Format$` becomes depends on the refs of a clone."""
    found = contents(reference["release"]["file"])
    assert found["shop/data/lines.txt"] == found["shop/data/link"] == b"one\ntwo\n$Id$\n$Format:%H %D$\n"
    assert found["shop/data/windows.txt"] == b"one\r\ntwo\r\n"
    assert found["shop/data/ünïcödé näme.py"] == "print('ä')\n".encode()
    with tarfile.open(reference["release"]["file"]) as tar:
        modes = {entry.name.rpartition("/")[2]: entry.mode for entry in tar}
    assert (modes["run.sh"], modes["lines.txt"]) == (0o755, 0o644)
