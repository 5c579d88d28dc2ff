"""The build's own steps: commands on the controller whose files are part of the release."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import (
    build,
    describe,
    git,
    lock,
    locks,
    process,
    steps,
    uv,
)

from tests.conftest import MACHINE, PYTHON, Site, words
from tests.test_detect import FASTAPI, MANAGE, WSGI, commit

DJANGO: dict[str, str | bytes] = {
    "manage.py": MANAGE.format("shop.settings.prod"),
    "shop/__init__.py": "",
    "shop/settings/__init__.py": "",
    "shop/settings/prod.py": "from .base import *\nWSGI_APPLICATION = 'shop.wsgi.application'\n",
    "shop/settings/base.py": "INSTALLED_APPS = ['django.contrib.staticfiles']\nSTATIC_ROOT = BASE / 'static'\n",
    "shop/wsgi.py": WSGI,
}
COLLECTS = "python manage.py collectstatic --noinput"


def described(folder: Path, files: dict[str, str | bytes], **inventory: Any) -> dict[str, Any]:
    sha = commit(folder, files)
    return describe.describe(folder, sha, ".", inventory)


def test_collectstatic_is_found(tmp_path: Path) -> None:
    description = described(tmp_path, DJANGO)
    assert description["build"] == [COLLECTS]
    assert f"build: {COLLECTS} (Django with STATIC_ROOT)" in description["found"]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("shop/settings/base.py", "INSTALLED_APPS = ['django.contrib.staticfiles']\n"),
        ("shop/settings/base.py", "INSTALLED_APPS = ['django.contrib.staticfiles']\nSTATIC_ROOT = None\n"),
        ("shop/settings/base.py", "STATIC_ROOT = 'static'\n"),
        ("shop/settings/prod.py", "WSGI_APPLICATION = 'shop.wsgi.application'\n"),
    ],
    ids=["no STATIC_ROOT", "an empty one", "no staticfiles", "a module that is not imported"],
)
def test_collectstatic_is_not_asked_for(tmp_path: Path, file: str, text: str) -> None:
    assert described(tmp_path, {**DJANGO, file: text})["build"] == []


def test_collectstatic_where_settings_branch_and_manage_py_lies_in_src(tmp_path: Path) -> None:
    files = {f"src/{name}": text for name, text in DJANGO.items()}
    files["src/shop/settings/base.py"] = (
        "INSTALLED_APPS = ['django.contrib.staticfiles']\nif not DEBUG:\n    STATIC_ROOT: str = env('ROOT')\n"
    )
    assert described(tmp_path, files)["build"] == ["python src/manage.py collectstatic --noinput"]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ("STATIC_URL = 'static/'\nSTATIC_ROOT = BASE_DIR / 'staticfiles'\n", "app_static: {/static/: staticfiles}"),
        ("STATIC_URL = '/s/'\nSTATIC_ROOT = os.path.join(BASE, 'out/all')\n", "app_static: {/s/: out/all}"),
        ("STATIC_URL = '/s/'\nSTATIC_ROOT = str(BASE_DIR / 'out')\n", "app_static: {/s/: out}"),
        ("STATIC_ROOT = env('ROOT')\n", "app_static: {/PREFIX/: FOLDER}"),
        ("STATIC_URL = 'https://cdn.example.com/'\nSTATIC_ROOT = BASE / 'static'\n", ""),
        ("STATIC_ROOT = BASE / 'static'\nMIDDLEWARE = ['whitenoise.middleware.WhiteNoiseMiddleware']\n", ""),
    ],
)
def test_static_files_that_nothing_serves_are_named(tmp_path: Path, settings: str, line: str) -> None:
    text = f"INSTALLED_APPS = ['django.contrib.staticfiles']\n{settings}"
    description = described(tmp_path, {**DJANGO, "shop/settings/base.py": text})
    sha = git.resolve(tmp_path, "HEAD")
    sentence = describe.unserved(tmp_path, sha, description, ["shop.example.com"])
    assert (f"write: {line} (docs/your-app.md)" in sentence) == bool(line)
    assert bool(sentence) == bool(line)
    assert describe.unserved(tmp_path, sha, description, []) == ""
    assert describe.unserved(tmp_path, sha, {**description, "static": {"/static/": "x"}}, ["a.example.com"]) == ""
    assert describe.unserved(tmp_path, sha, {**description, "build": []}, ["a.example.com"]) == ""


def test_the_inventory_then_the_commit_then_what_is_found(tmp_path: Path) -> None:
    def built(**inventory: Any) -> list[str]:
        return [line for line in described(tmp_path, files, **inventory)["found"] if line.startswith("build: ")]

    files = {**DJANGO, "booty.toml": 'build = "make"\n'}
    assert built() == built(build=["auto"]) == ["build: make (booty.toml)"]
    assert built(build=["npm ci", "npm run build"]) == ["build: npm ci (app_build)", "build: npm run build (app_build)"]
    # An empty list is a value: no steps.
    assert built(build=[]) == []
    files["booty.toml"] = "build = []\n"
    assert built() == []
    files["booty.toml"] = 'build = "auto"\n'
    assert built() == [f"build: {COLLECTS} (Django with STATIC_ROOT)"]


def test_a_description_has_no_value_of_a_build_setting(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"main.py": FASTAPI, "booty.toml": 'build = "make"\nbuild_settings = {B = 1}\n'}
    committed = described(tmp_path, files)
    assert committed["build_settings"] == ["B"]
    assert "settings of the build: B" in committed["found"]
    sha = git.resolve(tmp_path, "HEAD")
    one, other = (
        describe.describe(tmp_path, sha, ".", {"build_settings": {"NPM_TOKEN": value}}) for value in ("hunter2", "x")
    )
    assert "hunter2" not in str(one)
    assert one["build_settings"] == ["NPM_TOKEN"]
    # Another value is another build.
    assert len({one["build_settings_hash"], other["build_settings_hash"], committed["build_settings_hash"]}) == 3
    # Settings without steps change nothing.
    off = describe.describe(tmp_path, sha, ".", {"build": [], "build_settings": {"A": "1"}})
    assert (off["build_settings"], off["build_settings_hash"]) == ([], "")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache for all tests, so that the runner's layer is built once."""
    return tmp_path_factory.mktemp("cache")


