"""The artifact: built from the commit and its lock alone, the same bytes for the same SHA."""

from __future__ import annotations

import hashlib
import json
import platform
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROLE, Repository, load

PYTHON = "3.11"
MACHINE = platform.machine()


@pytest.fixture(scope="module")
def artifact() -> ModuleType:
    return load(ROLE / "action_plugins/booty_artifact.py", "booty_artifact")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def names(archive: str) -> list[str]:
    with tarfile.open(archive) as tar:
        return tar.getnames()


def test_same_commit_gives_same_bytes(artifact: ModuleType, repository: Repository, tmp_path: Path) -> None:
    sha = repository.git("rev-parse", "HEAD")
    first, second = (
        artifact.build(repository.path, "app", "booty", sha, PYTHON, MACHINE, tmp_path / cache)
        for cache in ("one", "two")
    )
    for part in ("release", "layer"):
        one, two = Path(first[part]["file"]), Path(second[part]["file"])
        assert one != two
        assert one.read_bytes() == two.read_bytes()
        assert hashlib.sha256(one.read_bytes()).hexdigest() == first[part]["sha256"]


def test_layers_are_apart(artifact: ModuleType, repository: Repository, cache: Path) -> None:
    sha = repository.git("rev-parse", "HEAD")
    built = artifact.build(repository.path, "app", "booty", sha, PYTHON, MACHINE, cache)
    release, layer = names(built["release"]["file"]), names(built["layer"]["file"])
    site = f"lib/python{PYTHON}/site-packages"
    assert f"{site}/booty/__main__.py" in release
    assert "fastapi/__init__.py" in layer
    assert not [name for name in release if "fastapi" in name]
    assert not [name for name in release + layer if name.endswith((".pyc", "RECORD", "direct_url.json", "INSTALLER"))]
    assert built["release"]["size"] < 100_000
    with tarfile.open(built["release"]["file"]) as tar:
        assert tar.getmember("bin/python").linkname == "/usr/bin/python3"
        assert tar.getmember("bin/serve").mode == 0o755
        pth, manifest = (tar.extractfile(name) for name in (f"{site}/layer.pth", "release.json"))
        assert pth
        assert pth.read().decode() == f"/opt/booty/layers/{built['layer']['name']}\n"
        assert manifest
        assert json.load(manifest) == {"release": sha, "layer": built["layer"]["name"], "python": PYTHON}
        assert {entry.mode for entry in tar.getmembers() if entry.isfile()} <= {0o644, 0o755}
        assert {(entry.uid, entry.gid) for entry in tar.getmembers()} == {(0, 0)}


def test_a_change_of_the_app_keeps_the_layer(artifact: ModuleType, repository: Repository, cache: Path) -> None:
    first = artifact.build(repository.path, "app", "booty", repository.git("rev-parse", "HEAD"), PYTHON, MACHINE, cache)
    repository.write("app/src/booty/extra.py", "")
    second = artifact.build(repository.path, "app", "booty", repository.commit("More"), PYTHON, MACHINE, cache)
    assert second["layer"] == first["layer"]
    assert second["release"]["sha256"] != first["release"]["sha256"]
    assert f"lib/python{PYTHON}/site-packages/booty/extra.py" in names(second["release"]["file"])


def test_the_working_tree_does_not_leak_in(artifact: ModuleType, repository: Repository, cache: Path) -> None:
    sha = repository.git("rev-parse", "HEAD")
    assert not artifact.dirty(repository.path, "app")
    repository.write("app/src/booty/leak.py", "")
    assert artifact.dirty(repository.path, "app")
    built = artifact.build(repository.path, "app", "booty", sha, PYTHON, MACHINE, cache)
    assert not [name for name in names(built["release"]["file"]) if "leak" in name]


def test_resolves_what_git_knows(artifact: ModuleType, repository: Repository) -> None:
    sha = repository.git("rev-parse", "HEAD")
    repository.git("tag", "v1")
    repository.git("-c", "user.name=T", "-c", "user.email=t@example.com", "tag", "-a", "v2", "-m", "annotated")
    for name in (sha, sha[:8], "v1", "v2", "main", "HEAD"):
        assert artifact.resolve(repository.path, name) == sha


@pytest.mark.parametrize("name", ["nowhere", "0" * 40, "--all", "HEAD~99", ""])
def test_unknown_release_is_refused(artifact: ModuleType, repository: Repository, name: str) -> None:
    with pytest.raises(artifact.BuildError, match=r"(?s)names no single commit of .*fetch it first") as refusal:
        artifact.resolve(repository.path, name)
    assert "The bundled app" in str(refusal.value)


def test_no_repository_is_said(artifact: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(artifact.BuildError, match="not a git repository"):
        artifact.resolve(tmp_path, "HEAD")


@pytest.mark.parametrize("missing", ["requirements.txt", "pyproject.toml"])
def test_what_a_release_needs_is_said(artifact: ModuleType, repository: Repository, cache: Path, missing: str) -> None:
    repository.git("rm", "--quiet", f"app/{missing}")
    sha = repository.commit("Break it")
    with pytest.raises(artifact.BuildError, match=f"has no app/{missing}: a release needs"):
        artifact.build(repository.path, "app", "booty", sha, PYTHON, MACHINE, cache)


def test_a_lock_without_hashes_is_refused(artifact: ModuleType, repository: Repository, cache: Path) -> None:
    repository.write("app/requirements.txt", "fastapi==0.165.0\n")
    with pytest.raises(artifact.BuildError, match="hash"):
        artifact.build(repository.path, "app", "booty", repository.commit("Unlock"), PYTHON, MACHINE, cache)


def test_an_unsupported_machine_is_refused(artifact: ModuleType, repository: Repository, tmp_path: Path) -> None:
    sha = repository.git("rev-parse", "HEAD")
    with pytest.raises(artifact.BuildError, match="The host is armv7l"):
        artifact.build(repository.path, "app", "booty", sha, PYTHON, "armv7l", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
