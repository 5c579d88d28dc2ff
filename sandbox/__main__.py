"""The sandbox's command line: `python -m sandbox --help`."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from sandbox import acme, base, hosts, tracker
from sandbox.machine import SandboxError


def main() -> int:
    """Run a command. After an error, print one line on stderr and return the exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m sandbox", description=hosts.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    up = commands.add_parser("up", help="start or remove hosts until exactly N run, and start their tracker")
    up.add_argument("--name", default="default", help="the instance (default)")
    up.add_argument("--hosts", type=int, default=1, metavar="N", help="number of hosts (1)")
    up.add_argument("--suite", choices=base.SUITES, default=base.SUITE, help="Debian's release (%(default)s)")
    up.add_argument("--no-tracker", action="store_true", help="start no tracker")
    up.add_argument("--acme", action="store_true", help="start a CA and a name server too, and give each host a domain")
    up.add_argument("--inventory", type=Path, help="where to write Ansible's inventory")

    down = commands.add_parser("down", help="remove an instance: hosts, tracker, network and inventory")
    which = down.add_mutually_exclusive_group()
    which.add_argument("--name", default="default", help="the instance (default)")
    which.add_argument("--all", action="store_true", help="remove every instance of this checkout")

    commands.add_parser("status", help="show instances, hosts and trackers")
    for name, text in (
        ("stop", "cut a host's power"),
        ("start", "boot a stopped host from its disk"),
        ("reboot", "shut a host down cleanly and boot it again"),
    ):
        commands.add_parser(name, help=text).add_argument("host", metavar="INSTANCE/HOST")

    point = commands.add_parser("point", help="give a name to hosts, in an instance with --acme")
    point.add_argument("domain", help=f"such as shop.{acme.DOMAIN}")
    point.add_argument("host", metavar="INSTANCE/HOST", nargs="+")

    args = parser.parse_args()
    try:
        if args.command == "up":
            hosts.up(args.name, args.hosts, args.suite, not args.no_tracker, args.inventory, args.acme)
            _status([args.name])
        elif args.command == "down":
            for name in hosts.instances() if args.all else [args.name]:
                if args.all and not hosts.is_ours(name):
                    print(f"{name} stays: it belongs to another checkout", file=sys.stderr)
                else:
                    hosts.down(name)
        elif args.command == "status":
            _status(hosts.instances())
        elif args.command == "point":
            hosts.point(args.domain, [host.rpartition("/")[::2] for host in args.host])
        else:
            command: Callable[[str, str], None] = getattr(hosts, args.command)
            instance, _, host = args.host.rpartition("/")
            command(instance or "default", host)
    except (SandboxError, OSError) as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _status(names: list[str]) -> None:
    row = "{:<24} {:<16} {:<9} {}".format
    print(row("HOST", "ADDRESS", "SUITE", "STATE"))
    for name in names:
        for host in hosts.hosts(name):
            state = "running" if host.running else f"stopped: python -m sandbox start {name}/{host.name}"
            print(row(f"{name}/{host.name}", host.address, hosts.suite(name), state))
        if running := tracker.find(hosts.INSTANCES / name / "tracker"):
            print(f"tracker: {running.url} (user {running.user}, password {running.password})")
            print(f"  SENTRY_DSN={running.dsn}")
        if ca := acme.find(hosts.INSTANCES / name / "acme"):
            print(f"ca: {ca.url}; its root for curl: --cacert {ca.root}")


if __name__ == "__main__":
    sys.exit(main())
