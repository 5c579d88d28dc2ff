"""Maintenance of an app, and what `status.yml` shows of the proxy."""

from __future__ import annotations

import json
import time
from typing import Any

from booty_host.files import read, write_atomically

from booty_proxy import apply, certificates, instances
from booty_proxy.paths import Paths


def maintenance(name: str, on: bool, check: bool) -> dict[str, Any]:
    """Close an app for maintenance, or open it again. No process is touched."""
    host = Paths()
    flag = host.maintenance / name
    if flag.exists() == on:
        return {"changed": False}
    if not check:
        write_atomically(flag, "") if on else flag.unlink()
    return {"changed": True}


def status(host: Paths) -> dict[str, Any]:
    """Return the state of each app's names, by the app: the end of the certificate as it is served, and problems."""
    records, now = json.loads(read(host.renewals) or "{}"), time.time()
    draining = instances.draining(host)
    answer = {}
    for site in apply.sites(host).values():
        names = {}
        for name in site.names:
            dates, end = certificates.lifetime(host.certificate(site.certificate_of(name))), certificates.served(name)
            short = end is not None and dates is not None and end - now < (dates[1] - dates[0]) / 6
            problem = records.get(name, {}).get("problem", "")
            if end is None and not problem:
                problem = "no certificate is served"
            elif end is not None and dates is not None and end != dates[1]:
                problem = problem or "another certificate is served than the one on disk"
            names[name] = {"until": end, "short": short, "problem": problem}
        answer[site.name] = {
            "names": names,
            "maintenance": (host.maintenance / site.name).exists(),
            "running": bool(instances.serving(host)),
            "draining": draining,
        }
    return answer
