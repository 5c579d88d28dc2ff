"""Every kind of lock becomes one list of hashed packages for a host's Python, and is installed from it."""

from __future__ import annotations

import functools
import http.server
import json
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import (
    describe,
    formats,
    git,
    lock,
    locks,
    process,
)
from uv import find_uv_bin

from tests.conftest import MACHINE, PYTHON, artifact, names
from tests.test_detect import FASTAPI, commit

HASHES = {
    "itsdangerous": "sha256:c6242fc49e35958c8b15141343aa660db5fc54d4f13a1db01a3f5891b98700ef",
    "blinker": "sha256:ba0efaa9080b619ff2f3459d1d500c57bddea4a6b424b60a91141db6fd2f08bc",
    "click": "sha256:63c132bbbed01578a06712a2d1f497bb62d9c1c0d329b7903a866228027263b2",
}
PINS = {"itsdangerous": "2.2.0", "blinker": "1.9.0", "click": "8.1.8"}
APP = {"main.py": "import itsdangerous\nasync def app(scope, receive, send):\n    pass\n"}
DECLARED = """
[project]
name = "shop"
version = "1"
dependencies = ["itsdangerous"]
[project.optional-dependencies]
web = ["blinker"]
[dependency-groups]
cli = ["click"]
"""


def entry(name: str, *lines: str) -> str:
    return "\n".join(["[[package]]", f'name = "{name}"', f'version = "{PINS.get(name, "1")}"', *lines, ""])


def files(name: str) -> str:
    return f'files = [{{file = "{name}-{PINS.get(name, "1")}.whl", hash = "{HASHES.get(name, "sha256:00")}"}}]'


def pipenv(name: str, **more: str) -> dict[str, object]:
    return {"version": f"=={PINS.get(name, '1')}", "hashes": [HASHES.get(name, "sha256:00")], **more}


def pylock(name: str, marker: str = "") -> str:
    wheel = f'wheels = [{{name = "x.whl", hashes = {{sha256 = "{HASHES.get(name, "sha256:00")[7:]}"}}}}]'
    return "\n".join(
        [
            "[[packages]]",
            f'name = "{name}"',
            f'version = "{PINS.get(name, "1")}"',
            *([marker] if marker else []),
            wheel,
            "",
        ]
    )


