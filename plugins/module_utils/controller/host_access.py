"""Judges, by a host's own answers, who could still log in and which listening sockets a firewall would close."""

from __future__ import annotations

import base64
import fnmatch
import ipaddress
import re
from collections.abc import Iterable
from typing import Any

# Answers to a DHCP client's broadcasts are let in by the firewall itself.
_DHCP_CLIENT = (68, 546)
# LLMNR and multicast DNS: systemd-resolved listens for these on some systems, and nothing depends on the answers.
_NAMES_OF_THE_LINK = (5353, 5355)
# ICMP is let in by the firewall itself; a raw socket of protocol 255 only sends.
_RAW_LET_IN = (1, 58, 255)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Decode an address of /proc/net: 32-bit words in hexadecimal, each in the little-endian order of the CPU."""
    words = (bytes.fromhex(text[start : start + 8])[::-1] for start in range(0, len(text), 8))
    address = ipaddress.ip_address(b"".join(words))
    return getattr(address, "ipv4_mapped", None) or address


def listeners(sockets: str, tcp: Iterable[int], udp: Iterable[int]) -> list[dict[str, Any]]:
    """Return the sockets that others reach now, and that the firewall would close.

    Args:
        sockets: what `look.sh` says of them: words like `tcp6:<address>:<port>:<inode>:<process>`, address and port in
            hexadecimal as /proc/net has them; the process is empty for a socket of the kernel. For the kinds raw and
            raw6 the port is a protocol's number.
        tcp: the TCP ports that the firewall lets in, SSH's among them.
        udp: the UDP ports that it lets in.

    Returns:
        one for each protocol, port and process, with `protocol` (TCP, UDP or IP), `port`, and a `text` for a person.
    """
    open_ports = {"TCP": {int(port) for port in tcp}, "UDP": {int(port) for port in udp}, "IP": set(_RAW_LET_IN)}
    open_ports["UDP"].update(_DHCP_CLIENT)
    found: dict[tuple[str, int, str], set[str]] = {}
    for word in sockets.split():
        kind, hexadecimal, port_text, _, process = word.split(":", 4)
        protocol = {"tcp": "TCP", "udp": "UDP", "raw": "IP"}[kind[:3]]
        port, address = int(port_text, 16), _address(hexadecimal)
        if address.is_loopback or port in open_ports[protocol]:
            continue
        if process.startswith("systemd-resolve") and port in _NAMES_OF_THE_LINK:
            continue
        addresses = found.setdefault((protocol, port, process), set())
        addresses.add("" if address.is_unspecified else str(address))
    return [
        {
            "protocol": protocol,
            "port": port,
            "text": f"{protocol}{' protocol' if protocol == 'IP' else ''} {port}"
            + ("" if "" in addresses else f" on {', '.join(sorted(addresses))}")
            + f" ({process or 'a socket of the kernel, such as WireGuard has'})",
        }
        for (protocol, port, process), addresses in sorted(found.items())
    ]


def app_ports(seen: str, ssh: Iterable[int], app: str, own: dict[str, list[int]]) -> dict[str, dict[str, list[int]]]:
    """Return the ports of every app on a host by the app's name: `tcp`, `udp` and `untracked`.

    Args:
        seen: what `look.sh` says of the firewall's file, which lists the ports of the apps in its comments.
        ssh: the ports of SSH, which belong to no app.
        app: the app that is bootstrapped.
        own: its ports.
    """
    text = base64.b64decode(seen.split(" ")[3]).decode(errors="replace") if seen.count(" ") == 3 else ""

    def numbers(pattern: str) -> list[int]:
        match = re.search(pattern, text)
        return [int(port) for port in re.findall(r"\d+", match[1])] if match else []

    lines = re.findall(r"^# ([a-z0-9-]+): tcp ([\d ]*); udp ([\d ]*); untracked ([\d ]*)$", text, re.MULTILINE)
    apps = {
        name: {kind: [int(port) for port in ports.split()] for kind, ports in zip(own, each, strict=True)}
        for name, *each in lines
    }
    if text and not lines:  # written by a Booty that knew one app
        accepted = numbers(r"tcp dport { ([\d, ]+) } accept")
        apps["booty"] = {
            "tcp": [port for port in accepted if port not in {*ssh}],
            "udp": numbers(r"\n\t\tudp dport { ([\d, ]+) } accept"),
            "untracked": numbers(r"tcp dport { ([\d, ]+) } notrack"),
        }
    return {**apps, app: own}


def keep_open(found: list[dict[str, Any]], tcp: Iterable[int], udp: Iterable[int]) -> str:
    """Return a sentence with the inventory's lines that keep listening sockets open.

    Args:
        found: what `listeners` returned.
        tcp: host_firewall_ports as they are now.
        udp: host_firewall_udp_ports as they are now.
    """

    def line(name: str, protocol: str, before: Iterable[int]) -> str:
        ports = sorted({one["port"] for one in found if one["protocol"] == protocol})
        return f"{name}: [{', '.join(map(str, [*before, *ports]))}]" if ports else ""

    lines = [line("host_firewall_ports", "TCP", tcp), line("host_firewall_udp_ports", "UDP", udp)]
    sentences = [f"To keep it open, set {' and '.join(filter(None, lines))}."] if any(lines) else []
    if any(one["protocol"] == "IP" for one in found):
        sentences.append("Protocols besides TCP, UDP and ICMP have no list: they need a firewall of your own.")
    return " ".join(sentences)


def sshd_refusals(config: str, user: str, groups: str, keys: str = "") -> list[str]:
    """Return why sshd would not let a user in with a key alone; empty when nothing speaks against it.

    Args:
        config: what `sshd -T` says for this user, its lines joined with semicolons.
        user: the user's name.
        groups: the user's groups, separated by blanks.
        keys: the file that holds the user's keys; empty if that is not known.

    Returns:
        reasons for a person. A pattern like `user@host` counts as a match: the trial login judges it.
    """
    values: dict[str, list[str]] = {}
    for line in config.split(";"):
        name, _, value = line.strip().partition(" ")
        values.setdefault(name, []).extend([value] if name == "authenticationmethods" else value.split())

    def names(option: str, whom: list[str], hosts_too: bool = False) -> bool:
        patterns = [pattern for pattern in values[option] if hosts_too or "@" not in pattern]
        return any(fnmatch.fnmatchcase(name, pattern.split("@")[0]) for name in whom for pattern in patterns)

    reasons = []
    for option, title, whom in (("users", "Users", [user]), ("groups", "Groups", groups.split())):
        described = f"{user}" if option == "users" else f"a group of {user}'s ({groups})"
        if f"deny{option}" in values and names(f"deny{option}", whom):
            reasons.append(f"Deny{title} has {described}")
        if f"allow{option}" in values and not names(f"allow{option}", whom, hosts_too=True):
            reasons.append(f'Allow{title} is "{" ".join(values[f"allow{option}"])}", which lacks {described}')
    if values.get("pubkeyauthentication") == ["no"]:
        reasons.append("PubkeyAuthentication is no")
    methods = values.get("authenticationmethods", ["any"])[0]
    if methods != "any" and "publickey" not in methods.split():
        reasons.append(f'AuthenticationMethods is "{methods}", so that a key alone is not enough')
    home = keys.removesuffix("/.ssh/authorized_keys")
    files = [name.replace("%h", home).replace("%u", user) for name in values.get("authorizedkeysfile", [])]
    if keys and files and not {keys, ".ssh/authorized_keys"}.intersection(files):
        reasons.append(f'AuthorizedKeysFile is "{" ".join(values["authorizedkeysfile"])}", which lacks {keys}')
    return reasons
