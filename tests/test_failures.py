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
    assert played.status == 4
    assert "app_domains is empty, so there is no proxy that could close the app. Nothing was changed." in words(played)
    command = f"ansible-playbook maintenance.yml -i {site.inventory} -e maintenance"
    both = f"To close the app: {command}=on. To open it: {command}=off Nothing was changed."
    missing = site.play("maintenance.yml", app_domains="shop.test")
    assert (missing.status, f"There is no -e maintenance. {both}" in words(missing)) == (4, True), missing.output
    wrong = site.play("maintenance.yml", app_domains="shop.test", maintenance="an")
    assert (wrong.status, f"maintenance is an, and must be on or off. {both}" in words(wrong)) == (4, True)
