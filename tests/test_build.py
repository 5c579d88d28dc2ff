"""A release is built from the commit's content alone, independent of the controller's git, uv, shell and locale.

If a commit lacks a part of a release, the message names the file, the line, the reason and the next step.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import (
    build,
    describe,
    git,
    lock,
    process,
    scripts,
)

from tests.conftest import MACHINE, PYTHON, ROOT, Repository, artifact

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
# A build backend that ships the folder `data`, and a file with all that it sees of the controller.
BACKEND = """
import json, os, pathlib, sys, time, tomllib, zipfile

PLACES = ("HOME", "LD_LIBRARY_PATH", "NETRC", "PATH", "SSL_", "TMPDIR", "UV_", "VIRTUAL_ENV", "XDG_")

def build_wheel(directory, settings=None, metadata=None):
    visible = {name: value for name, value in os.environ.items() if not name.startswith(PLACES)}
    visible |= {"umask": os.umask(0o22), "zone": time.tzname, "hash": hash("a"), "settings": settings}
    visible |= {"encoding": sys.getfilesystemencoding(), "home": os.listdir(os.path.expanduser("~"))}
    files = {"shop/visible.json": json.dumps(visible, sort_keys=True).encode()}
    project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
    elsewhere = pathlib.Path("setup.txt")
    requires = project.get("dependencies", []) + (elsewhere.read_text().split("\\n") if elsewhere.exists() else [])
    lines = ["Metadata-Version: 2.1", "Name: shop", "Version: 1", *(f"Requires-Dist: {line}" for line in requires), ""]
    files["shop-1.dist-info/METADATA"] = "\\n".join(lines).encode()
    files["shop-1.dist-info/WHEEL"] = b"Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    with zipfile.ZipFile(pathlib.Path(directory, "shop-1-py3-none-any.whl"), "w") as wheel:
        for folder, _, names in sorted(os.walk("data", followlinks=True)):
            for name in sorted(names):
                wheel.write(f"{folder}/{name}", f"shop/{folder}/{name}")
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


def small(path: Path) -> Repository:
    """Make a repository with a small app in `app/`, with files that git's attributes and settings could change."""
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
    # Commit the files byte for byte: without these attributes `git add` would convert them.
    (repository.path / ".git/info/attributes").write_text("* -text -ident -working-tree-encoding\n")
    repository.commit("A small app")
    return repository


def built(repository: Path, cache: Path, sha: str, path: str = "app") -> Any:
    return artifact(repository, sha, cache, path, serve="shop:app")


def contents(archive: str) -> dict[str, bytes]:
    """Return the files of an archive, by their names in its site-packages."""
    with tarfile.open(archive) as tar:
        files = ((entry.name, tar.extractfile(entry)) for entry in tar if entry.isfile())
        return {name.partition("site-packages/")[2] or name: file.read() for name, file in files if file}