@dataclass
class Builder:
    """Builds the commit of a repository, and keeps what the screen showed."""

    folder: Path
    cache: Path
    shown: list[str] = field(default_factory=list)
    check: bool = False

    def commit(self, files: dict[str, str | bytes]) -> None:
        self.folder.mkdir(exist_ok=True)
        commit(self.folder, {"main.py": FASTAPI, **files})

    def build(
        self,
        python: str = f"{PYTHON}.0",
        settings: Any = None,
        config_dir: str = "",
        run: str = "",
        **inventory: Any,
    ) -> Any:
        """Build with these keys in the inventory; return the artifact."""
        sha = git.resolve(self.folder, "HEAD")
        description = describe.describe(self.folder, sha, ".", inventory)
        values = inventory.get("build_settings", {})
        given = steps.Steps(settings or {}, values, config_dir, run, self.shown.append, self.check)
        host = lock.Host(python, MACHINE)
        return build.build(self.folder, description, sha, host, self.cache, "shop", given)

    def tree(self, **inventory: Any) -> dict[str, Any]:
        """Build, and return the files that the release has besides the commit's; a link is a text."""
        self.shown.clear()
        with tarfile.open(self.build(**inventory)["release"]["file"]) as tar:
            tree = {entry.name: entry for entry in tar if entry.name.startswith(("tree/", "seed/"))}
            contents = {
                name: file.read() if (file := None if entry.issym() else tar.extractfile(entry)) else entry.linkname
                for name, entry in tree.items()
            }
        there = git.Tree(self.folder, git.resolve(self.folder, "HEAD")).entries
        return {
            name.removeprefix("tree/"): content
            for name, content in contents.items()
            if name.removeprefix("tree/") not in there
        }


@pytest.fixture
def builder(tmp_path: Path, cache: Path) -> Builder:
    return Builder(tmp_path / "repository", cache)


REQUIREMENTS = "annotated-doc==0.0.4 --hash=sha256:571ac1dc6991c450b25a9c2d84a3705e2ae7a53467b5d111c24fa8baabbed320\n"


