"""The private names of the runner's dependencies: the rewritten sources, and the folder `_vendor` of a checkout."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import build, checkout, lock, process, vendor
from packaging.utils import canonicalize_name

VENDOR = build.RUNNER / "src/booty_runner/_vendor"
PACKAGES = {"certifi", "httptools", "sentry_sdk", "urllib3", "uvicorn", "uvloop", "websockets"}
P = vendor.PREFIX


@pytest.mark.parametrize(
    ("source", "renamed"),
    [
        ("import urllib3", f"from {P} import urllib3"),
        ("    import urllib3  # a comment", f"    from {P} import urllib3  # a comment"),
        ("import urllib3 as http", f"from {P} import urllib3 as http"),
        ("import urllib3.util as util", f"import {P}.urllib3.util as util"),
        ("  import urllib3.util", f"  import {P}.urllib3.util; from {P} import urllib3"),
        ("from urllib3 import util", f"from {P}.urllib3 import util"),
        ("from urllib3.util import (\n    url,\n)", f"from {P}.urllib3.util import (\n    url,\n)"),
        ("from uvicorn.config import Config", "from booty_runner.protocol_config import Config"),
        ("import brotli", f"from {P} import brotli"),
        ("from h2 import config", f"from {P}.h2 import config"),
        ("log = getLogger(__name__)", 'log = getLogger("urllib3.util.url")'),
        ("import urllib.parse", "import urllib.parse"),
        ("import urllib3_mock", "import urllib3_mock"),
        ("from . import urllib3", "from . import urllib3"),
        ("from urllib3 to anything else", "from urllib3 to anything else"),
        ('x = "certifi"', 'x = "certifi"'),
    ],
)
def test_an_import_gets_the_private_name(source: str, renamed: str) -> None:
    assert vendor.rename(source, "urllib3/util/url.py", PACKAGES) == renamed


@pytest.mark.parametrize(
    ("file", "source", "renamed"),
    [
        ("certifi/core.py", 'files("certifi")', f'files("{P}.certifi")'),
        ("sentry_sdk/a.py", '"sentry_sdk.integrations.argv.A"', f'"{P}.sentry_sdk.integrations.argv.A"'),
        ("sentry_sdk/a.py", 'startswith("sentry_sdk.")', f'startswith("{P}.sentry_sdk.")'),
        ("sentry_sdk/a.py", 'getLogger("sentry_sdk.errors")', 'getLogger("sentry_sdk.errors")'),
        # An integration is for a package of the app.
        ("sentry_sdk/integrations/a.py", "import httpcore", "import httpcore"),
    ],
)
def test_strings_that_name_modules_are_renamed(file: str, source: str, renamed: str) -> None:
    assert vendor.rename(source, file, PACKAGES) == renamed


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module)


def test_nothing_private_imports_a_public_name() -> None:
    """Read as Python reads it, so that a new form of import in a new version is found."""
    left = set()
    for path in (path for path in VENDOR.rglob("*.py*") if path.suffix in {".py", ".pyi"}):
        name = path.relative_to(VENDOR).as_posix()
        tops = {module.partition(".")[0] for module in imported(ast.parse(path.read_text()))}
        assert not tops & PACKAGES, name
        if not name.startswith(vendor.INTEGRATIONS):
            left |= tops - {*sys.stdlib_module_names, "booty_runner"}
    # Python 3.14 has `compression`. The others are not imported before the app imports or configures something of the
    # kind: a WSGI server, an integration for openai, SOCKS, pyOpenSSL; the SDK imports the other two in old Pythons.
    assert left - {"compression"} == {"OpenSSL", "aiocontextvars", "openai", "pkg_resources", "socks", "uwsgi"}


def test_each_private_module_leaves_the_public_names_free() -> None:
    """Also the C extensions, which Cython registers under their public names."""
    code = f"""
import sys
sys.path.insert(0, {str(build.RUNNER / "src")!r})
from {P} import certifi, httptools, sentry_sdk, urllib3, uvloop
from {P}.uvicorn.protocols.http import httptools_impl
from {P}.uvicorn.protocols.websockets import websockets_sansio_impl
from {P}.websockets import speedups
httptools.HttpRequestParser(None); uvloop.new_event_loop().close()
assert certifi.where().startswith({str(VENDOR)!r})
print(*sorted(name for name in sys.modules if name.partition(".")[0] in {PACKAGES | {*vendor.OPTIONAL}!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_each_license_is_kept() -> None:
    runner_lock = (build.RUNNER / "requirements.txt").read_text()
    packages = lock.packages_in(runner_lock, lock.Host("3.11.0", "x86_64"), ".")
    locked = {f"{name}-{package.version}" for name, package in packages.items()}
    folders = {path.name: path for path in (VENDOR / "licenses").iterdir()}
    assert {canonicalize_name(name) for name in folders} == {canonicalize_name(name) for name in locked}
    for name, folder in folders.items():
        assert [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 500], name


def test_a_uvicorn_without_the_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in/uvicorn").mkdir(parents=True)
    (tmp_path / "in/uvicorn/_types.py").write_text("")
    with pytest.raises(process.BuildError, match=r"has no uvicorn/protocols/http/flow_control\.py, which the runner"):
        vendor.vendor(tmp_path / "in", tmp_path / "out")


def test_a_checkout_is_written_again_only_if_something_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src/booty_runner").mkdir(parents=True)
    lock_file = tmp_path / "requirements.txt"
    lock_file.write_bytes((build.RUNNER / "requirements.txt").read_bytes())
    monkeypatch.setattr(checkout, "RUNNER", tmp_path)
    written = tmp_path / "src/booty_runner/_vendor/uvicorn/protocols/utils.py"
    checkout.main()
    assert written.read_bytes() == (VENDOR / "uvicorn/protocols/utils.py").read_bytes()
    written.write_text("mine")
    checkout.main()
    assert written.read_text() == "mine"
    lock_file.write_text(lock_file.read_text() + "# changed\n")
    checkout.main()
    assert written.read_text() != "mine"