class Controller:
    """A controller with a clone, a home directory and an environment of its own."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, repository: Repository) -> None:
        self.home, self.monkeypatch, self.origin = directory / "home", monkeypatch, repository
        self.repository = directory / "clone"
        subprocess.run(["git", "clone", "--quiet", repository.path, self.repository], check=True)
        # uv may use the user's cache of packages: its path is not part of an artifact.
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
        author = ("-c", "user.name=T", "-c", "user.email=t@example.com")
        done = subprocess.run(
            ["git", "-C", self.repository, *author, *arguments], check=True, capture_output=True, text=True
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


def partial_clone(controller: Controller) -> None:
    controller.origin.git("config", "uploadpack.allowFilter", "true")
    controller.repository = controller.home / "partial"
    url = f"file://{controller.origin.path}"
    command = ["git", "clone", "--quiet", "--no-checkout", "--filter=blob:none", url, str(controller.repository)]
    subprocess.run(command, check=True)


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
    "a partial clone": partial_clone,
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
    "files of the user": lambda it: it.writes(".pydistutils.cfg", "[bdist_wheel]\npython_tag = cp27\n"),
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
# One of each kind is in the short tests: settings of git by file and by variable, attributes, a clone that lacks much,
# settings of uv by file and by variable, and the user's umask.
SHORT = {
    *("plain", "core.autocrlf", "info/attributes that ignore", "a shallow clone", "GIT_CONFIG_COUNT", "a umask"),
    *("variables", "variables of uv", "uv.toml of the user"),
}


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return small(tmp_path_factory.mktemp("origin") / "repository")


@pytest.fixture(scope="module")
def reference(origin: Repository, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return built(origin.path, tmp_path_factory.mktemp("cache"), origin.git("rev-parse", "HEAD"))


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: Repository) -> Iterator[Controller]:
    before = os.umask(0o22)
    os.umask(before)
    yield Controller(tmp_path, monkeypatch, origin)
    os.umask(before)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in SHORT else pytest.mark.long) for kind in CONTROLLERS]
)
def test_each_controller_makes_the_same_bytes(
    origin: Repository, reference: Any, controller: Controller, tmp_path: Path, kind: str
) -> None:
    sha = origin.git("rev-parse", "HEAD")
    CONTROLLERS[kind](controller)
    artifact = built(controller.repository, tmp_path / "cache", sha)
    for part in ("release", "layer", "runner"):
        if artifact[part]["sha256"] != reference[part]["sha256"]:
            assert contents(artifact[part]["file"]) == contents(reference[part]["file"])
        assert artifact[part]["sha256"] == reference[part]["sha256"]


def test_a_release_has_the_bytes_of_the_commit(reference: Any) -> None:
    """The build ignores the commit's own git attributes too: `$Format$` would expand to the refs of a clone."""
    files = contents(reference["release"]["file"])
    assert files["shop/data/lines.txt"] == files["shop/data/link"] == b"one\ntwo\n$Id$\n$Format:%H %D$\n"
    assert files["shop/data/windows.txt"] == b"one\r\ntwo\r\n"
    assert files["shop/data/ünïcödé näme.py"] == "print('ä')\n".encode()
    with tarfile.open(reference["release"]["file"]) as tar:
        modes = {entry.name.rpartition("/")[2]: entry.mode for entry in tar}
    assert (modes["run.sh"], modes["lines.txt"]) == (0o755, 0o644)


@pytest.fixture
def shop(tmp_path: Path) -> Repository:
    return small(tmp_path / "repository")


def refused(shop: Repository, path: str = "app", **arguments: str) -> str:
    """Commit, build, and return the message of the refusal."""
    shop.commit("Break it")
    sha = shop.git("rev-parse", "HEAD")
    with pytest.raises(process.BuildError) as refusal:
        artifact(shop.path, sha, shop.path.parent / "cache", path, serve="shop:app", **arguments)
    assert not list((shop.path.parent / "cache").glob("releases/*.gz"))
    return str(refusal.value)


def link(shop: Repository, name: str, target: str) -> Path:
    (shop.path / name).parent.mkdir(parents=True, exist_ok=True)
    (shop.path / name).symlink_to(target)
    return shop.path / name


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
LARGE = b"large\r\n\0" * 1000


def pointer(shop: Repository, content: bytes = LARGE) -> str:
    oid = hashlib.sha256(content).hexdigest()
    shop.write("app/data/large.bin", POINTER.format(oid=oid, size=len(content)))
    return oid


def submodule(shop: Repository) -> None:
    shop.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},app/data/sub")
    (shop.path / "app/data/sub").mkdir()


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (
            lambda shop: link(shop, "app/data/host", "/etc/hostname"),
            "app/data/host of commit {sha} is a link to /etc/hostname, which is not in the commit. A release has"
            " nothing but its commit: commit the file instead of the link, or remove the link.",
        ),
        (
            lambda shop: link(shop, "app/data/out", "../../../x"),
            "app/data/out of commit {sha} is a link to ../../../x,",
        ),
        (lambda shop: link(shop, "app/data/gone", "nowhere"), "is a link to nowhere, which is not in the commit."),
        (lambda shop: link(shop, "app/data/round", "round"), "is a link to round, which is not in the commit."),
        (
            lambda shop: (link(shop, "app/data/far", "../../libs/far"), link(shop, "libs/far", "/etc/hostname")),
            "app/data/far of commit {sha} is a link to ../../libs/far, which is not in the commit.",
        ),
        (
            submodule,
            "app/data/sub is a submodule, whose content is not in commit {sha}. Commit its files instead of it (git"
            " subtree add), or lock it as a dependency.",
        ),
        (
            pointer,
            "app/data/large.bin of commit {sha} lies in Git LFS, and {repository} does not have its content. Fetch it"
            " first: git -C {repository} lfs fetch origin {sha}",
        ),
    ],
    ids=["absolute", "out of the repository", "nowhere", "to itself", "by another link", "submodule", "Git LFS"],
)
def test_content_that_is_not_in_the_commit(
    shop: Repository, breaks: Callable[[Repository], object], message: str
) -> None:
    breaks(shop)
    refusal = refused(shop)
    sha = shop.git("rev-parse", "HEAD")
    assert message.format(sha=sha[:12], repository=shop.path) in refusal.replace(sha, sha[:12])