def test_files_that_the_commands_make_are_shipped(builder: Builder) -> None:
    builder.commit(
        {
            "src/a.txt": "a",
            "old.txt": "",
            "node_modules/own/x.js": "committed",
            ".gitattributes": "/dist/*.map booty-ignore\n/kept/node_modules -booty-ignore\n",
        }
    )
    tree = builder.tree(
        build=[
            "mkdir -p dist empty node_modules/y web/node_modules kept/node_modules __pycache__ .cache",
            "tr a b < src/a.txt > dist/b.txt; cp dist/b.txt dist/b.map; touch .env",
            "touch node_modules/y/z.js web/node_modules/z.js kept/node_modules/z.js __pycache__/x.pyc .cache/x",
            'ln -s b.txt dist/relative; ln -s "$PWD/dist/b.txt" dist/absolute; mkfifo dist/pipe; rm old.txt',
        ]
    )
    assert tree == {
        "dist/b.txt": b"b",
        "dist/relative": "b.txt",
        "dist/absolute": "b.txt",
        "kept/node_modules/z.js": b"",
    }
    with tarfile.open(
        builder.build(build=["rm old.txt; echo changed > src/a.txt; chmod 700 main.py"])["release"]["file"]
    ) as tar:
        names = {entry.name: entry for entry in tar}
        assert "tree/old.txt" not in names
        changed = tar.extractfile("tree/src/a.txt")
        assert changed
        assert changed.read() == b"changed\n"
        assert (names["tree/main.py"].mode, names["tree/src/a.txt"].mode) == (0o755, 0o644)
        assert len({entry.mtime for entry in tar}) == 1


SEES = """
import json, os, subprocess, sys, distro, main
again = "import sys; print(sys.prefix)"
pythons = (sys.executable, f"{sys.prefix}/bin/python", f"{sys.prefix}/bin/python3")
prefixes = [sys.prefix, *(subprocess.check_output([each, "-c", again], text=True).strip() for each in pythons)]
print(json.dumps({"environ": dict(os.environ), "cwd": os.getcwd(), "path": sys.path, "prefixes": prefixes}))
"""
MAIN = "import annotated_doc\nimport booty_runner\napp = None\n"


def test_what_a_command_has(builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of a host: the dependencies, their console scripts, app_config_dir; and no more of this machine."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config/extra.py").write_text("")
    for name in ("SENTRY_AUTH_TOKEN", "SENTRY_DSN", "AWS_SECRET_ACCESS_KEY", "GIT_AUTHOR_NAME"):
        monkeypatch.setenv(name, "of this machine")
    for name in ("PYTHONPATH", "VIRTUAL_ENV", "LANG", "TZ", "SHELL", "NODE_ENV"):
        monkeypatch.setenv(name, "of this machine")
    monkeypatch.setenv("XDG_STATE_HOME", "/var/tmp")
    monkeypatch.setenv("no_proxy", "proxy")
    builder.commit({"main.py": MAIN, "sees.py": SEES, "requirements.txt": "annotated-doc==0.0.4\ndistro==1.9.0\n"})
    given = {"A": "of app_settings", "B": "of app_settings"}
    tree = builder.tree(
        serve="main:app",
        settings=given,
        config_dir=str(tmp_path / "config"),
        build=[
            "python sees.py > seen.json",
            "python3 -c 'import extra, annotated_doc'",
            "distro --json > /dev/null",
            "git rev-parse 2> git.txt || true",
        ],
        build_settings={"B": "of app_build_settings"},
    )
    seen = json.loads(tree["seen.json"])
    environ = seen["environ"]
    assert (environ["A"], environ["B"]) == ("of app_settings", "of app_build_settings")
    assert "of this machine" not in environ.values()
    release = seen["cwd"].removesuffix("/tree")
    assert re.fullmatch(r".*/build/releases/[0-9a-f]{40}", release)
    assert environ["PATH"] == f"{release}/bin:{os.environ['PATH']}"
    # Not a parent of the tree: Flask would take the app for an installed package.
    assert seen["prefixes"] == [f"{release}/venv"] * 4
    assert (environ["HOME"], environ["no_proxy"], "XDG_STATE_HOME" in environ) == (str(Path.home()), "proxy", False)
    assert environ["SENTRY_RELEASE"] == git.resolve(builder.folder, "HEAD")
    assert (environ["LC_ALL"], environ["TZ"]) == ("C.UTF-8", "UTC")
    assert b"not a git repository" in bytes(tree["git.txt"])