POETRY = """
[tool.poetry]
name = "shop"
package-mode = false
[tool.poetry.dependencies]
python = "^3.11"
itsdangerous = "^2.1"
blinker = {version = "*", optional = true}
windows = {version = "*", platform = "win32"}
old = {version = "*", python = "<3.9"}
[tool.poetry.extras]
web = ["blinker"]
[tool.poetry.group.cli.dependencies]
click = "^8.1"
"""
LOCKS: dict[str, dict[str, str]] = {
    "pylock.toml": {
        "pyproject.toml": DECLARED,
        "pylock.toml": 'lock-version = "1.0"\n'
        + pylock("itsdangerous")
        + pylock("blinker", "marker = \"'web' in extras\"")
        + pylock("click", "marker = \"'cli' in dependency_groups\"")
        + pylock("windows", "marker = \"sys_platform == 'win32'\""),
    },
    "pdm.lock": {
        "pyproject.toml": DECLARED,
        "pdm.lock": entry("itsdangerous", 'groups = ["default"]', files("itsdangerous"))
        + entry("blinker", 'groups = ["web"]', files("blinker"))
        + entry("click", 'groups = ["cli"]', files("click"))
        + entry("click", 'groups = ["cli"]', 'extras = ["x"]', files("click"))
        + entry("windows", 'groups = ["default"]', "marker = \"sys_platform == 'win32'\"", files("windows")),
    },
    "Pipfile.lock": {
        "Pipfile": "",
        "Pipfile.lock": json.dumps(
            {
                "default": {
                    "itsdangerous": pipenv("itsdangerous", markers="python_version >= '3.8'"),
                    "windows": pipenv("windows", markers="sys_platform == 'win32'"),
                    "blinker": pipenv("blinker", markers="extra == 'web'"),
                },
                "cli": {"click": pipenv("click")},
            }
        ),
    },
    "poetry.lock": {
        "pyproject.toml": POETRY,
        "poetry.lock": entry("itsdangerous", files("itsdangerous"))
        + entry("blinker", "optional = true", files("blinker"))
        + entry(
            "click",
            files("click"),
            "[package.dependencies]",
            'colorama = {version = "*", markers = "os_name == \'nt\'"}',
        )
        + entry("unused", files("unused")),
    },
    "poetry.lock of Poetry 2.1": {
        "pyproject.toml": DECLARED,
        "poetry.lock": entry("itsdangerous", 'groups = ["main"]', files("itsdangerous"))
        + entry("blinker", "optional = true", 'groups = ["main"]', "markers = \"extra == 'web'\"", files("blinker"))
        + entry("click", 'groups = ["cli", "dev"]', files("click"))
        + entry("windows", 'groups = ["main"]', "markers = \"sys_platform == 'win32'\"", files("windows")),
    },
    "poetry.lock of Poetry 1.1": {
        "pyproject.toml": POETRY,
        "poetry.lock": entry("itsdangerous")
        + entry("blinker", "optional = true")
        + entry("click")
        + "[metadata.files]\n"
        + "".join(f"{name} = [{{file = 'x', hash = '{value}'}}]\n" for name, value in HASHES.items()),
    },
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache for all tests, so that the runner's layer is built once."""
    return tmp_path_factory.mktemp("cache")


def text(archive: str, name: str) -> str:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(name)
        assert file
        return file.read().decode()


@pytest.mark.parametrize("kind", LOCKS)
@pytest.mark.parametrize("more", [False, True], ids=["alone", "with extras and groups"])
def test_a_lock_of_another_tool(tmp_path: Path, cache: Path, kind: str, more: bool) -> None:
    sha = commit(tmp_path, {**APP, **LOCKS[kind]})
    chosen = {"lock_extras": ["web"], "lock_groups": ["cli"]} if more else {}
    built = artifact(tmp_path, sha, cache, ".", f"{PYTHON}.2", **chosen)
    inside = {name.partition("/")[0] for name in names(built["layer"]["file"])}
    wanted = [*PINS] if more else ["itsdangerous"]
    assert inside == {part for name in wanted for part in (name, f"{name}-{PINS[name]}.dist-info")}
    components = json.loads(text(built["release"]["file"], "sbom.cdx.json"))["components"]
    assert {f"pkg:pypi/{name}@{PINS[name]}" for name in wanted} <= {each.get("purl") for each in components}


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        ("^1.2", "1.9", "2.0"),
        ("^0.2.3", "0.2.9", "0.3"),
        ("^0.0.3", "0.0.3", "0.0.4"),
        ("~1.2", "1.2.9", "1.3"),
        ("~1", "1.9", "2.0"),
        ("1.2.*", "1.2.3", "1.3"),
        ("1.2", "1.2", "1.2.1"),
        (">=1,<2", "1.5", "2"),
        (">=1 <2", "1.5", "2"),
        ("^1 || ^3", "3.1", "2.0"),
        ("*", "9", ""),
        ("^3.11,<3.13", "3.12", "3.13"),
        ("=1.0", "1.0", "1.1"),
        ("~=1.2", "1.9", "2.0"),
        ("!=1.5", "1.4", "1.5"),
    ],
)
def test_constraints_of_poetry(constraint: str, good: str, bad: str) -> None:
    assert formats.within(constraint, good)
    assert not bad or not formats.within(constraint, bad)


def test_markers_are_those_of_the_exact_python(tmp_path: Path, cache: Path) -> None:
    """Redis wants async-timeout below Python 3.11.3, and Debian 12 has 3.11.2."""
    line = f"itsdangerous==2.2.0 ; python_full_version < '3.11.3' --hash={HASHES['itsdangerous']}\n"
    sha = commit(tmp_path, {**APP, "requirements.txt": line})
    description = describe.describe(tmp_path, sha, ".", {})
    for python, found in (("3.11.2", ["itsdangerous"]), ("3.11.4", [])):
        work = locks.Work(git.Tree(tmp_path, sha), ".", tmp_path, cache, 0)
        assert [*locks.read(work, description, lock.Host(python, MACHINE)).packages] == found


PLAIN = '[build-system]\nrequires = ["uv_build"]\nbuild-backend = "uv_build"\n'


def uv_lock(folder: Path) -> None:
    subprocess.run([find_uv_bin(), "lock", "--quiet"], cwd=folder, check=True)