@pytest.mark.parametrize("name", ["../../outside", "/outside", "a//b", "..", ".", ".git/config", ".GIT"])
def test_a_file_outside_of_the_tree_is_refused(shop: Repository, name: str) -> None:
    """A push brings such a tree, and only fsck warns of it."""
    blob = shop.git("rev-parse", "HEAD:app/pyproject.toml")
    tree = b"100644 %s\0" % name.encode() + bytes.fromhex(blob)
    command = ["git", "hash-object", "-t", "tree", "-w", "--literally", "--stdin"]
    made = subprocess.run(command, cwd=shop.path, input=tree, capture_output=True, check=True).stdout.decode().strip()
    sha = shop.git("commit-tree", "-m", "hostile", made)
    with pytest.raises(process.BuildError, match="is damaged or hostile: it has a file"):
        git.listing(shop.path, sha, ".")


def test_a_link_with_the_name_of_a_folder_is_refused(shop: Repository, tmp_path: Path) -> None:
    """A file of the folder would be written where the link leads."""

    def made(kind: str, content: bytes) -> bytes:
        command = ["git", "hash-object", "-t", kind, "-w", "--literally", "--stdin"]
        return subprocess.run(command, cwd=shop.path, input=content, capture_output=True, check=True).stdout.strip()

    outside = made("blob", str(tmp_path).encode())
    inner = made("tree", b"120000 evil\0" + bytes.fromhex(outside.decode()))
    entries = ((b"120000", outside), (b"40000", inner))
    tree = made("tree", b"".join(mode + b" a\0" + bytes.fromhex(name.decode()) for mode, name in entries))
    sha = shop.git("commit-tree", "-m", "hostile", tree.decode())
    with pytest.raises(process.BuildError, match="is damaged or hostile: it has a file 'a/evil'"):
        git.Tree(shop.path, sha)


@pytest.mark.parametrize(
    ("folder", "pattern", "matches", "others"),
    [
        ("", "docs", ["docs", "a/docs/x"], ["docs2", "a/xdocs"]),
        ("", "/docs", ["docs/x"], ["a/docs"]),
        ("", "docs/", ["docs/x", "a/docs/x"], []),
        ("", "*.map", ["x.map", "a/b.map", "a/.map"], ["x.mapp"]),
        ("", "a/*.map", ["a/x.map"], ["a/b/x.map", "c/a/x.map"]),
        ("", "a/**/x", ["a/x", "a/b/x", "a/b/c/x/y"], ["x", "b/a/x"]),
        ("", "**/x", ["x", "a/b/x"], ["ax"]),
        ("", "a/**", ["a/b", "a/b/c"], ["a", "b/a/c"]),
        ("", "a?c", ["abc", "d/a.c"], ["ac", "a/c"]),
        ("", "[a]+.x", ["[a]+.x"], ["a.x", "aa.x"]),
        ("web/", "x", ["web/x", "web/a/x"], ["x", "a/web/x"]),
        ("web/", "/x", ["web/x"], ["web/a/x"]),
    ],
)
def test_a_pattern_of_gitattributes(folder: str, pattern: str, matches: list[str], others: list[str]) -> None:
    found = [name for name in (*matches, *others) if git.Pattern(folder, pattern).match(name)]
    assert found == matches


@pytest.mark.parametrize(("pattern", "name"), [("**/" * 30 + "x", "a/" * 100), ("*a" * 30 + "b", "a" * 200)])
def test_a_pattern_takes_no_longer_than_its_length(pattern: str, name: str) -> None:
    began = time.monotonic()
    assert not git.Pattern("", pattern).match(name)
    assert time.monotonic() - began < 1