def test_it_is_built_once_until_an_input_changes(builder: Builder) -> None:
    builder.commit({"requirements.txt": ""})
    now = ["date +%s%N > now.txt"]
    first = builder.build(build=now, settings={"A": "1"})["release"]
    assert builder.build(build=now, settings={"A": "1"})["release"] == first
    assert builder.shown == [f"The build on this machine: {now[0]}"]
    others = [
        builder.build(build=now, settings={"A": "2"}),
        builder.build(build=now, settings={"A": "1"}, build_settings={"B": "1"}),
        builder.build(build=[*now, "true"], settings={"A": "1"}),
    ]
    assert len({first["sha256"], *(each["release"]["sha256"] for each in others)}) == 4
    # Without commands settings are no input.
    plain = [builder.build(build=[], settings={"A": value})["release"]["file"] for value in "12"]
    assert plain[0] == plain[1]


def test_another_build_has_the_same_bytes(builder: Builder) -> None:
    builder.commit({"a.txt": "a"})
    commands = ["mkdir b; cp a.txt b/2; ln b/2 b/1; sleep 0.01; touch a.txt; chmod 400 b/1; find . > c; sort -o c c"]
    first = builder.build(build=commands)["release"]
    Path(first["file"]).unlink()
    assert builder.build(build=commands)["release"] == first
    assert len(builder.shown) == 2


def test_the_folder_of_a_state_path_is_there_and_stays_here(builder: Builder) -> None:
    builder.commit({"data/rate.txt": "1"})
    tree = builder.tree(
        state_paths=["media/", "data/", "var/db.sqlite3"],
        build=[
            "test -d media && test -d var && ! test -e var/db.sqlite3 && cat data/rate.txt",
            "echo x > media/x; echo 2 > data/rate.txt; echo > var/y",
        ],
    )
    assert builder.shown[1] == "1"
    states = {
        "media": "/var/lib/shop/media",
        "data": "/var/lib/shop/data",
        "var/db.sqlite3": "/var/lib/shop/var/db.sqlite3",
    }
    assert tree == {**states, "var/y": b"\n", "seed/data/rate.txt": b"1"}


