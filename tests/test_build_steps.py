"""The build's own steps: commands on the controller whose files are part of the release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import describe, git

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
    assert len({one["build_values"], other["build_values"], committed["build_values"]}) == 3
    # Settings without steps change nothing.
    off = describe.describe(tmp_path, sha, ".", {"build": [], "build_settings": {"A": "1"}})
    assert (off["build_settings"], off["build_values"]) == ([], "")