def test_links_to_the_shared_code_of_a_repository_bring_it(shop: Repository, tmp_path: Path) -> None:
    shop.write("libs/prices/prices.txt", "1\n")
    shop.write("libs/prices/run.sh", "")
    (shop.path / "libs/prices/run.sh").chmod(0o755)
    shop.write("libs/units/units.txt", "2\n")
    shop.write("libs/units/not/app.txt", "3\n")
    link(shop, "libs/prices/units.txt", "../alias/units.txt")
    link(shop, "libs/alias", "units")
    link(shop, "app/data/prices", "../../libs/prices")
    link(shop, "app/data/unit.txt", "../../libs/prices/units.txt")
    shop.git("mv", "app/requirements.txt", "shared.txt")
    link(shop, "app/requirements.txt", "../shared.txt")
    sha = shop.commit("Share")
    artifact = built(shop.path, tmp_path / "cache", sha)
    files = contents(artifact["release"]["file"])
    assert files["shop/data/prices/prices.txt"] == b"1\n"
    assert files["shop/data/prices/units.txt"] == files["shop/data/unit.txt"] == b"2\n"
    with tarfile.open(artifact["release"]["file"]) as tar:
        assert tar.getmember(f"lib/python{PYTHON}/site-packages/shop/data/prices/run.sh").mode == 0o755
    # A link to the whole repository, which contains the app's folder, and links that form circles.
    link(shop, "app/top", "..")
    link(shop, "libs/units/again", "../../libs")
    link(shop, "app/units", "../libs/units")
    link(shop, "app/here", ".")
    top = tmp_path / "exported"
    top.mkdir()
    git.export(git.Tree(shop.path, shop.commit("All")), "app", top)
    assert (top / "app/units").readlink() == Path("../libs/units")
    top = git.source_of(top, "app", tmp_path / "source").parent
    assert (top / "app/top/libs/units/not/app.txt").read_text() == "3\n"
    links = {str(path.relative_to(top)) for path in (top / "app").rglob("*") if path.is_symlink()}
    assert links == {"app/top", "app/here"}
    assert (top / "app/units/units.txt").read_text() == "2\n"
    assert not (top / "app/units/again").exists()


def test_large_files_come_from_git_lfs_by_their_digest(shop: Repository, tmp_path: Path) -> None:
    oid = pointer(shop)
    kept = shop.path / ".git/lfs/objects" / oid[:2] / oid[2:4] / oid
    kept.parent.mkdir(parents=True)
    kept.write_bytes(LARGE[:-1])
    assert "lies in Git LFS" in refused(shop)
    kept.write_bytes(LARGE)
    artifact = built(shop.path, tmp_path / "cache", shop.git("rev-parse", "HEAD"))
    assert contents(artifact["release"]["file"])["shop/data/large.bin"] == LARGE


def test_two_files_that_are_one_on_this_machine(shop: Repository, tmp_path: Path) -> None:
    """As `A` and `a` on a file system that ignores case. In this test the tree has one name twice."""
    blob = shop.git("rev-parse", "HEAD:LICENSE")
    entries = {"app/twice": ("100644", blob), "app/./twice": ("100644", blob)}
    with pytest.raises(
        process.BuildError, match=r"app/\./twice of commit abc and another file are one on this machine"
    ):
        git.place(shop.path, "abc", entries, tmp_path)


@pytest.mark.parametrize(
    ("path", "plain"),
    [("app", "app"), ("app/", "app"), ("./app//x/.", "app/x"), ("x/../app", "app"), (".", "."), ("", "."), ("./", ".")],
)
def test_the_path_of_an_app(path: str, plain: str) -> None:
    assert git.normal(path) == plain


@pytest.mark.parametrize("path", ["..", "../app", "app/../../x", "/app", "//app", "/"])
def test_a_path_that_leads_out_of_the_repository(path: str) -> None:
    with pytest.raises(process.BuildError, match=f"app_path '{path}' leads out of app_repository. Name the app's"):
        git.normal(path)


def test_two_apps_of_one_repository(shop: Repository, tmp_path: Path) -> None:
    """One app is at the top of the repository, one below. All spellings of one path give one archive."""
    for name in ("pyproject.toml", "requirements.txt", "backend.py"):
        shop.write(name, (shop.path / "app" / name).read_text())
    shop.write("data/which.txt", "top\n")
    shop.write("app/data/which.txt", "below\n")
    sha = shop.commit("Two apps")
    texts = {}
    for path in ("app", "./app/", ".", ""):
        artifact = built(shop.path, tmp_path / "cache", sha, path)
        texts[path] = contents(artifact["release"]["file"])["shop/data/which.txt"]
    assert texts == {"app": b"below\n", "./app/": b"below\n", ".": b"top\n", "": b"top\n"}
    assert len(list(tmp_path.glob("cache/releases/*.tar.gz"))) == 2


