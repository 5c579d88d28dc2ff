"""The bridge that an instance's hosts hang on, and addresses that nobody else uses."""

import hashlib
import ipaddress
import json
from collections.abc import Iterable

from sandbox.machine import SandboxError, run

Network = ipaddress.IPv4Network

# RFC 2544 sets this range aside for bench tests: homes, offices, VPNs and container engines use others.
_RANGE = Network("198.18.0.0/16")


def digest(name: str) -> str:
    """Shorten an instance's name to what fits into an interface's, whose 15 characters are few."""
    return hashlib.sha256(name.encode()).hexdigest()[:6]


def bridge_name(name: str) -> str:
    """Name an instance's bridge."""
    return f"br-booty-{digest(name)}"


def free_network(taken: Iterable[Network], preferred: Network | None = None) -> Network:
    """Choose a /24 that overlaps nothing taken.

    What is wider than a /8 is not taken: it is the way out or a VPN's "everything", and a /24 wins over it.
    """
    narrow = [network for network in taken if network.prefixlen >= 8]
    for network in [*([preferred] if preferred else []), *_RANGE.subnets(new_prefix=24)]:
        if not any(network.overlaps(other) for other in narrow):
            return network
    raise SandboxError(f"no free /24 in {_RANGE}: remove an instance, `python -m sandbox status` lists them")


def is_up(name: str, network: Network) -> bool:
    """Whether an instance's bridge is there, with its address."""
    return f" {network[1]}/24 " in run("ip", "addr", "show", bridge_name(name), check=False).stdout


def create(name: str, preferred: Network | None, others: Iterable[Network]) -> Network:
    """Make an instance's bridge anew, and return its network.

    Args:
        name: the instance.
        preferred: the network it had, taken again if it is still free.
        others: networks of instances that may be down at the moment.
    """
    delete(name)
    routes = json.loads(run("ip", "-json", "-4", "route", "show", "table", "all").stdout or "[]")
    taken = [Network(route["dst"]) for route in routes if route["dst"] != "default"]
    network = free_network([*taken, *others], preferred)
    # By default a bridge has the hardware address of one of its ports: that changes when a host comes or
    # goes, and the others would talk to the old one for a while.
    octets = digest(name)
    address = f"02:b0:07:{octets[:2]}:{octets[2:4]}:{octets[4:]}"
    run("ip", "link", "add", bridge_name(name), "address", address, "type", "bridge")
    run("ip", "addr", "add", f"{network[1]}/24", "dev", bridge_name(name))
    run("ip", "link", "set", bridge_name(name), "up")
    return network


def delete(name: str) -> None:
    """Remove an instance's bridge and whatever is still on it."""
    bridge = bridge_name(name)
    ports = run("ip", "-json", "link", "show", "master", bridge, check=False).stdout
    for link in json.loads(ports or "[]"):
        run("ip", "link", "delete", link["ifname"], check=False)
    run("ip", "link", "delete", bridge, check=False)
