"""The sockets that an app's service listens on, and the programs that listen in their place."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from contextlib import suppress

from booty_host.app import App
from booty_host.files import read, write_atomically
from booty_host.processes import run
from booty_host.systemd import Systemd


def parse_stream(unit_text: str) -> tuple[str, int]:
    """Return the address and port of the first `ListenStream=` in a socket unit's text.

    Raises:
        ValueError: the text has no such line.
    """
    stream = re.search(r"^ListenStream=(.+):(\d+)$", unit_text, re.MULTILINE)
    if not stream:
        raise ValueError("it names no address and port")
    return stream[1].strip("[]"), int(stream[2])


def parse_listeners(table: str) -> dict[tuple[str, int], str]:
    """Return the inode of each address and port that listens, from the text of `/proc/net/tcp` or `tcp6`."""
    listening = "0A"  # TCP_LISTEN in the kernel's include/net/tcp_states.h
    inodes = {}
    for fields in (line.split() for line in table.splitlines()[1:]):
        if fields[3] == listening:
            raw, port = fields[1].split(":")
            # Each 32-bit word is in the machine's own order, which is little-endian on the machines Booty supports.
            packed = b"".join(bytes.fromhex(raw[at : at + 8])[::-1] for at in range(0, len(raw), 8))
            inodes[str(ipaddress.ip_address(packed)), int(port, 16)] = fields[9]
    return inodes


def overlaps(address: str, other: str, takes_both: bool) -> bool:
    """Tell whether a listener on `other` makes the kernel refuse to listen on `address`, on the same port.

    Args:
        address: the service's.
        other: the listener's.
        takes_both: whether a socket on `::` takes IPv4 as well, as it does without IPV6_V6ONLY.
    """
    one, two = (getattr(ip, "ipv4_mapped", None) or ip for ip in map(ipaddress.ip_address, (address, other)))
    if one.version == two.version:
        return one == two or one.is_unspecified or two.is_unspecified
    return takes_both and (one if one.version == 6 else two).is_unspecified


def takes_both(app: App, address: str, port: int, listeners: dict[tuple[str, int], str]) -> bool:
    """Tell whether a socket on `::` takes IPv4 as well: the service's, if `address` is IPv6, else a listener's."""
    if ":" in address:
        return read(app.root / "proc/sys/net/ipv6/bindv6only").strip() != "1"
    # /proc/net/tcp6 does not show IPV6_V6ONLY. A listener on 0.0.0.0 beside the one on `::` proves that it is set.
    # Otherwise a bind tells, to an address of the loopback on which no program listens.
    if ("0.0.0.0", port) in listeners:
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.77.77.77", port))
        except OSError:
            return True
    return False


def holder(app: App, inode: str) -> int:
    """Return the lowest PID that has a socket open, which is 1 for systemd's own sockets; 0 if no process has it."""
    proc = app.root / "proc"
    for pid in sorted(int(path.name) for path in proc.glob("[0-9]*")):
        with suppress(OSError):  # the process has just ended
            for path in (proc / f"{pid}/fd").iterdir():
                with suppress(OSError):  # the process has just closed this file, and may still have the socket
                    if os.readlink(path) == f"socket:[{inode}]":
                        return pid
    return 0


def takers(app: App, address: str, port: int) -> str:
    """Name the listeners that keep the app's socket unit from listening, but for that unit itself; "" for none.

    A program is named with its PID, and a socket of systemd with its unit: another app's socket unit is one of these.
    """
    net = app.root / "proc/net"
    listeners = {**parse_listeners(read(net / "tcp")), **parse_listeners(read(net / "tcp6"))}
    names = []
    for (other, other_port), inode in listeners.items():
        if other_port != port or not overlaps(address, other, takes_both(app, address, port, listeners)):
            continue
        place = f"[{other}]:{port}" if ":" in other else f"{other}:{port}"
        pid = holder(app, inode)
        if pid == 1:
            table = run("systemctl", "list-sockets", "--full", "--plain", "--no-legend").stdout
            unit_of = {fields[0]: fields[1] for fields in map(str.split, table.splitlines()) if len(fields) > 1}
            if unit_of.get(place, app.socket) != app.socket:
                names.append(f"{unit_of[place]} on {place}")
        else:
            program = f"{read(app.root / f'proc/{pid}/comm').strip()} (PID {pid})" if pid else "another program"
            names.append(f"{program} on {place}")
    return ", ".join(names)


def options(unit_text: str) -> set[str]:
    """Return the lines of a socket unit that only newly opened sockets take on.

    The kernel needs FreeBind= at the bind alone, and systemd reads TriggerLimit… when it counts.
    """
    section = unit_text.partition("[Socket]")[2].partition("\n[")[0].splitlines()
    return {line for line in section if line.strip() and not line.startswith(("#", "FreeBind=", "TriggerLimit"))}


def opened(app: App, socket_state: dict[str, str]) -> str:
    """Return the text of the socket unit that systemd opened its sockets with: a reload changes no open socket.

    `/run/NAME/opened` holds the InvocationID of the unit's start, a line end, and the text.
    """
    invocation, _, text = read(app.opened).partition("\n")
    return text if invocation == socket_state["InvocationID"] else read(app.unit_files / app.socket)


def in_the_way(app: App, socket_state: dict[str, str], unit_text: str) -> str:
    """Name the listeners that keep an app's socket unit from listening as a text of it says; "" for none.

    Nothing is in the way of a unit that listens so already. Then the kernel's table of connections, which takes 12 ms,
    is not read.

    Args:
        app: the app.
        socket_state: the state of its socket unit.
        unit_text: the text.
    """
    if socket_state["ActiveState"] == "active" and options(opened(app, socket_state)) == options(unit_text):
        return ""
    return takers(app, *parse_stream(unit_text))


def keep_opened(app: App, systemd: Systemd) -> None:
    """Keep the text of the socket unit before it is replaced, if its sockets are open."""
    socket_state = systemd.unit(app.socket)
    if socket_state["ActiveState"] == "active":
        write_atomically(app.opened, f"{socket_state['InvocationID']}\n{opened(app, socket_state)}")


def leave_proxy(app: App) -> None:
    """Have the proxy of the host, if there is one, forget the domains of an app."""
    program = app.root / "usr/local/lib/booty-front.pyz"
    if program.exists():
        run("/usr/bin/python3", "-I", str(program), "remove", app.name)