@pytest.mark.parametrize(
    ("breaks", "path", "message"),
    [
        (
            lambda _: None,
            "shop",
            "has no folder shop. Set app_path to the app's folder. Folders with a pyproject.toml: app.",
        ),
        (lambda _: None, "LICENSE", "LICENSE is a file in commit {sha}. Set app_path to the app's folder."),
        (lambda _: None, "app/requirements.txt/x", "app/requirements.txt is a file in commit {sha}."),
        (
            lambda shop: link(shop, "web", "app"),
            "web",
            "web is a link to app in commit {sha}. Set app_path to the folder that it leads to.",
        ),
        (
            lambda shop: link(shop, "a/b", "../app"),
            "a/b/data",
            "a/b is a link to ../app in commit {sha}.",
        ),
        (
            submodule,
            "app/data/sub/web",
            "app/data/sub is a submodule in commit {sha}. Set app_repository to a clone of its",
        ),
    ],
)
def test_a_path_that_is_no_app(
    shop: Repository, breaks: Callable[[Repository], object], path: str, message: str
) -> None:
    breaks(shop)
    shop.write("another", "")
    refusal = refused(shop, path)
    assert message.format(sha=shop.git("rev-parse", "HEAD")[:12]) in refusal


def test_app_repository_is_the_top_folder(shop: Repository, tmp_path: Path) -> None:
    shop.write("services/shop/app/x", "")
    assert git.is_top(shop.path, "app")
    with pytest.raises(process.BuildError) as refusal:
        git.is_top(shop.path / "services/shop", "app")
    assert str(refusal.value) == (
        f"app_repository {shop.path}/services/shop is a folder of the repository {shop.path}. Name the repository, and"
        f" the app's folder in it: app_repository: {shop.path}, app_path: services/shop/app"
    )
    assert not git.is_top(shop.path / ".git", "app")
    with pytest.raises(process.BuildError, match=f"lies within the git directory {shop.path}/.git. Name that"):
        git.is_top(shop.path / ".git/hooks", "app")
    shop.git("clone", "--quiet", "--bare", ".", str(tmp_path / "bare.git"))
    assert not git.is_top(tmp_path / "bare.git", "app")
    shop.git("worktree", "add", "--quiet", str(tmp_path / "tree"))
    assert git.is_top(tmp_path / "tree", "app")
    with pytest.raises(process.BuildError, match=r"bare\.git/x can't be read: .*No such file"):
        git.is_top(tmp_path / "bare.git/x", "app")


NEXT = "Lock again there, and commit: uv pip compile --universal --generate-hashes pyproject.toml -o requirements.txt"
HASH = f"--hash=sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (
            "-e ../../lib",
            "an editable requirement has to be a folder of the repository. Write its path, such as ./libs/prices",
        ),
        (f"--editable=/lib {HASH}", "an editable requirement has to be a folder of the repository."),
        (
            f"./wheels/a-1-py3-none-any.whl {HASH}",
            "a file is in no index. Publish it to one, or put its code into the app",
        ),
        (f"a-1-py3-none-any.whl {HASH}", "a file is in no index."),
        (f"/srv/a.tar.gz {HASH}", "a file is in no index."),
        (f"a @ file:///srv/a-1-py3-none-any.whl {HASH}", "a file is in no index."),
        (f"a[b, c] @ ../a {HASH}", "a file is in no index."),
        ("--find-links wheels", "a file is in no index."),
        (
            "a @ git+https://example.com/a@main",
            "a repository has to be pinned to a commit of 40 characters, as in name @ git+https",
        ),
        ("git+ssh://git@example.com/a", "a repository has to be pinned to a commit"),
        (f"git+https://example.com/a@{'1' * 40}", "it has no name. Write name @ git+https://…@commit"),
        ("a==1", "it has no --hash"),
        ("a @ https://example.com/a-1-py3-none-any.whl", "it has no --hash"),
        (f"a>=1 {HASH}", "it has no single version, as a==1.0"),
        (f"a {HASH}", "it has no single version, as a==1.0"),
        (f"a==1,<2 {HASH}", "it has no single version, as a==1.0"),
        (f"a=1 {HASH}", "Expected"),
        ("<<<<<<< HEAD", "it has no --hash"),
    ],
)
def test_a_line_that_a_lock_cannot_have(shop: Repository, line: str, why: str) -> None:
    shop.write("app/requirements.txt", f"# A lock\n{LOCK}{line}\n{LOCK}")
    number = LOCK.count("\n") + 2
    refusal = refused(shop)
    assert f"app/requirements.txt of commit {shop.git('rev-parse', 'HEAD')[:12]} is no lock with hashes: " in refusal
    assert f": line {number}, '{line}': {why}" in refusal
    assert refusal.endswith(f". {NEXT}")


