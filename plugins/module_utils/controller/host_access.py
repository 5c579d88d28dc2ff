"""Find, in the output of the host's own programs, users whom sshd refuses and sockets that the firewall closes."""

from __future__ import annotations

import base64
import fnmatch
import ipaddress
import re
from collections.abc import Iterable
from typing import Any

# UDP ports of a DHCP client, which the ruleset always opens.
_DHCP_CLIENT = (68, 546)
# UDP ports of multicast DNS and LLMNR. systemd-resolved listens on them on some systems, and no service needs them.
_LINK_LOCAL_NAMES = (5353, 5355)
# Protocols of raw sockets: the ruleset always accepts ICMP (1) and ICMPv6 (58), and a socket of 255 only sends.
_RAW_LET_IN = (1, 58, 255)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Decode an address of /proc/net: hexadecimal words of 32 bits, each in the CPU's little-endian order."""
    words = (bytes.fromhex(text[start : start + 8])[::-1] for start in range(0, len(text), 8))
    address = ipaddress.ip_address(b"".join(words))
    return getattr(address, "ipv4_mapped", None) or address


def listeners(sockets: str, tcp: Iterable[int], udp: Iterable[int]) -> list[dict[str, Any]]:
    """Return the sockets that other machines reach now, and that the firewall would close.

    Args:
        sockets: the value `listening` of `look.sh`: words like `tcp6:<address>:<port>:<inode>:<process>`. Address and
            port are hexadecimal, as in /proc/net. The process is empty for a socket of the kernel. For the kinds raw
            and raw6 the port is the number of the protocol.
        tcp: the TCP ports that the firewall lets in, with those of SSH.
        udp: the UDP ports that the firewall lets in.

    Returns:
        an entry for each protocol, port and process, with `protocol` (TCP, UDP or IP), `port`, and the `text` for the
        message.
    """
    open_ports = {"TCP": {int(port) for port in tcp}, "UDP": {int(port) for port in udp}, "IP": set(_RAW_LET_IN)}
    open_ports["UDP"].update(_DHCP_CLIENT)
    closed: dict[tuple[str, int, str], set[str]] = {}
    for word in sockets.split():
        kind, hexadecimal, port_text, _, process = word.split(":", 4)
        protocol = {"tcp": "TCP", "udp": "UDP", "raw": "IP"}[kind[:3]]
        port, address = int(port_text, 16), _address(hexadecimal)
        if address.is_loopback or port in open_ports[protocol]:
            continue
        if process.startswith("systemd-resolve") and port in _LINK_LOCAL_NAMES:
            continue
        addresses = closed.setdefault((protocol, port, process), set())
        addresses.add("" if address.is_unspecified else str(address))
    return [
        {
            "protocol": protocol,
            "port": port,
            "text": f"{protocol}{' protocol' if protocol == 'IP' else ''} {port}"
            + ("" if "" in addresses else f" on {', '.join(sorted(addresses))}")
            + f" ({process or 'a socket of the kernel, such as WireGuard has'})",
        }
        for (protocol, port, process), addresses in sorted(closed.items())
    ]


def app_ports(
    file: str, ssh: Iterable[int], present: list[str], app: str, own: dict[str, list[int]]
) -> dict[str, dict[str, list[int]]]:
    """Return the ports of every app on a host by the app's name: `tcp`, `udp` and `untracked`.

    Args:
        file: the value of `look.sh` for the file of the ruleset, whose comments list the ports of the apps.
        ssh: the ports of SSH, which belong to no app.
        present: the apps that the host has; the ports of other apps are dropped.
        app: the app of this bootstrap.
        own: the ports of this app.
    """
    text = base64.b64decode(file.split(" ")[3]).decode(errors="replace") if file.count(" ") == 3 else ""

    def numbers(pattern: str) -> list[int]:
        match = re.search(pattern, text)
        return [int(port) for port in re.findall(r"\d+", match[1])] if match else []

    pattern = r"^# ([a-z0-9-]+): tcp ([\d ]*); udp ([\d ]*); untracked ([\d ]*)(?:; moving \d+)?$"
    lines = re.findall(pattern, text, re.MULTILINE)
    apps = {
        name: {kind: [int(port) for port in ports.split()] for kind, ports in zip(own, each, strict=True)}
        for name, *each in lines
    }
    if text and not lines:  # a ruleset of an older Booty, which had a single app and no such comments
        accepted = numbers(r"tcp dport { ([\d, ]+) } accept")
        apps["booty"] = {
            "tcp": [port for port in accepted if port not in {*ssh}],
            "udp": numbers(r"\n\t\tudp dport { ([\d, ]+) } accept"),
            "untracked": numbers(r"tcp dport { ([\d, ]+) } notrack"),
        }
    return {**{name: ports for name, ports in apps.items() if name in present}, app: own}


