"""The borders of the programs: the packages that the code of each program may import, as docs/architecture.md says."""

from __future__ import annotations

import ast
import sys

import pytest

from tests.conftest import ROOT

PROGRAMS = {
    # The controller code: Ansible and the libraries of requirements/controller.txt.
    "plugins": {
        *("ansible", "ansible_collections", "cyclonedx", "jinja2", "packageurl", "packaging", "rich", "uv", "yaml"),
    },
    # The host program: Python's standard library alone.
    "roles/app/files": {"booty_host"},
    # Its second package, which the host keeps for the proxy's timers.
    "roles/proxy/files": {"booty_host", "booty_proxy"},
    # The runner: no app, and no framework.
    # Private names alone: of the packages that an app may have too, none is imported by its own name.
    "runner/src": {"booty_runner"},
    # The bundled app: the hooks of the runner, as every other app has them.
    "app/src": {
        *("booty", "booty_runner", "fastapi", "psycopg", "pydantic", "pydantic_settings", "sentry_sdk", "starlette"),
    },
    # The sandbox knows the hosts from outside; its tracker is Bugsink, which brings the other packages.
    "sandbox": {"bsmain", "bugsink", "django", "projects", "sandbox"},
}


def imports(folder: str) -> set[str]:
    """Return the top-level packages that a folder's code imports, also in functions; the standard library aside."""
    packages = set()
    for path in (path for path in (ROOT / folder).rglob("*.py") if "_vendor" not in path.parts):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                packages |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                packages.add(str(node.module).partition(".")[0])
    return packages - {*sys.stdlib_module_names}


@pytest.mark.parametrize("folder", PROGRAMS)
def test_a_program_imports_only_what_it_may(folder: str) -> None:
    assert imports(folder) == PROGRAMS[folder]


def test_the_app_uses_the_hooks_of_the_runner_alone() -> None:
    """docs/runner.md describes these modules; all others may change without a word to apps."""
    used = set()
    for path in (ROOT / "app/src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names if alias.name.startswith("booty_runner")}
            elif isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "booty_runner":
                used.add(str(node.module))
    documented = {"deadline", "redact", "target", "verify"}
    assert used <= {"booty_runner", *(f"booty_runner.{module}" for module in documented)}