@pytest.mark.parametrize(
    "option",
    ["--index-url https://example.com/simple", "-i x", "--pre", "--only-binary :all:", "-f https://x", "# -e ."],
)
def test_a_line_that_a_lock_can_have(option: str) -> None:
    assert list(lock.packages_in(f"{option}\n{LOCK}", lock.Host(f"{PYTHON}.0", MACHINE), ".")) == ["annotated-doc"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "requirements.txt",
            LOCK.encode() + b"# caf\xe9\n",
            f"is no UTF-8 (line {LOCK.count(chr(10)) + 1}). Write it as",
        ),
        ("pyproject.toml", PROJECT.encode("utf-16"), "is UTF-16 (line 1). Write it as UTF-8, and commit."),
        ("pyproject.toml", b"[project]\nname = shop\n", "can't be read: Invalid value (at line 2, column 8). Fix it"),
        ("pyproject.toml", b"project = 1\n", "can't be read: `project` is no table. Fix it, and commit."),
        ("pyproject.toml", b"[project]\ndependencies = 'a'\n", "can't be read: `dependencies` is no list."),
        ("pyproject.toml", b"[project]\ndependencies = ['a >> 1']\n", "can't be read: Expected"),
        ("pyproject.toml", b"[project]\nrequires-python = 'new'\n", "can't be read: Invalid specifier: 'new'."),
        (
            "pyproject.toml",
            b"[project]\nrequires-python = '>=3.99'\n",
            f'has requires-python = ">=3.99", and the host runs it with Python {PYTHON}.0. Take a host with such a'
            " Python (Debian 12 has 3.11, Debian 13 has 3.13), or widen requires-python",
        ),
    ],
)
def test_a_file_that_cannot_be_read(shop: Repository, name: str, content: bytes, message: str) -> None:
    (shop.path / "app" / name).write_bytes(content)
    refusal = refused(shop)
    assert f"app/{name} of commit {shop.git('rev-parse', 'HEAD')[:12]} {message}" in refusal


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_lock_may_begin_with_a_byte_order_mark(shop: Repository, tmp_path: Path, encoding: str) -> None:
    (shop.path / "app/requirements.txt").write_bytes(LOCK.encode(encoding))
    artifact = built(shop.path, tmp_path / "cache", shop.commit("Mark it"))
    assert "annotated_doc/__init__.py" in contents(artifact["layer"]["file"])


def test_the_patch_version_of_python_is_compared(shop: Repository, tmp_path: Path) -> None:
    shop.write("app/pyproject.toml", f'{PROJECT}requires-python = ">={PYTHON}.4"\n')
    assert f"with Python {PYTHON}.2." in refused(shop, python=f"{PYTHON}.2")
    sha = shop.git("rev-parse", "HEAD")
    assert artifact(shop.path, sha, tmp_path / "cache", python=f"{PYTHON}.4", serve="shop:app")


def test_the_output_of_a_failed_build_is_shown(shop: Repository) -> None:
    shop.write("app/backend.py", "import sys\nprint('no compiler here')\nsys.exit('set CC')\n")
    text = refused(shop)
    assert text.startswith(f"The app of commit {shop.git('rev-parse', 'HEAD')[:12]} does not build. uv and its build")
    assert "no compiler here" in text
    assert "set CC" in text


def stanza(name: str) -> str:
    """Return the lines of a package in the bundled app's lock."""
    (text,) = re.findall(rf"^{name}==(?:.*\\\n)+.*\n", (ROOT / "app/requirements.txt").read_text(), re.MULTILINE)
    return str(text)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["pyproject.toml", "setup.py or a table of the backend"])
