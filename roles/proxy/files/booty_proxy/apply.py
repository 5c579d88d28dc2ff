"""Bring the proxy of a host to what its apps ask for. Only what differs is changed."""

from __future__ import annotations

import hashlib
import json
import pwd
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from booty_host import HostError
from booty_host.files import read, write_atomically
from booty_host.processes import outdated, run

from booty_proxy import certificates, config, firewall, instances, paths
from booty_proxy import host as system
from booty_proxy.config import Site, System
from booty_proxy.paths import Paths

UNITS = (
    *("booty-front@.service", "booty-acme@.service", "booty-front-renew.service", "booty-front-check.service"),
    *("booty-front-renew.timer", "booty-front-check.timer", "booty-peers.socket", "booty-peers@.service"),
)
TIMERS = ("booty-front-renew.timer", "booty-front-check.timer")
# Shown while an app is closed, unless it has a page of its own.
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Closed for maintenance</title>
<body style="font: 1.1em/1.5 system-ui, sans-serif; max-width: 32em; margin: 20vh auto; padding: 0 1.5em">
<h1>Closed for maintenance</h1>
<p>This service will be back soon. Please try again in a few minutes.</p>
"""


def sites(host: Paths) -> dict[str, Site]:
    """Return the apps that the proxy has, by name."""
    return {path.stem: config.parse(read(path)) for path in sorted(host.apps.glob("*.json"))}


def texts(host: Paths, all_sites: dict[str, Site], facts: System) -> dict[Path, str]:
    """Return every generated file with its text."""
    files = {
        host.etc / "nginx.conf": config.main(facts),
        host.etc / "proxy.conf": config.data("proxy.conf"),
        host.etc / "files.conf": config.data("files.conf"),
        host.root / "etc/logrotate.d/booty-front": config.data("logrotate"),
        host.root / "etc/needrestart/conf.d/booty-front.conf": config.data("needrestart.conf"),
        host.units / paths.SOCKET: of_sockets(config.data(paths.SOCKET), facts),
        **{host.units / name: of_sockets(config.data(name), facts) for name in UNITS},
    }
    for site in all_sites.values():
        files[host.apps / f"{site.name}.json"] = site.text()
        files[host.apps / f"{site.name}.conf"] = config.app(site, facts)
        files[host.pages / f"{site.name}.html"] = site.maintenance_page or PAGE
    return files


def of_sockets(text: str, facts: System) -> str:
    """Return a unit's text with the sockets of the host."""
    streams = [f"{address}:{port}" for port in (80, 443) for address in ("0.0.0.0", *(["[::]"] if facts.ipv6 else []))]
    lines = "\n".join(f"ListenStream={stream}" for stream in streams)
    return text.replace("@STREAMS@", lines).replace(
        "@DESCRIPTORS@", "".join(f"{3 + number};" for number in range(len(streams)))
    )


def digest(host: Paths, files: dict[Path, str]) -> str:
    """Return a digest of the files whose changes need a new process."""
    needed = [
        p for p in sorted(files) if (p.suffix == ".conf" and host.etc in p.parents) or p.name == "booty-front@.service"
    ]
    return hashlib.sha256("\0".join(f"{path}\0{files[path]}" for path in needed).encode()).hexdigest()


def apply(site: dict[str, Any] | None, remove: str, check: bool) -> dict[str, Any]:
    """Bring the proxy of the host to what its apps ask for.

    Args:
        site: the fields of the app's `Site`; None to leave the apps as they are.
        remove: the name of an app to remove; "" for none.
        check: whether to return only what would change.

    Returns:
        `changed`, `diff` as Ansible shows it; `notices`: what a person has to do for a certificate, and what became of
        the app's own port; and `until`: the end of each name's certificate as a date, without names that have none.

    Raises:
        HostError: nothing was changed, or the proxy serves as before; the message says why.
    """
    host = Paths()
    installed = all((host.root / path.lstrip("/")).exists() for path in system.PACKAGES.values())
    if not installed and not check:
        raise HostError("This host has no nginx or uacme yet. Install the proxy: ansible-playbook bootstrap.yml")
    if found := [*system.others()]:
        raise HostError(
            f"{'; '.join(found)}. Booty's proxy needs ports 80 and 443, and does not take them from other programs:"
            " remove that program, or remove app_domains and put it in front of app_port. Nothing was changed."
        )
    if check:
        return adapt(host, site, remove, installed, check=True)
    with system.locked(host):
        return adapt(host, site, remove, installed, check=False)


