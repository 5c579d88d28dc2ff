"""The root file system that all hosts of a suite share: a small Debian, similar to a cloud image."""

import hashlib
import os
import shutil
import time
from pathlib import Path

from sandbox.machine import build_once, cache, run, say

SUITES = ("bookworm", "trixie")
# The default suite. `make test-long SUITE=trixie` runs the same tests on Debian 13.
SUITE = os.environ.get("SUITE") or SUITES[0]

_INSTALLED = "systemd systemd-sysv dbus python3 openssh-server sudo iproute2 procps ca-certificates kmod netbase less"
# Not installed, but available to the hosts' apt in their own repository, like all installed packages.
_INSTALLABLE = (
    "python3-apt python3-venv curl nftables iptables ufw unattended-upgrades systemd-timesyncd "
    "libpam-systemd rsync acl zstd nginx uacme openssl logrotate redis-server postgresql"
)

# Hosts have no route to the internet: their apt reads only the repository in this root.
_FILES = {
    "etc/apt/sources.list": "deb [trusted=yes] file:/srv/apt ./\n",
    "etc/apt/apt.conf.d/90sandbox": 'Acquire::Languages "none";\n',
    # No fsync for each file: it protects dpkg from power cuts, and these hosts are disposable.
    "etc/dpkg/dpkg.cfg.d/sandbox": "force-unsafe-io\n",
    # No name server, so that a name that is not in /etc/hosts fails at once and not after a timeout.
    "etc/resolv.conf": "",
    "etc/default/locale": "LANG=C.UTF-8\n",
    # _prepare_disk() in hosts.py writes these for each host.
    "etc/machine-id": "",
    "etc/hostname": "",
}


def recipe(suite: str) -> str:
    """Return a name for the way this root is built: it contains a hash of this file."""
    return f"{suite}-{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]}"


def ensure(suite: str, in_use: set[str]) -> Path:
    """Return this week's root of a suite, built if there is none, and remove other roots that are not in use.

    The week is part of the name, so that a cached root misses at most a week of security updates.
    """
    roots = cache() / "roots"
    name = f"{recipe(suite)}-{time.strftime('%GW%V')}"
    root = build_once(roots / name, lambda work: _build(suite, work))
    for other in roots.glob(f"{suite}-*"):
        if other.name != name and str(other) not in in_use:
            shutil.rmtree(other)
    return root


def _build(suite: str, root: Path) -> None:
    say(f"building a Debian root ({suite}), once a week; this takes about a minute")
    download = f'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get install -qy --download-only {_INSTALLABLE}'
    # Without a mirror argument, mmdebstrap uses Debian's, including security updates.
    run(
        "mmdebstrap",
        "--variant=minbase",
        "--mode=root",
        "--skip=essential/unlink,cleanup/apt",
        f"--include={_INSTALLED.replace(' ', ',')}",
        f"--customize-hook={download}",
        suite,
        root,
    )
    _make_repository(root)
    shutil.rmtree(root / "etc/apt/sources.list.d")
    (root / "etc/apt/sources.list.d").mkdir()
    for path, text in _FILES.items():
        (root / path).unlink(missing_ok=True)
        (root / path).write_text(text)
    for key in (root / "etc/ssh").glob("ssh_host_*"):  # each host gets its own
        key.unlink()
    (root / "var/log/journal").mkdir(exist_ok=True)  # makes the journal persistent: tests read the previous boot's
    run("systemctl", f"--root={root}", "enable", "systemd-networkd", "ssh")
    run("chroot", root, "apt-get", "update", "-q")


def _make_repository(root: Path) -> None:
    """Make an apt repository at /srv/apt from the packages that apt downloaded."""
    repository = root / "srv/apt"
    repository.mkdir()
    index = []
    for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        package.rename(repository / package.name)
        data = (repository / package.name).read_bytes()
        control = run("dpkg-deb", "--field", repository / package.name).stdout.strip()
        digest = hashlib.sha256(data).hexdigest()
        index.append(f"{control}\nFilename: ./{package.name}\nSize: {len(data)}\nSHA256: {digest}\n")
    (repository / "Packages").write_text("\n".join(index))
    shutil.rmtree(root / "var/lib/apt/lists")
    (root / "var/lib/apt/lists/partial").mkdir(parents=True)