def test_dependencies_of_an_extra_must_be_locked(shop: Repository, tmp_path: Path, elsewhere: bool) -> None:
    """The check also runs if an earlier release had the same lock, so that its layer is already built."""
    lock = LOCK + stanza("psycopg") + stanza("typing-extensions")
    shop.write("app/requirements.txt", lock)
    shop.write("app/pyproject.toml", PROJECT.replace('"annotated-doc"', '"psycopg"'))
    built(shop.path, tmp_path / "cache", shop.commit("Without the extra"))
    if elsewhere:
        shop.write("app/setup.txt", "psycopg[binary]")
    else:
        shop.write("app/pyproject.toml", PROJECT.replace('"annotated-doc"', '"psycopg[binary]"'))
    shop.commit("With the extra")
    with pytest.raises(process.BuildError) as refusal:
        built(shop.path, tmp_path / "cache", shop.git("rev-parse", "HEAD"))
    assert (
        " is out of date: the app wants psycopg[binary], which wants psycopg-binary==3.3.9, which is not locked in"
        f" app/requirements.txt. {NEXT}"
    ) in str(refusal.value)
    shop.write("app/requirements.txt", lock + stanza("psycopg-binary"))
    assert built(shop.path, tmp_path / "cache", shop.commit("Lock it"))["notices"] == []


def test_undeclared_dependencies_give_a_notice(shop: Repository, tmp_path: Path) -> None:
    shop.write("app/pyproject.toml", PROJECT.replace("dependencies", "#"))
    sha = shop.commit("Declare nothing")
    assert built(shop.path, tmp_path / "cache", sha)["notices"] == [
        f"The app of commit {sha[:12]} declares no dependencies to its build backend, so Booty can't check whether"
        " app/requirements.txt locks all packages that it imports. Declare them in app/pyproject.toml: [project]"
        " dependencies."
    ]