def test_a_workspace_with_a_lock_above_and_shared_folders(tmp_path: Path, cache: Path) -> None:
    member = (
        '[project]\nname = "api"\nversion = "1"\nrequires-python = ">=3.11"\n'
        'dependencies = ["core", "prices", "itsdangerous==2.2.0"]\n[dependency-groups]\ndev = ["click"]\n'
        "[tool.uv.sources]\ncore = {workspace = true}\nprices = {path = '../../libs/prices'}\n"
    )
    tree = {
        "pyproject.toml": '[project]\nname = "root"\nversion = "0"\nrequires-python = ">=3.11"\n'
        '[tool.uv]\npackage = false\n[tool.uv.workspace]\nmembers = ["packages/*"]\n',
        "packages/api/pyproject.toml": member,
        "packages/api/main.py": FASTAPI,
        "packages/core/pyproject.toml": f'[project]\nname = "core"\nversion = "1"\n{PLAIN}',
        "packages/core/src/core/__init__.py": "",
        "libs/prices/pyproject.toml": f'[project]\nname = "prices"\nversion = "1"\n{PLAIN}',
        "libs/prices/src/prices/__init__.py": "",
        "packages/other/pyproject.toml": '[project]\nname = "other"\nversion = "1"\ndependencies = ["blinker"]\n',
    }
    for name, content in tree.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    uv_lock(tmp_path)
    sha = commit(tmp_path, {})
    description = describe.describe(tmp_path, sha, "packages/api", {})
    assert description["found"][1] == "lock: ../../uv.lock"
    built = artifact(tmp_path, sha, cache, "packages/api")
    release, layer = names(built["release"]["file"]), names(built["layer"]["file"])
    site = f"lib/python{PYTHON}/site-packages"
    assert {f"{site}/core/__init__.py", f"{site}/prices/__init__.py", "tree/libs/prices/pyproject.toml"} <= {*release}
    assert {name.partition("/")[0].partition("-")[0] for name in layer} == {"itsdangerous"}
    components = json.loads(text(built["release"]["file"], "sbom.cdx.json"))["components"]
    assert {"core", "prices", "itsdangerous"} <= {each["name"] for each in components}
    # A change of a member's dependencies without `uv lock`.
    (tmp_path / "packages/api/pyproject.toml").write_text(
        member.replace("==2.2.0", "==2.2.0', 'blinker").replace("'", '"')
    )
    with pytest.raises(process.BuildError) as refusal:
        artifact(tmp_path, commit(tmp_path, {}), cache, "packages/api")
    assert "pyproject.toml wants blinker, which is not locked in uv.lock. Lock again there, and commit: uv lock" in str(
        refusal.value
    )