def adapt(host: Paths, site: dict[str, Any] | None, remove: str, installed: bool, check: bool) -> dict[str, Any]:
    """Do what `apply` does, with the lock held."""
    before_names = {name for known in sites(host).values() for name in known.names}
    facts = system.system(host) if installed else System((), True)
    wanted = {name: known for name, known in sites(host).items() if name != remove}
    if site is not None:
        new = config.parse(json.dumps(site))
        taken(new, wanted)
        wanted[new.name] = replace(new, own_key=certificates.judge(new)) if new.certificate and installed else new
    files = texts(host, wanted, facts)
    gone = [path for path in (*host.apps.glob("*"), *host.pages.glob("*")) if path not in files]
    before = {path: read(path) for path in (*files, *gone)}
    diff = [
        {"before": before[path], "after": files.get(path, ""), "before_header": str(path), "after_header": str(path)}
        for path in before
        if before[path] != files.get(path, "")
    ]
    if check:
        return {"changed": bool(diff), "diff": diff}
    prepare(host)
    if site is not None and wanted[new.name].certificate:
        certificates.install_own(host, wanted[new.name])
    wanted_digest = digest(host, files)
    serving = instances.serving(host)
    swap = not serving or instances.digest(host, serving) != wanted_digest
    if swap:
        try_out(host, files, wanted_digest)
    # An instance shows the digest that it was started with.
    label = host.etc / "digest.env"
    before[label], files[label] = read(label), f"BOOTY_FRONT={wanted_digest}\n"
    put(host, files, gone)
    changed = bool(diff) or swap
    if any(entry["after_header"].startswith(str(host.units)) for entry in diff):
        system.checked("systemctl", "daemon-reload")
    if swap:
        try:
            instances.start(host)
        except HostError:
            for path, text in before.items():
                put(host, {path: text} if text else {}, [] if text else [path])
            raise
    enable(host, wanted)
    if swap and serving and {name for known in wanted.values() for name in known.names} - before_names:
        # Until then, the old instance takes some of the connections, also the CA's, and does not know the new name.
        instances.wait_until_alone(host, serving)
    if site is None:
        return {"changed": changed, "diff": diff}
    before_ends = certificates.ends(host, wanted[new.name])
    notices = certificates.renew(host, [*wanted.values()], only=new.name)
    closed, sentence = close(host, wanted[new.name])
    until = certificates.ends(host, wanted[new.name])
    return {
        "changed": changed or closed or until != before_ends,
        "diff": diff,
        "notices": [*notices, *([sentence] if sentence else [])],
        "until": until,
    }


def close(host: Paths, site: Site) -> tuple[bool, str]:
    """Close an app's own port as `firewall.close` does; a firewall that fails stops nothing else."""
    try:
        return firewall.close(host, site)
    except HostError as error:
        return False, f"The own port of {site.name} stays open, and the next check tries again: {error}"


def taken(site: Site, others: dict[str, Site]) -> None:
    """Refuse a name that another app of the host has."""
    for other in (other for other in others.values() if other.name != site.name):
        if both := [name for name in site.names if name in other.names]:
            raise HostError(
                f"{', '.join(both)} belongs to the app {other.name} on this host. Remove it from app_domains of one of"
                " the two, and deploy that one first. Nothing was changed."
            )


