"""systemd-analyze finds the faults of an app's units; the faults of another package's units are not the app's."""

from __future__ import annotations

from pathlib import Path

import pytest
from booty_host.app import App
from booty_host.systemd import Systemd

SERVICE = "[Unit]\nRequires=my-shop.service\n[Service]\nExecStart=/bin/true\n"


def test_only_faults_of_the_app_s_own_units_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYSTEMD_UNIT_PATH", f"{tmp_path}:")
    (tmp_path / "my-shop.service").write_text("[Service]\nExecStart=/bin/true\nNonsense=1\n")
    systemd = Systemd(App("shop"))
    assert systemd.verify({"shop.service": SERVICE}) == ""
    faulty = f"{SERVICE}Nonsense=1\n"
    assert (
        systemd.verify({"shop.service": faulty})
        == "shop.service:5: Unknown key 'Nonsense' in section [Service], ignoring."
    )


def test_a_slice_of_a_name_with_dashes_can_be_used() -> None:
    app = App("my-shop")
    service = f"[Service]\nExecStart=/bin/true\nSlice={app.slice}\n"
    systemd = Systemd(app)
    assert systemd.verify({app.service: service, app.slice: "[Slice]\nMemoryMax=1G\n"}) == ""
    assert systemd.verify({app.service: service, app.slice: "[Slice]\nMemory=1G\n"}).startswith(f"{app.slice}:2: ")