def keep_open(sockets: list[dict[str, Any]], tcp: Iterable[int], udp: Iterable[int]) -> str:
    """Return a sentence with the lines for the inventory that keep listening sockets open.

    Args:
        sockets: the result of `listeners`.
        tcp: the present value of host_firewall_ports.
        udp: the present value of host_firewall_udp_ports.
    """

    def line(name: str, protocol: str, before: Iterable[int]) -> str:
        ports = sorted({socket["port"] for socket in sockets if socket["protocol"] == protocol})
        return f"{name}: [{', '.join(map(str, [*before, *ports]))}]" if ports else ""

    lines = [line("host_firewall_ports", "TCP", tcp), line("host_firewall_udp_ports", "UDP", udp)]
    sentences = [f"To keep it open, set {' and '.join(filter(None, lines))}."] if any(lines) else []
    if any(socket["protocol"] == "IP" for socket in sockets):
        sentences.append("Protocols besides TCP, UDP and ICMP have no list: they need a firewall of your own.")
    return " ".join(sentences)


def sshd_refusals(config: str, user: str, groups: str, keys: str = "") -> list[str]:
    """Return the settings of sshd that refuse a user with a key alone.

    Args:
        config: the output of `sshd -T` for this user, its lines joined with semicolons.
        user: the user's name.
        groups: the user's groups, separated by blanks.
        keys: the file with the user's keys; empty if it is not known.

    Returns:
        clauses of a message. A pattern `user@host` of AllowUsers counts as a match, because the trial login tests it.
    """
    values: dict[str, list[str]] = {}
    for line in config.split(";"):
        name, _, value = line.strip().partition(" ")
        values.setdefault(name, []).extend([value] if name == "authenticationmethods" else value.split())

    def matches(option: str, names: list[str], with_hosts: bool = False) -> bool:
        patterns = [pattern for pattern in values[option] if with_hosts or "@" not in pattern]
        return any(fnmatch.fnmatchcase(name, pattern.split("@")[0]) for name in names for pattern in patterns)

    problems = []
    for option, title, names in (("users", "Users", [user]), ("groups", "Groups", groups.split())):
        described = f"{user}" if option == "users" else f"a group of {user}'s ({groups})"
        if f"deny{option}" in values and matches(f"deny{option}", names):
            problems.append(f"Deny{title} has {described}")
        if f"allow{option}" in values and not matches(f"allow{option}", names, with_hosts=True):
            problems.append(f'Allow{title} is "{" ".join(values[f"allow{option}"])}", which lacks {described}')
    if values.get("pubkeyauthentication") == ["no"]:
        problems.append("PubkeyAuthentication is no")
    methods = values.get("authenticationmethods", ["any"])[0]
    if methods != "any" and "publickey" not in methods.split():
        problems.append(f'AuthenticationMethods is "{methods}", so that a key alone is not enough')
    home = keys.removesuffix("/.ssh/authorized_keys")
    files = [name.replace("%h", home).replace("%u", user) for name in values.get("authorizedkeysfile", [])]
    if keys and files and not {keys, ".ssh/authorized_keys"}.intersection(files):
        problems.append(f'AuthorizedKeysFile is "{" ".join(values["authorizedkeysfile"])}", which lacks {keys}')
    return problems
