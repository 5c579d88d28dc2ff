"""Take an app off the host."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from booty_host import journal, lease, programs, sockets
from booty_host.app import App
from booty_host.files import read
from booty_host.programs import Programs
from booty_host.release import Release, labels_on_disk
from booty_host.systemd import Systemd


def remove(app: App, by: str, wait: int, confirmed: bool, check: bool) -> dict[str, Any]:
    """Stop an app's units, and delete its units, releases, layers, release.env and its part of the proxy.

    The service drains its connections first. Its secrets, its state, its certificates and its user stay.

    Args:
        app: the app.
        by: who asks and for what, for the journal and for runs that meet the lock.
        wait: how long to wait while another run holds the app's deploy lock, in seconds.
        confirmed: whether to remove it; without that the call only says what it would delete and keep.
        check: as without `confirmed`.
    """
    systemd = Systemd(app)
    units = (*app.units, *programs.on_disk(app))
    paths = (*(app.unit_files / unit for unit in units), app.opt, app.release_env, app.static, *of_proxy(app))
    present = [path for path in paths if path.exists()]
    serves = labels_on_disk(app).get("SENTRY_RELEASE", "")
    answer = {
        "deletes": [str(path) for path in present],
        "keeps": [str(path) for path in (app.secrets_env, app.var, *certificates(app)) if path.exists()],
        "serves": serves,
    }
    if not present or check or not confirmed:
        return {**answer, "changed": bool(present)}

    def work() -> dict[str, Any]:
        Programs(app, systemd).follow(Release(app, "", {}), set(), 0)
        if ending := programs.running(app, systemd):
            # Each has its own time to end, which the call before has begun.
            systemd.systemctl("stop", *ending)
            Programs(app, systemd).follow(Release(app, "", {}), set(), 0)
        # The sockets first, so that no connection starts the service again.
        units = [
            unit for unit in (app.socket, app.http_socket, app.service, app.candidate) if read(app.unit_files / unit)
        ]
        if units:
            systemd.systemctl("disable", "--now", *units)
            systemd.systemctl("reset-failed", *units, check=False)
            systemd.systemctl("stop", app.slice)
        for unit in app.units:
            (app.unit_files / unit).unlink(missing_ok=True)
            shutil.rmtree(app.unit_files / f"{unit}.d", ignore_errors=True)
        systemd.systemctl("daemon-reload")
        sockets.leave_proxy(app)
        app.release_env.unlink(missing_ok=True)
        shutil.rmtree(app.opt)
        shutil.rmtree(app.static, ignore_errors=True)
        shutil.rmtree(app.commands, ignore_errors=True)
        app.shell.unlink(missing_ok=True)
        shutil.rmtree(app.started, ignore_errors=True)
        journal.log(app, f"removed; {by}", result="removed", release=serves, by=by)
        return {**answer, "changed": True}

    return lease.detached(app, work, by, wait)


def of_proxy(app: App) -> list[Path]:
    """Return the files that the proxy has for an app with domains; see `booty_proxy.apply.texts`."""
    front = app.root / "etc/booty-front"
    return [front / f"apps/{app.name}.json", front / f"apps/{app.name}.conf", front / f"pages/{app.name}.html"]


def certificates(app: App) -> list[Path]:
    """Return the certificates of an app's domains, and their keys; a certificate of one's own has the app's name."""
    site = json.loads(read(of_proxy(app)[0]) or "{}")
    own, domains = site.get("own_key"), [*site.get("domains", []), *site.get("domain_redirects", [])]
    names = [f"{app.name}-{own}"] if own else domains
    places = ("var/lib/booty-acme/certs/{}-cert.pem", "var/lib/booty-acme/certs/{}.csr", "etc/booty-front/keys/{}.key")
    return [app.root / place.format(name) for name in names for place in places]
