"""The artifact is built from the commit and its lock alone, and has the same bytes for the same SHA."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import build, git, lock, process
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.conftest import MACHINE, PYTHON, ROOT, Repository, artifact, names

HOST = lock.Host(f"{PYTHON}.0", MACHINE)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_same_commit_gives_same_bytes(repository: Repository, tmp_path: Path) -> None:
    sha = repository.git("rev-parse", "HEAD")
    # The clone stands for another controller. Both must build one file, so that a store holds it once.
    repository.git("clone", "--quiet", ".", str(tmp_path / "clone"))
    first, second = (
        artifact(path, sha, tmp_path / cache) for path, cache in ((repository.path, "one"), (tmp_path / "clone", "two"))
    )
    for part in ("release", "layer", "runner"):
        one, two = Path(first[part]["file"]), Path(second[part]["file"])
        assert one != two
        assert one.name == two.name
        assert one.read_bytes() == two.read_bytes()
        assert hashlib.sha256(one.read_bytes()).hexdigest() == first[part]["sha256"]


def test_dependencies_and_runner_are_in_layers_of_their_own(repository: Repository, cache: Path) -> None:
    sha = repository.git("rev-parse", "HEAD")
    built = artifact(repository.path, sha, cache)
    release, layer, runner = (names(built[part]["file"]) for part in ("release", "layer", "runner"))
    site = f"lib/python{PYTHON}/site-packages"
    assert f"{site}/booty/main.py" in release
    assert {"booty_runner/__main__.py", "booty_runner/_vendor/uvloop/__init__.py"} <= {*runner}
    assert not [name for name in [*release, *layer] if name.startswith(("booty_runner", "uvloop"))]
    assert "fastapi/__init__.py" in layer
    assert not [name for name in release if "fastapi/" in name]
    assert not [
        name for name in release + layer + runner if name.endswith((".pyc", "RECORD", "direct_url.json", "INSTALLER"))
    ]
    assert built["release"]["size"] < 100_000
    with tarfile.open(built["release"]["file"]) as tar:
        assert tar.getmember("bin/python").linkname == "/usr/bin/python3"
        assert tar.getmember("bin/serve").mode == 0o755
        pth, manifest = (tar.extractfile(name) for name in (f"{site}/layer.pth", "release.json"))
        assert pth
        layers = [built[part]["name"] for part in ("layer", "runner")]
        assert pth.read().decode() == (
            "import sys; sys.prefix = sys.exec_prefix = sys.prefix.removesuffix('/venv') + '/venv'\n"
            "import os, sys; sys.path += filter(None, [os.environ.get('BOOTY_CONFIG_DIR')])\n"
            "import os, sys; sys.path.append(os.path.dirname(sys.prefix) + '/tree/app')\n"
        ) + "".join(
            f"import os, site, sys; site.addsitedir(os.path.normpath(sys.prefix + '/../../../layers/{layer}'))\n"
            for layer in layers
        )
        serve = tar.extractfile("bin/serve")
        assert serve
        assert serve.read().endswith(b"-P -m booty_runner 'booty.main:create_app()' \"$@\"\n")
        assert manifest
        assert json.load(manifest) == {
            **{"release": sha, "python": PYTHON, "contract": 3, "layer": layers[0], "runner": layers[1]},
            **{"path": "app", "serve": "booty.main:create_app()", "import_paths": [], "state_paths": []},
            **{"health": {"path": "/health", "host": ""}, "lock": "requirements.txt", "extras": [], "groups": []},
            "dotenv": False,
            "release_command": [],
            "post_deploy_command": [],
            "packages": [],
            "static": {},
            "build": [],
            "build_settings": [],
            "build_settings_hash": "",
            "processes": {},
            "timers": {},
            "found": [
                "serves booty.main:create_app() ([tool.booty] in pyproject.toml)",
                "lock: requirements.txt, with hashes",
            ],
        }
        assert {entry.mode for entry in tar.getmembers() if entry.isfile()} <= {0o644, 0o755}
        assert {(entry.uid, entry.gid) for entry in tar.getmembers()} == {(0, 0)}


def test_a_change_of_the_app_keeps_the_layer(repository: Repository, cache: Path) -> None:
    first = artifact(repository.path, repository.git("rev-parse", "HEAD"), cache)
    repository.write("app/src/booty/extra.py", "")
    second = artifact(repository.path, repository.commit("More"), cache)
    assert second["layer"] == first["layer"]
    assert second["release"]["sha256"] != first["release"]["sha256"]
    assert f"lib/python{PYTHON}/site-packages/booty/extra.py" in names(second["release"]["file"])


def test_unused_archives_leave_the_cache(repository: Repository, tmp_path: Path) -> None:
    """After 30 days an old release and the file of a killed build are removed, and the layer in use stays."""
    cache = tmp_path / "cache"

    def archives(sha: str) -> list[Path]:
        built = artifact(repository.path, sha, cache)
        return [Path(built[part]["file"]) for part in ("release", "layer")]

    old, layer = archives(repository.git("rev-parse", "HEAD"))
    (cache / "releases" / "killed.tar.gz.partial").write_text("half")
    for days, kept in ((29, True), (31, False)):
        for path in cache.glob("*/*"):
            os.utime(path, (time.time() - days * 86400,) * 2)
        size, at = layer.stat().st_size, layer.stat().st_mtime
        repository.write("app/src/booty/extra.py", f"# {days}")
        archives(repository.commit("More"))
        assert {path.exists() for path in (old, cache / "releases" / "killed.tar.gz.partial")} == {kept}
        assert (layer.stat().st_size, layer.stat().st_mtime) == (size, at)
    assert list((cache / "releases").glob(f"{old.name.removesuffix('.tar.gz')}*")) == []


def test_the_working_tree_does_not_leak_in(repository: Repository, cache: Path) -> None:
    sha = repository.git("rev-parse", "HEAD")
    assert not git.dirty(repository.path, "app")
    repository.write("app/src/booty/leak.py", "")
    assert git.dirty(repository.path, "app")
    built = artifact(repository.path, sha, cache)
    assert not [name for name in names(built["release"]["file"]) if "leak" in name]


def test_names_of_a_commit_are_resolved(repository: Repository) -> None:
    sha = repository.git("rev-parse", "HEAD")
    repository.git("tag", "v1")
    repository.git("-c", "user.name=T", "-c", "user.email=t@example.com", "tag", "-a", "v2", "-m", "annotated")
    for name in (sha, sha[:8], "v1", "v2", "main", "HEAD"):
        assert git.resolve(repository.path, name) == sha


def test_the_line_on_a_commit(repository: Repository, tmp_path: Path) -> None:
    sha = repository.git("rev-parse", "HEAD")
    repository.git("config", "user.name", "Ann\x1b[2J")
    repository.git("config", "user.email", "ann@example.com")
    repository.git("commit", "--quiet", "--allow-empty", "-m", "Round \x1b[31mthe total\n\nMore.")
    newer = repository.git("rev-parse", "HEAD")
    line = f"commit {newer[:9]} Ann: Round the total"
    # Without a remote, nothing can be pushed.
    assert git.subject(repository.path, newer) == line
    repository.git("clone", "--quiet", "--bare", str(repository.path), str(tmp_path / "remote"))
    repository.git("remote", "add", "origin", str(tmp_path / "remote"))
    assert git.subject(repository.path, newer) == line
    repository.git("fetch", "--quiet", "origin")
    assert git.subject(repository.path, newer) == line
    repository.git("commit", "--quiet", "--allow-empty", "-m", "Not there")
    newest = repository.git("rev-parse", "HEAD")
    assert git.subject(repository.path, newest).endswith("Not there (not pushed: no branch of the remote has it)")
    assert "not pushed" not in git.subject(repository.path, sha)
    repository.git("tag", "v1")
    assert "not pushed" not in git.subject(repository.path, newest)


@pytest.mark.parametrize("name", ["nowhere", "0" * 40, "--all", "HEAD~99", ""])
def test_unknown_release_is_refused(repository: Repository, name: str) -> None:
    with pytest.raises(process.BuildError, match=r"(?s)names no single commit of .*fetch it first") as refusal:
        git.resolve(repository.path, name)
    assert "The bundled app" in str(refusal.value)


def test_a_path_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(process.BuildError, match="not a git repository"):
        git.resolve(tmp_path, "HEAD")


@pytest.mark.parametrize(
    ("dependency", "problem"),
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
def test_a_lock_out_of_date_is_refused(dependency: str, problem: str | None) -> None:
    locked = lock.packages_in((ROOT / "app/requirements.txt").read_text(), HOST, "app")
    outdated = lock.outdated([dependency], locked, HOST)
    assert problem in outdated if problem else outdated == ""


@pytest.mark.parametrize("line", ["a==1 \\", "a==1 --hash=sha256:00 \\", 'a==1 ; python_version < "4" \\', "A==1\\"])
def test_spellings_of_a_line_of_a_lock(line: str) -> None:
    via = "    # via\n    #   b\n    #   c-d (pyproject.toml)\n"
    text = f"# a comment\n--only-binary :all:\n{line}\n    --hash=sha256:01\n{via}"
    ((name, package),) = lock.packages_in(text, HOST, ".").items()
    assert (name, package.version) == ("a", "1")
    assert {"b", "c-d"} <= package.required_by


def test_the_bill_of_materials(repository: Repository, tmp_path: Path) -> None:
    sha = repository.git("rev-parse", "HEAD")
    texts = []
    for cache in ("one", "two"):
        built = artifact(repository.path, sha, tmp_path / cache)
        beside = Path(built["release"]["file"].replace(".tar.gz", ".cdx.json")).read_bytes()
        with tarfile.open(built["release"]["file"]) as tar:
            inside = tar.extractfile("sbom.cdx.json")
            assert inside
            assert inside.read() == beside
        texts.append(beside.decode())
    assert texts[0] == texts[1]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(texts[0]) is None
    bill = json.loads(texts[0])
    assert bill["metadata"]["component"] == {"bom-ref": "booty", "name": "booty", "type": "application", "version": sha}
    # The bill lists the packages of the layers, and none for another system.
    layers = [*names(built["layer"]["file"]), *names(built["runner"]["file"])]
    place = r"([^/]+)\.dist-info/METADATA|booty_runner/_vendor/licenses/([^/]+)"
    shipped = {match[1] or match[2] for name in layers if (match := re.match(place, name))}
    parts = {part["bom-ref"]: part for part in bill["components"]}
    runner = parts.pop("booty-runner/")
    assert {f"{part['name'].replace('-', '_')}-{part['version']}" for part in parts.values()} == shipped
    wants = {
        dependency["ref"].partition("@")[0]: {ref.partition("@")[0] for ref in dependency.get("dependsOn", [])}
        for dependency in bill["dependencies"]
    }
    assert wants["booty"] == {"fastapi", "psycopg", "pydantic-settings", "sentry-sdk", runner["bom-ref"]}
    assert "starlette" in wants["fastapi"]
    # The runner has packages of its own, in versions of its own.
    assert {"booty-runner/uvicorn", "booty-runner/sentry-sdk"} <= wants["booty-runner/"]
    assert wants["booty-runner/sentry-sdk"] == {"booty-runner/certifi", "booty-runner/urllib3"}
    old = {"certifi": lock.Package("certifi", "2019.11.28"), "urllib3": lock.Package("urllib3", "1.25.11")}
    new = lock.packages_in((ROOT / "runner/requirements.txt").read_text(), HOST, ".")
    both = json.loads(lock.bill("shop", old, new, sha, 0))
    versions = sorted(part["version"] for part in both["components"] if part["name"] == "urllib3")
    assert versions == ["1.25.11", new["urllib3"].version]


def test_the_lock_can_be_audited() -> None:
    """Runs the command of docs/security.md with --dry-run: without it pip-audit asks a service on the internet."""
    command = re.search(r"^pip-audit (.*app/requirements.txt)$", (ROOT / "docs/security.md").read_text(), re.MULTILINE)
    assert command
    audit = [str(Path(sys.executable).parent / "pip-audit"), *command[1].split(), "--dry-run"]
    done = subprocess.run(audit, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # pip-audit skips packages for another system.
    locks = ((ROOT / folder / "requirements.txt").read_text() for folder in ("runner", "app"))
    locked = {name for text in locks for name in re.findall(r"^[a-z][\w-]+(?!.*win32)", text, re.MULTILINE)}
    assert f"would have audited {len(locked)} packages" in done.stderr


def test_an_unsupported_machine_is_refused(repository: Repository, tmp_path: Path) -> None:
    sha = repository.git("rev-parse", "HEAD")
    with pytest.raises(process.BuildError, match="The host is armv7l"):
        build.build(repository.path, {}, sha, lock.Host("3.11.2", "armv7l"), tmp_path / "cache", "booty")
    assert not (tmp_path / "cache").exists()


def test_a_folder_of_app_static_is_there_once_the_build_has_ended(repository: Repository, cache: Path) -> None:
    sha = repository.git("rev-parse", "HEAD")
    with pytest.raises(process.BuildError) as error:
        artifact(repository.path, sha, cache, static={"/static/": "dist"})
    assert str(error.value) == (
        f"app_static: app/dist of commit {sha[:12]} is missing, and the commands of app_build don't make it. Write for"
        " /static/ a folder that is there after the build, relative to app_path."
    )
    built = artifact(repository.path, sha, cache, static={"/static/": "dist"}, build=["mkdir dist; echo 1 > dist/a.js"])
    assert "tree/app/dist/a.js" in names(built["release"]["file"])