def test_dependencies_without_a_lock_are_those_of_the_commits_day(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2023-06-01T12:00:00Z")
    sha = commit(
        tmp_path,
        {
            **APP,
            "requirements.txt": "-r more.txt\n",
            "more.txt": "itsdangerous\n-c limits.txt\n",
            "limits.txt": "itsdangerous<2.1.2\nclick==1\n",
        },
    )
    (tmp_path / "one").mkdir()
    first = artifact(tmp_path, sha, tmp_path / "one", ".")
    assert "itsdangerous-2.1.1.dist-info/METADATA" in names(first["layer"]["file"])
    (kept,) = (tmp_path / "one/locks").glob(f"{sha}-*.txt")
    assert "click" not in kept.read_text()
    second = artifact(tmp_path, sha, tmp_path / "two", ".")
    assert [first[part]["sha256"] for part in ("layer", "release")] == [
        second[part]["sha256"] for part in ("layer", "release")
    ]
    # The same commit keeps its result, even if the index has something else by now.
    kept.write_text(kept.read_text().replace("2.1.1", "2.1.0"))
    with pytest.raises(process.BuildError, match=r"itsdangerous==2\.1\.0"):
        artifact(tmp_path, sha, tmp_path / "one", ".")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve an index without upload dates, with the package `tiny` as a wheel and as a source."""
    project = tmp_path / "tiny"
    folder = tmp_path / "index/simple/tiny"
    (project / "src/tiny").mkdir(parents=True)
    (project / "src/tiny/__init__.py").write_text("")
    (project / "pyproject.toml").write_text(f'[project]\nname = "tiny"\nversion = "1"\n{PLAIN}')
    subprocess.run([find_uv_bin(), "build", "--quiet", "--wheel", "--out-dir", folder, project], check=True)
    (wheel,) = folder.glob("*.whl")
    (folder / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "index"))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/simple"
        server.shutdown()
        thread.join()


def test_an_index_without_upload_dates_is_named(
    tmp_path: Path, cache: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting of the controller overrides the index in the file, which does not answer."""
    (tmp_path / "shop").mkdir()
    sha = commit(tmp_path / "shop", {**APP, "requirements.txt": "-i http://127.0.0.1:9/simple\ntiny\n"})
    artifact(tmp_path / "shop", commit(tmp_path / "shop", {"requirements.txt": ""}), cache, ".")  # the runner's layer
    monkeypatch.setenv("UV_DEFAULT_INDEX", index)
    for _ in range(2):
        built = artifact(tmp_path / "shop", sha, cache, ".")
        assert "tiny/__init__.py" in names(built["layer"]["file"])
        (notice,) = built["notices"]
        assert notice.startswith(
            "The index gives no upload dates, so requirements.txt was resolved to its newest packages"
        )


UUID = "uuid==1.30 --hash=sha256:1f87cc004ac5120466f36c5beae48b4c48cc411968eed0eaecd3da82aa96193f\n"
LXML = "lxml==4.9.1 --hash=sha256:fe749b052bb7233fe5d072fcb549221a8cb1a16725c47c37e42b0b9cb3ff2c3f\n"


def test_a_source_becomes_a_wheel(tmp_path: Path) -> None:
    """Uuid has no wheel. It is named like a module of the standard library, which stays in front."""
    sha = commit(tmp_path, {**APP, "requirements.txt": UUID})
    first, second = (artifact(tmp_path, sha, tmp_path / cache, ".", "3.13.1") for cache in ("one", "two"))
    assert first["layer"]["sha256"] == second["layer"]["sha256"]
    assert "uuid.py" in names(first["layer"]["file"])


def test_native_code_is_refused(tmp_path: Path, cache: Path) -> None:
    sha = commit(tmp_path, {**APP, "requirements.txt": LXML})
    with pytest.raises(process.BuildError) as refusal:
        artifact(tmp_path, sha, cache, ".", "3.13.1")
    assert str(refusal.value) == (
        f"lxml of requirements.txt has no wheel for Python 3.13.1 on {MACHINE}, and its source has native code, which"
        " Booty does not compile. Lock a version with such a wheel, or publish a wheel of it to your index."
    )


def test_a_repository_at_a_commit_is_a_dependency(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "shop").mkdir()
    project = f'[project]\nname = "far"\nversion = "1"\n[project.scripts]\nfar = "far:main"\n{PLAIN}'
    far = commit(
        tmp_path / "far", {"pyproject.toml": project, "src/far/__init__.py": "def main():\n    print('far')\n"}
    )
    url = f"git+file://{tmp_path}/far@{far}"
    sha = commit(tmp_path / "shop", {**APP, "requirements.txt": f"far @ {url}\nitsdangerous==2.2.0\n"})
    built = artifact(tmp_path / "shop", sha, cache, ".")
    assert "far/__init__.py" in names(built["layer"]["file"])
    assert not [name for name in names(built["layer"]["file"]) if "direct_url" in name]
    components = json.loads(text(built["release"]["file"], "sbom.cdx.json"))["components"]
    (purl,) = [each["purl"] for each in components if each["name"] == "far"]
    assert far in purl
    # Its program starts with the release's Python.
    assert "from far import main" in text(built["release"]["file"], "bin/far")


def test_a_server_that_needs_a_compiler_and_that_the_runner_replaces_is_left_out(tmp_path: Path) -> None:
    sha = commit(tmp_path / "shop", {"main.py": FASTAPI, "requirements.txt": "uwsgi==2.0.31\nclick==8.1.8\n"})
    built = artifact(tmp_path / "shop", sha, tmp_path / "cache", ".")
    assert [name for name in names(built["layer"]["file"]) if "uwsgi" in name.lower()] == []
    assert "Leaves out uwsgi of requirements.txt: Booty's runner serves the app." in built["notices"]


def test_a_setup_py_beside_requirements_is_not_built(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"main.py": FASTAPI, "setup.py": "import click, setuptools\nsetuptools.setup()\n"}
    sha = commit(tmp_path / "shop", {**files, "requirements.txt": "click==8.1.8\n"})
    built = artifact(tmp_path / "shop", sha, tmp_path / "cache", ".")
    assert [name for name in names(built["release"]["file"]) if name.endswith(".dist-info/METADATA")] == []
