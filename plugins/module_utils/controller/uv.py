"""Run uv and build backends so that the controller's settings can't change the archives."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from uv import find_uv_bin

from .process import BuildError, run

# Prefixes of the settings of uv that are kept, as variables and in uv.toml: the sources of packages and the network.
UV_KEPT = (
    "allow-insecure-host",
    "cache-dir",
    "concurrent-downloads",
    "credentials-dir",
    "default-index",
    "extra-index-url",
    "find-links",
    "http-",
    "https-",
    "index",
    "insecure-host",
    "keyring-provider",
    "native-tls",
    "no-index",
    "no-proxy",
    "offline",
    "system-certs",
)
# uv and build backends search these files in the app's folder and in all parent folders. These end the search.
BARRIERS = {"uv.toml": "", ".gitignore": "", ".hgignore": "", "pyproject.toml": "[tool.uv.workspace]\n"}


PREFIX = "booty-build-"
# Seconds in which a new folder may not be locked yet.
FRESH = 60


@contextmanager
def workplace() -> Iterator[Path]:
    """Make a temporary folder in which Python, uv and build backends read none of the controller's other settings."""
    sweep()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name, held(name):
        directory = Path(name).resolve()
        for barrier, content in BARRIERS.items():
            (directory / barrier).write_text(content)
        home = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
        systems = (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
        system = [file for each in systems if (file := Path(each, "uv/uv.toml")).is_file()]
        settings = {"home": home / "uv/uv.toml", "system": next(iter(system), Path("/etc/uv/uv.toml"))}
        if os.environ.get("UV_CONFIG_FILE"):
            settings = {"home": Path(os.environ["UV_CONFIG_FILE"]), "system": Path(os.devnull)}
        for level, file in settings.items():
            (directory / level / "uv").mkdir(parents=True)
            (directory / level / "uv/uv.toml").write_text(sources(file))
        yield directory


@contextmanager
def held(directory: str | Path) -> Iterator[None]:
    """Hold an flock on a folder; raise OSError if another process holds it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def sweep() -> None:
    """Remove the folders of builds that were killed, as by Ctrl-C: they may be large."""
    for abandoned in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        # The folder may be another user's or in use, or another process removes it too.
        with suppress(OSError):
            if time.time() - abandoned.stat().st_mtime > FRESH:
                with held(abandoned):
                    shutil.rmtree(abandoned)


def sources(file: Path) -> str:
    """Return a uv.toml with the settings of UV_KEPT from another one; raise BuildError when that can't be read."""

    def toml(value: Any) -> str:
        if isinstance(value, dict):
            return f"{{{', '.join(f'{json.dumps(name)} = {toml(each)}' for name, each in value.items())}}}"
        if isinstance(value, list):
            return f"[{', '.join(map(toml, value))}]"
        return json.dumps(value, ensure_ascii=False)

    def kept(table: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in table.items() if name.startswith(UV_KEPT)}

    try:
        table = tomllib.loads(file.read_text())
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise BuildError(f"{file}, uv's configuration, can't be read: {error}") from None
    table = {**kept(table), "pip": kept(table.get("pip", {}))}
    return "".join(f"{name} = {toml(value)}\n" for name, value in table.items())


def uv(directory: Path, *arguments: str, **environment: str) -> bytes:
    """Run the locked uv in a workplace, with `environment` or by default with the controller's; return its output.

    Only a build of a wheel runs code of a package, and only a build passes an `environment`. Otherwise uv's variables
    and settings alone can change the result.
    """
    variables = environment or {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    prefixes = tuple(f"UV_{name.upper().replace('-', '_')}" for name in UV_KEPT)
    variables |= {name: value for name, value in os.environ.items() if name.startswith(prefixes)}
    # UV_PYTHON is the Python of this process, so uv does not search for one or download one.
    variables |= {"UV_PYTHON": sys.executable, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
    variables |= {"XDG_CONFIG_HOME": str(directory / "home"), "XDG_CONFIG_DIRS": str(directory / "system")}
    return run(find_uv_bin(), *arguments, cwd=directory, env=variables)


# The controller's variables that a build backend needs to run and to reach an index.
BACKEND = {"PATH", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"}
PROXIES = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}


def backend_environment(directory: Path, time: int) -> dict[str, str]:
    """Return the environment of a build backend; between controllers only paths and proxies differ in it."""
    home = Path.home()
    return {
        **{name: value for name, value in os.environ.items() if name in BACKEND or name.lower() in PROXIES},
        # An empty home, because setuptools reads ~/.pydistutils.cfg. The next three variables lead uv to the user's
        # cache, Pythons and passwords.
        "HOME": str(directory / "home"),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(home / ".cache"),
        "XDG_DATA_HOME": os.environ.get("XDG_DATA_HOME") or str(home / ".local/share"),
        "NETRC": os.environ.get("NETRC") or str(home / ".netrc"),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",
        # A zip archive can't hold a time before 1980.
        "SOURCE_DATE_EPOCH": str(max(time, 315532800)),
    }


def package_environment(directory: Path, time: int) -> dict[str, str]:
    """Return the environment of a build of a dependency, whose repository git may have to fetch."""
    # ssh itself finds the user's home directory without HOME.
    kept = ("SSH_AUTH_SOCK", "GIT_SSH", "GIT_SSH_COMMAND")
    return {
        **backend_environment(directory, time),
        **{name: os.environ[name] for name in kept if name in os.environ},
        "GIT_CONFIG_GLOBAL": os.environ.get("GIT_CONFIG_GLOBAL") or str(Path.home() / ".gitconfig"),
    }


def build_environment(directory: Path, sha: str, time: int) -> dict[str, str]:
    """Return the environment of a build of the app, whose version is that of its commit."""
    return {
        **backend_environment(directory, time),
        # A version from git's tags depends on the clone, which may lack tags. So the commit gives the version, to
        # setuptools-scm and hatch-vcs, to the backends of PDM, of Poetry and of uv with dynamic versions, and to pbr.
        "SETUPTOOLS_SCM_PRETEND_VERSION": f"0+{sha}",
        "PDM_BUILD_SCM_VERSION": f"0+{sha}",
        "POETRY_DYNAMIC_VERSIONING_BYPASS": f"0+{sha}",
        "UV_DYNAMIC_VERSIONING_BYPASS": f"0+{sha}",
        "PBR_VERSION": "0",
    }