def test_files_that_python_reads_at_its_start(tmp_path: Path) -> None:
    """Python reads the `.pth` files of a layer, as in a virtual environment: namespace packages rely on them."""
    layer, runner, release = tmp_path / "layer", tmp_path / "runner", tmp_path / "release"
    for folder in (layer, runner, release, tmp_path / "space/spaced"):
        folder.mkdir(parents=True)
    (layer / "start.pth").write_text(f"import sys; sys.started = True\n{tmp_path}/space\n")
    (layer / "uuid.py").write_text("")
    (tmp_path / "space/spaced/__init__.py").write_text("")
    text = build.import_path({"path": ".", "import_paths": ["src"], "layer": "L", "runner": "R"})
    for name, folder in (("L", layer), ("R", runner)):
        text = text.replace(f"os.path.normpath(sys.prefix + '/../../../layers/{name}')", f"'{folder}'")
    (release / "layer.pth").write_text(text)
    program = (
        f"import site, sys; site.addsitedir('{release}'); import spaced, uuid; assert sys.started and uuid.uuid4;"
        f" assert sys.path.index('{release}') < sys.path.index('{layer}') < sys.path.index('{tmp_path}/space')"
        f" < sys.path.index('{runner}')"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a repository to another user")
def test_a_repository_of_another_user_needs_safe_directory(
    shop: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = shop.git("rev-parse", "HEAD")
    subprocess.run(["chown", "-R", "65534", shop.path], check=True)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    monkeypatch.setenv("SUDO_UID", "0")
    with pytest.raises(process.BuildError) as refusal:
        git.is_top(shop.path, "app")
    assert f"app_repository {shop.path} can't be read: fatal: detected dubious ownership" in str(refusal.value)
    assert f"git config --global --add safe.directory {shop.path}" in str(refusal.value)
    (tmp_path / "config").write_text(f"[safe]\n directory = {shop.path}\n")
    assert git.is_top(shop.path, "app")
    assert git.resolve(shop.path, "HEAD") == sha


def test_grafts_do_not_change_the_ancestors_of_a_commit(shop: Repository) -> None:
    shop.git("-c", "user.name=T", "-c", "user.email=t@example.com", "commit", "--quiet", "--amend", "-m", "Another")
    older, newer = shop.git("rev-parse", "HEAD@{1}", "HEAD").split()
    (shop.path / ".git/info/grafts").write_text(f"{newer} {older}\n")
    assert shop.git("merge-base", "--is-ancestor", older, newer) == ""
    with pytest.raises(process.BuildError):
        git.git(shop.path, "merge-base", "--is-ancestor", older, newer)


def test_the_tree_of_a_release(shop: Repository, tmp_path: Path) -> None:
    """It has the whole repository but for `.env` files, ignored files, and what lies in the state directory."""
    link(shop, "app/shared", "../libs")
    link(shop, "elsewhere/broken", "/nowhere")
    for name in ("libs/prices.py", "docs/x/y.md", "docs/kept.md", "app/.env", "app/.env.sample", "app/media/a.txt"):
        shop.write(name, name)
    shop.write(".gitattributes", "/docs booty-ignore\n/docs/kept.md -booty-ignore\n*.sample text\n")
    shop.write("app/RECORD", "")
    shop.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},elsewhere/sub")
    (shop.path / "elsewhere/sub").mkdir()
    shop.write("elsewhere/large.bin", POINTER.format(oid="0" * 64, size=1))
    sha = shop.commit("Much")
    built = artifact(shop.path, sha, tmp_path / "cache", serve="shop:app", state_paths=["media", "db.sqlite3"])
    with tarfile.open(built["release"]["file"]) as tar:
        entries = {entry.name: entry for entry in tar}
        manifest = json.load(tar.extractfile("release.json") or io.BytesIO())
    tree = {name.removeprefix("tree/") for name in entries if name.startswith("tree/")}
    assert {"libs/prices.py", "docs/kept.md", "app/.env.sample", "app/RECORD", "app/backend.py", "LICENSE"} <= tree
    assert {"elsewhere/broken", "elsewhere/large.bin", ".gitattributes"} <= tree
    assert not {"app/.env", "docs/x/y.md", "elsewhere/sub", "app/media/a.txt"} & tree
    assert entries["tree/app/shared"].linkname == "../libs"
    assert entries["tree/app/media"].linkname == "/var/lib/booty/media"
    assert entries["tree/app/db.sqlite3"].linkname == "/var/lib/booty/db.sqlite3"
    assert [name for name in entries if name.startswith("seed/")] == ["seed/media/a.txt"]
    assert manifest["state_paths"] == ["media/", "db.sqlite3"]
    # Another app's state directory makes another release.
    other = build.build(
        shop.path,
        describe.describe(shop.path, sha, "app", {"serve": "shop:app", "state_paths": ["media"]}),
        sha,
        lock.Host(f"{PYTHON}.0", MACHINE),
        tmp_path / "cache",
        "shop",
    )
    assert other["release"]["file"] != built["release"]["file"]
    secret = artifact(shop.path, sha, tmp_path / "cache", serve="shop:app", dotenv=True)
    with tarfile.open(secret["release"]["file"]) as tar:
        assert "tree/app/.env" in tar.getnames()


def test_programs_start_with_the_python_of_their_release(tmp_path: Path) -> None:
    """A release is moved after its build, and may be reached by a link; a binary lies in the layer."""
    installed, release = tmp_path / "installed", tmp_path / "moved/release"
    (installed / "shop-1.dist-info").mkdir(parents=True)
    (installed / "bin").mkdir()
    (installed / "shop-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1\n")
    points = "[console_scripts]\nshop = os:getpid\nserve = os:getpid\nsub = json:JSONDecoder.decode [extra]\n"
    (installed / "shop-1.dist-info/entry_points.txt").write_text(points)
    for name in ("shop", "serve"):  # uv writes these for the controller's Python
        (installed / "bin" / name).write_text("#!/nowhere/python\n")
    (installed / "bin/ready").write_text("#!/nowhere/bin/python3 -I\nimport sys\nprint(sys.executable)\n")
    (installed / "bin/binary").write_bytes(b"\x7fELF")
    programs = scripts.programs(installed)
    assert [*programs["scripts"]] == ["ready", "shop", "sub"]
    assert programs["others"] == ["binary"]
    assert "from json import JSONDecoder\n" in programs["scripts"]["sub"]
    assert "sys.exit(JSONDecoder.decode())" in programs["scripts"]["sub"]
    (release / "bin").mkdir(parents=True)
    (release / "bin/python").symlink_to(sys.executable)
    (release / "bin/ready").write_text(programs["scripts"]["ready"])
    (release / "bin/ready").chmod(0o755)
    (tmp_path / "link").symlink_to(release / "bin/ready")
    for command in (release / "bin/ready", tmp_path / "link"):
        done = subprocess.run([command], capture_output=True, text=True, check=True)
        assert Path(done.stdout.strip()).parent in {release / "bin", Path(sys.executable).parent}
