"""The imports that each package may have: the runner imports no app and no framework."""

import ast
import sys

import pytest
from runner.tests.conftest import ROOT

RUNNER = {"booty_runner", "httptools", "sentry_sdk", "urllib3", "uvicorn", "uvloop"}
APP = {"booty", "booty_runner", "fastapi", "psycopg", "pydantic", "pydantic_settings", "sentry_sdk", "starlette"}


def imported(folder):
    """Return the top-level names of all imports, also of those within functions."""
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module)
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names


@pytest.mark.parametrize(("folder", "names"), [("runner/src", RUNNER), ("app/src", APP)])
def test_imports(folder, names):
    assert imported(folder) == names
