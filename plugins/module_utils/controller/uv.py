"""Run uv and build backends so that the settings of the controller can not change what they make."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uv import find_uv_bin

from .process import BuildError, run

# What of uv's settings counts: where packages come from, and how they are reached. Each as a variable and in uv.toml.
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
# Read by uv and build backends in the folder of an app and in all above it.
BARRIERS = {"uv.toml": "", ".gitignore": "", ".hgignore": "", "pyproject.toml": "[tool.uv.workspace]\n"}


@contextmanager
def workplace() -> Iterator[Path]:
    """Give a folder to build in, whose Python, build backend and uv see nothing of the controller's settings."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name).resolve()
        for barrier, content in BARRIERS.items():
            (directory / barrier).write_text(content)
        home = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
        systems = (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
        system = [file for each in systems if (file := Path(each, "uv/uv.toml")).is_file()]
        settings = {"home": home / "uv/uv.toml", "system": next(iter(system), Path("/etc/uv/uv.toml"))}
        if os.environ.get("UV_CONFIG_FILE"):
            settings = {"home": Path(os.environ["UV_CONFIG_FILE"]), "system": Path(os.devnull)}
        for whose, file in settings.items():
            (directory / whose / "uv").mkdir(parents=True)
            (directory / whose / "uv/uv.toml").write_text(sources(file))
        yield directory


def sources(file: Path) -> str:
    """Return what a uv.toml says of where packages come from, as a uv.toml; raise BuildError when it can't be read."""

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


def uv(directory: Path, *arguments: str, **environment: str) -> None:
    """Run the locked uv in a workplace, with the controller's environment or another one.

    Without another one no code of a package runs: only uv's own variables and settings can change what it makes.
    """
    passed = environment or {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    chosen = tuple(f"UV_{name.upper().replace('-', '_')}" for name in UV_KEPT)
    passed |= {name: value for name, value in os.environ.items() if name.startswith(chosen)}
    # This Python, so that none is searched for or downloaded.
    passed |= {"UV_PYTHON": sys.executable, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
    passed |= {"XDG_CONFIG_HOME": str(directory / "home"), "XDG_CONFIG_DIRS": str(directory / "system")}
    run(find_uv_bin(), *arguments, cwd=directory, env=passed)


# Variables of the controller that a build backend gets, since it could not run or reach an index without them.
BACKEND = {"PATH", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"}
PROXIES = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}


def build_environment(directory: Path, sha: str, time: int) -> dict[str, str]:
    """Return the environment of a build backend: the same on every controller, but for where things lie."""
    home = Path.home()
    return {
        **{name: value for name, value in os.environ.items() if name in BACKEND or name.lower() in PROXIES},
        # Not the user's: setuptools reads ~/.pydistutils.cfg. uv finds its cache, passwords and Pythons all the same.
        "HOME": str(directory / "home"),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(home / ".cache"),
        "XDG_DATA_HOME": os.environ.get("XDG_DATA_HOME") or str(home / ".local/share"),
        "NETRC": os.environ.get("NETRC") or str(home / ".netrc"),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",
        # The first time that a zip archive can hold.
        "SOURCE_DATE_EPOCH": str(max(time, 315532800)),
        # A version that comes from git's tags is not in the commit: a clone may lack them.
        "SETUPTOOLS_SCM_PRETEND_VERSION": f"0+{sha}",
        "PDM_BUILD_SCM_VERSION": f"0+{sha}",
    }
