"""docs/failures.md: each failure has a test, and those that no other file has are here."""

from __future__ import annotations

import ast
import re

import pytest

from tests.conftest import ROOT, Site, words

ROWS = [
    [cell.strip() for cell in line.strip("| \n").split(" | ")]
    for line in (ROOT / "docs/failures.md").read_text().splitlines()
    if re.match(r"\| (?!what fails|---)", line)
]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_failure_says_what_it_leaves_and_has_a_test(row: list[str]) -> None:
    _, left, next_run, test = row
    assert left
    assert next_run
    file, _, name = test.strip("`").partition("::")
    functions = [node.name for node in ast.parse((ROOT / "tests" / file).read_text()).body if hasattr(node, "name")]
    assert name in functions


def test_maintenance_without_a_proxy_changes_nothing(site: Site) -> None:
    played = site.play("maintenance.yml", maintenance="on")
    assert (played.status, played.recap(site.host.name)["changed"]) == (2, 0)
    assert "This app has no app_domains, so no proxy can close it. Nothing was changed." in words(played)
    missing = site.play("maintenance.yml", app_domains="shop.test")
    command = f"ansible-playbook maintenance.yml -i {site.inventory}"
    assert f"Say what to do: {command} -e maintenance=on (or off) Nothing was changed." in words(missing)