# The commands, and what the message says. `{sha}` is the short commit.
FAILURES: dict[str, tuple[list[str], str]] = {
    "a status": (
        ["true", "echo one; echo two >&2; exit 3", "touch never"],
        "The build of commit {sha} failed: `echo one; echo two >&2; exit 3` ended with the status 3. No host was"
        " changed.\none\ntwo",
    ),
    "a program that is not there": (
        ["nmp ci"],
        "`nmp ci` ended with the status 127. This machine has no nmp: install it, lock the package that has it, or"
        " commit what the command makes and leave it out of app_build. No host was changed.",
    ),
    "a program that a script does not find": (
        ["./script.sh"],
        "`./script.sh` ended with the status 127. No host was changed.\n./script.sh: 2: vite: not found",
    ),
    "a script that can't be executed": (["./main.py"], "`./main.py` ended with the status 126. No host was changed."),
    "a folder that is not there": (["cd frontend && npm ci"], "can't cd to frontend"),
    "no shell": (["if true"], "`if true` ended with the status 2."),
    "a signal": (["kill -9 $$"], "`kill -9 $$` was killed by SIGKILL. No host was changed."),
    "a question": (["read answer"], "`read answer` ended with the status 1. No host was changed."),
    "a missing setting": (
        ["python -c 'import os; os.environ[\"DATABASE_URL\"]'"],
        "The build has no secrets.env, and needs DATABASE_URL: give it a value for the build, which is no secret:"
        " app_build_settings: {DATABASE_URL: build}. No host was changed.\nTraceback (most recent call last):",
    ),
    "a module that is not locked": (["python -m no_such"], "No module named no_such"),
    "the app's folder": (["rm -r ../tree"], "`rm -r ../tree` removed the app's folder. No host was changed."),
    "no text": (["printf 'caf\\351\\n'; false"], "\ncaf\ufffd"),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> locks.Work:
    """Return a build of a repository with a script, for commands that do not need the layout of a release."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "repository").mkdir()
    sha = commit(folder / "repository", {"main.py": FASTAPI, "script.sh": "#!/bin/sh\nvite build\n"})
    return locks.Work(git.Tree(folder / "repository", sha), ".", folder, folder / "cache", 0)


def test_compiled_code_for_another_python_is_a_notice(work: locks.Work, tmp_path: Path) -> None:
    builder, host = lock.Host("3.11.7", MACHINE), lock.Host("3.13.5", MACHINE)
    files = {"site.css": b"a {}", "fast.so": b"\x7fELF\x02"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    entries = {name: tmp_path / name for name in files}
    steps.note_misfit(work, {"main.py": work.top() / "main.py", "site.css": entries["site.css"]}, builder, host)
    steps.note_misfit(work, {**entries}, host, host)
    assert work.notices == []
    steps.note_misfit(work, {**entries}, builder, host)
    (notice,) = work.notices
    work.notices.clear()
    assert "made fast.so, compiled code, with Python 3.11.7" in notice
    assert notice.endswith("Have the host's Python run the commands: uv python install 3.13")


@pytest.mark.parametrize("kind", FAILURES)
def test_a_command_that_fails_ends_the_build(work: locks.Work, tmp_path: Path, kind: str) -> None:
    commands, sentence = FAILURES[kind]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    shutil.copytree(work.top(), tmp_path / "tree")
    (tmp_path / "tree/script.sh").chmod(0o755)
    shown: list[str] = []
    with pytest.raises(process.BuildError) as refusal:
        steps.run_commands(work, commands, tmp_path, [], {}, steps.Steps(show=shown.append))
    assert sentence.replace("{sha}", work.tree.sha[:12]) in str(refusal.value)
    assert not any("touch never" in line for line in shown)


def test_the_message_has_the_last_lines_of_a_long_output(work: locks.Work, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    shown: list[str] = []
    with pytest.raises(process.BuildError) as refusal:
        steps.run_commands(work, ["seq 100000; printf end; exit 1"], tmp_path, [], {}, steps.Steps(show=shown.append))
    assert str(refusal.value).splitlines()[1:] == [*map(str, range(99982, 100001)), "end"]
    assert len(shown) == 100002


def test_a_link_to_this_machine_is_refused(work: locks.Work, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/name").symlink_to("/etc/hostname")
    with pytest.raises(process.BuildError) as refusal:
        steps.products(work, tmp_path)
    assert str(refusal.value) == (
        f"The build of commit {work.tree.sha[:12]} made s/name a link to /etc/hostname, which is not in the tree, so"
        " hosts do not have it. Let the command copy the file."
    )


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("django.core.exceptions.ImproperlyConfigured: Set the DATABASE_URL environment variable", "DATABASE_URL"),
        ("django.core.exceptions.ImproperlyConfigured: The SECRET_KEY setting must not be empty.", "SECRET_KEY"),
        ('environs.EnvError: Environment variable "A_B" not set', "A_B"),
        ("decouple.UndefinedValueError: KEY not found. Declare it as envvar or define a default value.", "KEY"),
        ("KeyError: \"Config 'DEBUG' is missing, and has no default.\"", "DEBUG"),
        ("KeyError: 'shop'", ""),
    ],
)
def test_what_libraries_say_of_a_missing_setting(words: str, name: str) -> None:
    step = steps.next_step("python manage.py collectstatic", f"Traceback\n{words}\n", "/usr/bin")
    assert (f"needs {name}: " in step) == bool(name)


def test_a_failed_build_is_not_tried_again_for_the_next_host(builder: Builder) -> None:
    builder.commit({"a.txt": "once"})
    for run, shown in (("one", 2), ("one", 2), ("two", 4)):
        with pytest.raises(process.BuildError, match="`echo a; false` ended with the status 1"):
            builder.build(build=["echo a; false"], run=run)
        assert len(builder.shown) == shown
    assert not [*(builder.cache / "releases").glob(f"{git.resolve(builder.folder, 'HEAD')}*.tar.gz")]


def test_secrets_of_a_build_are_not_shown(builder: Builder) -> None:
    builder.commit({"a.txt": "secrets"})
    given = {"NPM_TOKEN": "hunter2-token", "DB_URL": "postgres://me:hunter2@db/x", "MODE": "production", "KEY": "build"}
    with pytest.raises(process.BuildError) as refusal:
        builder.build(build=["echo $NPM_TOKEN $DB_URL $MODE $KEY; env | grep NPM; false"], build_settings=given)
    for text in (str(refusal.value), "\n".join(builder.shown)):
        assert "hunter2" not in text
        assert "*** *** production build\nNPM_TOKEN=***" in text


def test_a_process_that_stays_does_not_hold_the_build(work: locks.Work, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    begun, shown = time.monotonic(), [""]
    steps.run_commands(work, ["sleep 9 & echo $!"], tmp_path, [], {}, steps.Steps(show=shown.append))
    assert time.monotonic() - begun < 5
    os.kill(int(shown[-1]), signal.SIGTERM)


def test_a_check_runs_no_command(builder: Builder) -> None:
    builder.commit({"a.txt": "check"})
    builder.check = True
    assert builder.build(build=["touch x"])["release"] is None
    assert builder.shown == []
    builder.check = False
    built = builder.build(build=["touch x"])["release"]
    builder.check = True
    assert builder.build(build=["touch x"])["release"] == built


def test_the_folders_of_killed_builds_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("booty-build-old", "booty-build-new", "other"):
        (tmp_path / name).mkdir()
    for name in ("booty-build-old", "other"):
        os.utime(tmp_path / name, (1, 1))
    with uv.workplace() as running:
        os.utime(running, (1, 1))
        with uv.workplace():
            assert {path.name for path in tmp_path.iterdir()} > {"booty-build-new", "other", running.name}
            assert not (tmp_path / "booty-build-old").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"booty-build-new", "other"}


@pytest.mark.long
def test_a_host_with_another_python(builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian has no Python 3.12, so the Python that runs Ansible runs the commands, unless the app forbids it."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "none"))
    builder.commit({"requirements.txt": "distro==1.9.0\n"})
    built = builder.build("3.12.0", build=["python -c 'import distro, sys; print(sys.version)' > version.txt"])
    # They compile nothing.
    assert not any("commands" in notice for notice in built["notices"])
    with tarfile.open(built["release"]["file"]) as tar:
        version = tar.extractfile("tree/version.txt")
        assert version
        assert version.read().decode().startswith(f"{PYTHON}.")
    builder.commit({"pyproject.toml": '[project]\nname = "a"\nrequires-python = "==3.12.*"\n'})
    with pytest.raises(process.BuildError) as refusal:
        builder.build("3.12.0", build=["true"])
    assert "Install the host's series here: uv python install 3.12. Or build without commands: app_build: []" in str(
        refusal.value
    )


@pytest.mark.long
def test_a_deploy_with_commands(site: Site) -> None:
    """A check runs none; a failure and Ctrl-C leave the host as it was; what was made is on the host."""
    site.deploy()
    before = site.health()["release"]
    sha = site.release()
    commands: Any = {"app_build": '["echo $MODE > made.txt"]'}
    played = site.play("deploy.yml", "--check", **commands)
    assert played.status == 0, played.output
    assert "build: echo $MODE" in played.output
    assert "The build on this machine" not in played.output

    failing: Any = {
        "app_build": '["echo one; echo $API_TOKEN; exit 7"]',
        "app_build_settings": '{"API_TOKEN": "hunter2-x"}',
    }
    played = site.play("deploy.yml", "-vvv", "--diff", **failing)
    assert played.status == 2
    assert (
        f"The build of commit {sha[:12]} failed: `echo one; echo $API_TOKEN; exit 7` ended with the status 7."
        in words(played)
    )
    assert "hunter2" not in played.output

    running = site.start("deploy.yml", app_build='["echo sleeps as $$; exec sleep 3600"]')
    deadline = time.monotonic() + 60
    while not (match := re.search(r"sleeps as (\d+)", running.so_far())):
        assert time.monotonic() < deadline, running.so_far()
        time.sleep(0.1)
    sleeping = Path("/proc", match[1])
    assert sleeping.exists()
    os.kill(running.processes()[0], signal.SIGINT)
    assert running.end().status != 0
    deadline = time.monotonic() + 5
    while sleeping.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert site.health()["release"] == before
    assert site.host.ssh(f"test -e /opt/booty/releases/{sha}").returncode

    site.deploy(app_build_settings='{"MODE": "of the build"}', **commands)
    assert site.health()["release"] == sha
    assert site.run(f"cat /opt/booty/releases/{sha}/tree/app/made.txt") == "of the build"
    assert site.deploy(app_build_settings='{"MODE": "of the build"}', **commands).recap(site.host.name)["changed"] == 0
    played = site.play("deploy.yml", app_build_settings='{"MODE": "another"}', **commands)
    assert f"{site.host.name} has {sha} already, built from build_settings_hash" in words(played)
