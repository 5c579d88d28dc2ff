"""The artifact: built from the commit and its lock alone, the same bytes for the same SHA."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import ModuleType

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.conftest import ROLE, ROOT, Repository, load

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
    # As another controller has it; a store holds one file for both.
    repository.git("clone", "--quiet", ".", str(tmp_path / "clone"))
    first, second = (
        artifact.build(path, "app", "booty", sha, PYTHON, MACHINE, tmp_path / cache)
        for path, cache in ((repository.path, "one"), (tmp_path / "clone", "two"))
    )
    for part in ("release", "layer"):
        one, two = Path(first[part]["file"]), Path(second[part]["file"])
        assert one != two
        assert one.name == two.name
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
        assert pth.read().decode() == f"import site; site.addsitedir('/opt/booty/layers/{built['layer']['name']}')\n"
        assert manifest
        made_from = {"python": PYTHON, "path": "app", "module": "booty"}
        assert json.load(manifest) == {"release": sha, "layer": built["layer"]["name"], **made_from}
        assert {entry.mode for entry in tar.getmembers() if entry.isfile()} <= {0o644, 0o755}
        assert {(entry.uid, entry.gid) for entry in tar.getmembers()} == {(0, 0)}


def test_a_change_of_the_app_keeps_the_layer(artifact: ModuleType, repository: Repository, cache: Path) -> None:
    first = artifact.build(repository.path, "app", "booty", repository.git("rev-parse", "HEAD"), PYTHON, MACHINE, cache)
    repository.write("app/src/booty/extra.py", "")
    second = artifact.build(repository.path, "app", "booty", repository.commit("More"), PYTHON, MACHINE, cache)
    assert second["layer"] == first["layer"]
    assert second["release"]["sha256"] != first["release"]["sha256"]
    assert f"lib/python{PYTHON}/site-packages/booty/extra.py" in names(second["release"]["file"])


def test_the_cache_forgets_what_is_not_used(artifact: ModuleType, repository: Repository, tmp_path: Path) -> None:
    """The release of another commit and the rest of a killed build go after 30 days, the layer in use does not."""
    cache = tmp_path / "cache"

    def build(sha: str) -> list[Path]:
        built = artifact.build(repository.path, "app", "booty", sha, PYTHON, MACHINE, cache)
        return [Path(built[part]["file"]) for part in ("release", "layer")]

    old, layer = build(repository.git("rev-parse", "HEAD"))
    (cache / "releases" / "killed.tar.gz.partial").write_text("half")
    for days, kept in ((29, True), (31, False)):
        for path in cache.glob("*/*"):
            os.utime(path, (time.time() - days * 86400,) * 2)
        size, at = layer.stat().st_size, layer.stat().st_mtime
        repository.write("app/src/booty/extra.py", f"# {days}")
        build(repository.commit("More"))
        assert {path.exists() for path in (old, cache / "releases" / "killed.tar.gz.partial")} == {kept}
        assert (layer.stat().st_size, layer.stat().st_mtime) == (size, at)
    assert list((cache / "releases").glob(f"{old.name.removesuffix('.tar.gz')}*")) == []


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


@pytest.mark.parametrize(
    ("dependency", "fault"),
    [
        ("fastapi>=0.100", None),
        ("Pydantic_Settings", None),
        ('tomli; python_version < "3.11"', None),
        ('pywin32; sys_platform == "win32"', None),
        ("fastapi>=1.0", "wants fastapi>=1.0, but 0."),
        ("fastapi==0.1.*", "wants fastapi==0.1.*, but 0."),
        ("httpx", "wants httpx, which is not locked"),
        ('tomli; python_version >= "3.11"', "which is not locked"),
    ],
)
def test_a_lock_out_of_date_is_seen(artifact: ModuleType, dependency: str, fault: str | None) -> None:
    locked = artifact.pins((ROOT / "app/requirements.txt").read_text(), PYTHON, MACHINE)
    found = artifact.outdated([dependency], locked, PYTHON, MACHINE)
    assert fault in found if fault else found == ""


@pytest.mark.parametrize("line", ["a==1 \\", "a==1 --hash=sha256:00 \\", 'a==1 ; python_version < "4" \\', "A==1\\"])
def test_a_line_of_a_lock_is_read(artifact: ModuleType, line: str) -> None:
    via = "    # via\n    #   b\n    #   c-d (pyproject.toml)\n"
    lock = f"# a comment\n--only-binary :all:\n{line}\n    --hash=sha256:01\n{via}"
    ((name, pin),) = artifact.pins(lock, PYTHON, MACHINE).items()
    assert (name, pin.version) == ("a", "1")
    assert {"b", "c-d"} <= pin.wanted_by


def test_the_bill_of_materials(artifact: ModuleType, repository: Repository, tmp_path: Path) -> None:
    sha = repository.git("rev-parse", "HEAD")
    texts = []
    for cache in ("one", "two"):
        built = artifact.build(repository.path, "app", "booty", sha, PYTHON, MACHINE, tmp_path / cache)
        beside = Path(built["release"]["file"].replace(".tar.gz", ".cdx.json")).read_bytes()
        with tarfile.open(built["release"]["file"]) as tar:
            inside = tar.extractfile("sbom.cdx.json")
            assert inside
            assert inside.read() == beside
        texts.append(beside.decode())
    assert texts[0] == texts[1]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(texts[0]) is None
    told = json.loads(texts[0])
    assert told["metadata"]["component"] == {"bom-ref": "booty", "name": "booty", "type": "application", "version": sha}
    # It names what the layer holds, and nothing of another system.
    there = {
        match[1] for name in names(built["layer"]["file"]) if (match := re.match(r"([^/]+)\.dist-info/METADATA", name))
    }
    assert {f"{part['name'].replace('-', '_')}-{part['version']}" for part in told["components"]} == there
    wants = {
        one["ref"].partition("@")[0]: {ref.partition("@")[0] for ref in one.get("dependsOn", [])}
        for one in told["dependencies"]
    }
    assert wants["booty"] == {"fastapi", "httptools", "psycopg", "pydantic-settings", "sentry-sdk", "uvicorn", "uvloop"}
    assert "starlette" in wants["fastapi"]


def test_the_lock_can_be_audited() -> None:
    """As docs/security.md says it, but for the question itself, which goes to a service on the internet."""
    command = re.search(r"^pip-audit (.*app/requirements.txt)$", (ROOT / "docs/security.md").read_text(), re.MULTILINE)
    assert command
    audit = [str(Path(sys.executable).parent / "pip-audit"), *command[1].split(), "--dry-run"]
    done = subprocess.run(audit, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Those of another system are passed over.
    locked = re.findall(r"^[a-z](?!.*win32)", (ROOT / "app/requirements.txt").read_text(), re.MULTILINE)
    assert f"would have audited {len(locked)} packages" in done.stderr


def test_an_unsupported_machine_is_refused(artifact: ModuleType, repository: Repository, tmp_path: Path) -> None:
    sha = repository.git("rev-parse", "HEAD")
    with pytest.raises(artifact.BuildError, match="The host is armv7l"):
        artifact.build(repository.path, "app", "booty", sha, PYTHON, "armv7l", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
