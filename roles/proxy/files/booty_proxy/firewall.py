"""Close the own port of an app that moves behind the proxy, in the ruleset that the bootstrap wrote.

The bootstrap leaves the port open, because clients use it until the app has the proxy's socket. It marks it in the
comment of the app's ports: `moving 8000`.
"""

from __future__ import annotations

import hashlib
import re
import time

from booty_host import HostError
from booty_host.files import read, write_atomically
from booty_host.processes import run

from booty_proxy.config import Site
from booty_proxy.host import checked, states
from booty_proxy.paths import Paths

# Seconds that clients on the old port have, after the app got the proxy's socket.
GRACE_SECONDS = 3600


def moving(text: str, name: str) -> int:
    """Return the port of an app that a ruleset leaves open while the app moves; 0 if there is none."""
    match = re.search(rf"^# {name}: .*; moving (\d+)$", text, re.MULTILINE)
    return int(match[1]) if match else 0


def closed(text: str, name: str) -> str:
    """Return a ruleset without the port of an app that has moved, as the next bootstrap would write it."""
    port = moving(text, name)
    head, _, rules = text.partition("table inet booty {\n")

    def without(match: re.Match[str]) -> str:
        kept = [number for number in re.findall(r"\d+", match[2]) if int(number) != port]
        return match[1] + (", " if "," in match[2] else " ").join(kept) + match[3]

    own = re.compile(rf"^# {name}: .*$", re.MULTILINE)
    line = re.sub(r"((?:tcp|untracked) )([\d ]+)()", without, own.search(head)[0].rpartition("; moving")[0])  # type: ignore[index]
    head = own.sub(line, head)
    for kind, action in (("tcp", "accept"), ("untracked", "notrack")):
        if not re.search(rf"{kind} (?:\d+ )*{port}\b", head):  # of another app
            rules = re.sub(rf"(tcp [ds]port {{ )([\d, ]+)( }} {action})", without, rules)
    body = rules.partition("\n\n")[2].rpartition("}")[0]
    digest = hashlib.sha1(body.encode(), usedforsecurity=False).hexdigest()
    return f'{head}table inet booty {{\n\tcomment "{digest}"\n\n{body}}}\n'


def clients(port: int) -> list[str]:
    """Return the addresses of others that have, or had within a minute, a connection to a port of this host."""
    lines = run("ss", "-Htna", f"( sport = :{port} )").stdout.splitlines()
    peers = (line.split()[4].rpartition(":")[0] for line in lines if not line.startswith("LISTEN"))
    return sorted({peer for peer in peers if peer not in {"127.0.0.1", "[::1]"}})


def close(host: Paths, site: Site) -> tuple[bool, str]:
    """Close the own port of an app that has moved: the proxy has its socket and every certificate.

    Returns:
        Whether the port was closed now, and a sentence for the run; "" if the app does not move.

    Raises:
        HostError: the firewall does not take the ruleset, and has the one from before.
    """
    text = read(host.firewall)
    port = moving(text, site.name)
    served = [host.certificate(site.certificate_of(name)).exists() for name in site.names]
    socket = f"{site.name}-http.socket"
    if not port or states(socket) != ["active"] or not all(served):
        return False, ""
    if (found := clients(port)) and time.time() - (host.units / socket).stat().st_mtime < GRACE_SECONDS:
        return False, (
            f"Port {port} of {site.name} is still in use, by {', '.join(found[:3])}. The host closes it to the outside"
            " within two hours, or at the next deploy or bootstrap."
        )
    mode = host.firewall.stat().st_mode & 0o777
    write_atomically(host.firewall, closed(text, site.name), mode)
    try:
        checked("systemctl", "reload", "booty-firewall.service")
    except HostError:
        write_atomically(host.firewall, text, mode)
        raise
    return True, f"Port {port} of {site.name} is closed to the outside: clients reach the app through the proxy."
