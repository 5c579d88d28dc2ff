"""Give the runner's dependencies private names, so that no package of an app can replace or break one of them.

A release has one process with two owners: the app, with the versions of its lock, and the runner. A package can be
imported once under one name. So the packages of the runner are imported as `booty_runner._vendor.NAME`; this module
rewrites their installed files for that.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from .archive import files
from .process import BuildError

PREFIX = "booty_runner._vendor"
# Of uvicorn, only the protocols are taken. Its Config and ServerState would import click and h11, and load classes by
# names in strings; `booty_runner.protocol_config` has the attributes that the protocols read.
UVICORN = {
    "uvicorn/_types.py",
    "uvicorn/protocols/http/flow_control.py",
    "uvicorn/protocols/http/httptools_impl.py",
    "uvicorn/protocols/utils.py",
    "uvicorn/protocols/websockets/websockets_sansio_impl.py",
}
# Sources of C extensions, tests, commands, and the parts of websockets that do I/O themselves.
UNUSED = re.compile(
    r".*\.(c|js|pxd|pxi|pyx)|.*/__main__\.py|certifi/tests/.*|uvloop/_testbase\.py|urllib3/contrib/emscripten/.*"
    r"|websockets/(asyncio|cli|legacy|sync|trio)\b.*"
)
# Packages that the runner's dependencies import if the app has them. Renamed, these imports find nothing, so the app's
# lock does not change what the runner does. The integrations of sentry_sdk go on importing the app's packages.
OPTIONAL = (
    *("anyio", "backports", "brotli", "brotlicffi", "cryptography", "django", "eventlet", "gevent", "greenlet", "h2"),
    *("httpcore", "idna", "typing_extensions"),
)
INTEGRATIONS = "sentry_sdk/integrations/"
# Strings that name modules: the pattern, in which files, and the replacement.
STRINGS = (
    (r'"certifi"', "certifi/", f'"{PREFIX}.certifi"'),
    # The default integrations, and the prefix "sentry_sdk." that marks the SDK's own frames. Logger names stay.
    (r'"sentry_sdk\.(?="|integrations\.|spotlight\.)', "sentry_sdk/", f'"{PREFIX}.sentry_sdk.'),
)
# Cython registers a module in sys.modules under the name of its compilation too, if that is free. The app's import
# would then get parts of the runner's package.
UNREGISTER = """
import sys as _sys

for _name in {names}:
    if _name in _sys.modules and _sys.modules[_name] is _sys.modules.get(f"{prefix}.{{_name}}"):
        del _sys.modules[_name]
"""


def rename(source: str, file: str, packages: set[str]) -> str:
    """Return the source of a module with the private names of packages in its imports.

    Args:
        source: the text of a `.py` or `.pyi` file.
        file: its path below the import path, such as `urllib3/util/url.py`.
        packages: the names of all packages that become private.
    """
    names = "|".join(sorted(packages if file.startswith(INTEGRATIONS) else packages | {*OPTIONAL}))

    def of_import(match: re.Match[str]) -> str:
        indent, package, module, alias = match.groups(default="")
        parent = f"{indent}from {PREFIX} import {package}"
        if not module:
            return f"{parent}{alias}"
        whole = f"{indent}import {PREFIX}.{package}{module}{alias}"
        return whole if alias else f"{whole}; {parent.strip()}"

    source = re.sub(
        r"^( *from )uvicorn\.(config|logging|server) ", r"\1booty_runner.protocol_config ", source, flags=re.MULTILINE
    )
    source = re.sub(rf"^( *from )(?=({names})[. ].*\bimport\b)", rf"\1{PREFIX}.", source, flags=re.MULTILINE)
    source = re.sub(rf"^( *)import ({names})((?:\.\w+)*)( as \w+)?(?= *(?:#|$))", of_import, source, flags=re.MULTILINE)
    for pattern, folder, replacement in STRINGS:
        if file.startswith(folder):
            source = re.sub(pattern, replacement, source)
    # Applications set the levels of these loggers, and the SDK ignores urllib3's: their names stay.
    name = re.sub(r"(/__init__)?\.pyi?$", "", file).replace("/", ".")
    return source.replace("getLogger(__name__)", f'getLogger("{name}")')


def vendor(installed: Path, target: Path) -> None:
    """Write installed packages, renamed and without what the runner does not use, into a folder `_vendor`.

    Args:
        installed: a folder with the packages of the runner's lock, as an installer leaves them.
        target: the folder to write; it becomes the package `booty_runner._vendor`.

    Raises:
        BuildError: uvicorn lacks a file of UVICORN, so the runner does not fit the locked version.
    """
    content: dict[str, bytes] = {"__init__.py": b'"""The runner\'s dependencies, written by `vendor.py`."""\n'}
    every = {path.relative_to(installed).as_posix(): path for path in files(installed)}
    packages = {name.split("/")[0] for name in every if ".dist-info/" not in name}
    if missing := UVICORN - {*every}:
        raise BuildError(f"The locked uvicorn has no {min(missing)}, which the runner needs.")
    for name, path in every.items():
        package, _, inner = name.partition("/")
        if package.endswith(".dist-info"):
            # The app can't import these packages, so importlib.metadata must not find them: leave out their metadata.
            if re.match(r"(.*/)?(LICEN[CS]E|COPYING|NOTICE)", inner):
                content[f"licenses/{package.removesuffix('.dist-info')}/{inner.removeprefix('licenses/')}"] = (
                    path.read_bytes()
                )
        elif package == "uvicorn" and name not in UVICORN:
            if path.name == "__init__.py" and any(file.startswith(name[: -len(path.name)]) for file in UVICORN):
                content[name] = b""
        elif not UNUSED.fullmatch(name):
            source = path.read_bytes()
            renamed = path.suffix in {".py", ".pyi"}
            content[name] = rename(source.decode(), name, packages).encode() if renamed else source
    extensions: dict[str, list[str]] = {}
    for name in content:
        if name.endswith(".so"):
            path_of = PurePosixPath(name)
            module = ".".join((*path_of.parent.parts, path_of.name.split(".")[0]))
            extensions.setdefault(f"{path_of.parent}/__init__.py", []).append(module)
    for name, modules in extensions.items():
        content[name] += UNREGISTER.format(names=(*modules,), prefix=PREFIX).encode()
    for name, data in content.items():
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