def prepare(host: Paths) -> None:
    """Make users and directories."""
    for user in (paths.USER, paths.ACME_USER):
        try:
            pwd.getpwnam(user)
        except KeyError:
            options = ("--system", "--user-group", "--no-create-home", "--home-dir=/nonexistent")
            system.checked("useradd", *options, "--shell=/usr/sbin/nologin", user)
    directories = {
        **dict.fromkeys((host.etc, host.apps, host.pages, host.maintenance), ("root", "root", 0o755)),
        **dict.fromkeys((host.run, host.root / "etc/needrestart/conf.d"), ("root", "root", 0o755)),
        host.keys: ("root", paths.USER, 0o750),
        **dict.fromkeys((host.acme, host.certificates, host.challenges), (paths.ACME_USER, paths.USER, 0o750)),
        host.root / "var/log/booty-front": (paths.USER, paths.USER, 0o755),
        host.root / "var/cache/booty-front": (paths.USER, paths.USER, 0o700),
    }
    for directory, (owner, group, mode) in directories.items():
        if not directory.is_dir():
            directory.mkdir(parents=True)
            directory.chmod(mode)
            shutil.chown(directory, owner, group)


def try_out(host: Paths, files: dict[Path, str], wanted_digest: str) -> None:
    """Have nginx read a configuration before it is in force; raise HostError with what it says."""
    with tempfile.TemporaryDirectory(dir=host.run) as name:
        directory = Path(name)
        directory.chmod(0o755)
        for path in (path for path in files if host.etc in path.parents and path.suffix == ".conf"):
            copy = directory / path.relative_to(host.etc)
            copy.parent.mkdir(exist_ok=True)
            copy.write_text(files[path])
        # nginx writes there. In /tmp, another user of the host could have the name first.
        own = directory / "pid"
        own.mkdir(0o700)
        shutil.chown(own, paths.USER)
        identity = (f"--reuid={paths.USER}", f"--regid={paths.USER}", "--init-groups")
        capability = ("--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service")
        options = ("-t", "-q", "-e", "stderr", "-g", f"pid {own}/nginx.pid;")
        done = run("setpriv", *identity, *capability, "nginx", *options, "-c", str(directory / "nginx.conf"))
        if done.returncode:
            said = done.stderr.replace(f"{directory}/", "").strip()
            raise HostError(f"nginx finds fault with the configuration, so nothing was changed:\n{said}")


def put(host: Paths, files: dict[Path, str], gone: list[Path]) -> None:
    """Write the files that differ, and remove others."""
    for path, text in files.items():
        if read(path) != text:
            write_atomically(path, text)
    for path in gone:
        path.unlink(missing_ok=True)


def enable(host: Paths, wanted: dict[str, Site]) -> None:
    """Enable and start the timers, and the socket for tokens of other hosts if there are any."""
    units = [*TIMERS, *(["booty-peers.socket"] if any(site.peers for site in wanted.values()) else [])]
    if system.states(*units) != ["active"] * len(units):
        system.checked("systemctl", "--quiet", "enable", "--now", *units)


def check(host: Paths) -> None:
    """Do what waits for its time: bring fixes into force, take on replaced certificates, close the ports of moved apps.

    A fix is an upgrade that has replaced nginx or a library of it on disk; a swap brings it into force.
    """
    with system.locked(host):
        serving = instances.serving(host)
        if serving and outdated(host.root, system.main_pid(paths.service(serving))):
            print("nginx or one of its libraries was replaced on disk: starting another instance")
            instances.start(host)
        own = [site for site in sites(host).values() if site.certificate]
        for site in sites(host).values():
            if sentence := close(host, site)[1]:
                print(sentence)
    for site in own:
        fields = asdict(site)
        try:
            if apply(fields, remove="", check=False)["changed"]:
                print(f"the certificate of {site.name} was replaced")
        except HostError as error:
            print(f"{site.name}: {error} The certificate that was placed before stays.")
