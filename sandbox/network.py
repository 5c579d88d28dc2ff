"""The network bridge of an instance's hosts, with an address range that this machine does not use otherwise."""

import hashlib
import ipaddress
import json
from collections.abc import Iterable

from sandbox.machine import SandboxError, run

Network = ipaddress.IPv4Network

# RFC 2544 reserves this range for benchmark tests, so homes, offices, VPNs and container engines don't use it.
_RANGE = Network("198.18.0.0/16")


def digest(name: str) -> str:
    """Return a short hash of an instance's name, because names of network interfaces have at most 15 characters."""
    return hashlib.sha256(name.encode()).hexdigest()[:6]


def bridge_name(name: str) -> str:
    """Return the name of an instance's bridge."""
    return f"br-booty-{digest(name)}"


def free_network(taken: Iterable[Network], preferred: Network | None = None) -> Network:
    """Return a /24 that overlaps no taken network.

    Networks wider than a /8 don't count as taken: they are default routes or a VPN's catch-all, and the route of a /24
    takes precedence over them.
    """
    narrow = [network for network in taken if network.prefixlen >= 8]
    for network in [*([preferred] if preferred else []), *_RANGE.subnets(new_prefix=24)]:
        if not any(network.overlaps(other) for other in narrow):
            return network
    raise SandboxError(f"no free /24 in {_RANGE}: remove an instance, `python -m sandbox status` lists them")


def is_up(name: str, network: Network) -> bool:
    """Whether an instance's bridge exists and has its address."""
    return f" {network[1]}/24 " in run("ip", "addr", "show", bridge_name(name), check=False).stdout


def create(name: str, preferred: Network | None, others: Iterable[Network]) -> Network:
    """Remove an instance's bridge, create it again, and return its network.

    Args:
        name: the instance.
        preferred: the network that the instance had; it is used again if it is still free.
        others: networks of other instances, which may be down at the moment.
    """
    delete(name)
    routes = json.loads(run("ip", "-json", "-4", "route", "show", "table", "all").stdout or "[]")
    taken = [Network(route["dst"]) for route in routes if route["dst"] != "default"]
    network = free_network([*taken, *others], preferred)
    # By default a bridge has the hardware address of one of its ports. It would change when a host is added or removed,
    # and the other hosts would send to the old address for a while.
    octets = digest(name)
    address = f"02:b0:07:{octets[:2]}:{octets[2:4]}:{octets[4:]}"
    run("ip", "link", "add", bridge_name(name), "address", address, "type", "bridge")
    run("ip", "addr", "add", f"{network[1]}/24", "dev", bridge_name(name))
    run("ip", "link", "set", bridge_name(name), "up")
    return network


def delete(name: str) -> None:
    """Remove an instance's bridge and the interfaces that are still connected to it."""
    bridge = bridge_name(name)
    ports = run("ip", "-json", "link", "show", "master", bridge, check=False).stdout
    for link in json.loads(ports or "[]"):
        run("ip", "link", "delete", link["ifname"], check=False)
    run("ip", "link", "delete", bridge, check=False)
