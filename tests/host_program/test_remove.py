"""What a removal names: the files that it deletes, and those that it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from booty_host import remove
from booty_host.app import App


@pytest.mark.parametrize(
    ("site", "kept"),
    [
        (
            {"domains": ["shop.example.com"], "domain_redirects": ["www.example.com"], "own_key": ""},
            ["shop.example.com", "www.example.com"],
        ),
        ({"domains": ["shop.example.com"], "domain_redirects": [], "own_key": "0123456789ab"}, ["shop-0123456789ab"]),
    ],
)
def test_the_part_of_the_proxy_is_deleted_and_certificates_stay(
    tmp_path: Path, site: dict[str, object], kept: list[str]
) -> None:
    app, front, certs = App("shop", tmp_path), tmp_path / "etc/booty-front", tmp_path / "var/lib/booty-acme/certs"
    for folder in (front / "apps", front / "keys", front / "pages", certs, app.opt):
        folder.mkdir(parents=True)
    configuration = [front / "apps/shop.json", front / "apps/shop.conf", front / "pages/shop.html"]
    for file in configuration[1:]:
        file.touch()
    configuration[0].write_text(json.dumps(site))
    pairs = [path for name in kept for path in (certs / f"{name}-cert.pem", front / f"keys/{name}.key")]
    for path in (*pairs, certs / "other-cert.pem"):
        path.touch()
    answer = remove.remove(app, "anna removes shop", 0, confirmed=False, check=False)
    assert answer["deletes"] == [str(path) for path in (app.opt, *configuration)]
    assert answer["keeps"] == [str(path) for path in pairs]
