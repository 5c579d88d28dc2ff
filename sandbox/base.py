"""The root file system that all hosts of a suite share: a small Debian as a cloud image would have it."""

import hashlib
import os
import shutil
import time
from pathlib import Path

from sandbox.machine import build_once, cache, run, say

SUITES = ("bookworm", "trixie")
# The suite of every host that is asked for without one: `make test-long SUITE=trixie` runs the same tests on Debian 13.
SUITE = os.environ.get("SUITE") or SUITES[0]

_INSTALLED = "systemd systemd-sysv dbus python3 openssh-server sudo iproute2 procps ca-certificates kmod netbase less"
# Not installed, but there for a playbook's apt in the hosts' own repository (as is all that is installed).
_INSTALLABLE = (
    "python3-apt python3-venv curl nftables iptables ufw unattended-upgrades systemd-timesyncd "
    "libpam-systemd rsync acl zstd"
)

# Hosts have no route out: their apt reads the packages that came with the root, and nothing else.
_FILES = {
    "etc/apt/sources.list": "deb [trusted=yes] file:/srv/apt ./\n",
    "etc/apt/apt.conf.d/90sandbox": 'Acquire::Languages "none";\n',
    # The hosts are thrown away: a power cut in the middle of dpkg is not worth an fsync for each file.
    "etc/dpkg/dpkg.cfg.d/sandbox": "force-unsafe-io\n",
    # No name server: a name that /etc/hosts lacks fails at once and not after a timeout.
    "etc/resolv.conf": "",
    "etc/default/locale": "LANG=C.UTF-8\n",
    # Each host writes its own, before its first boot.
    "etc/machine-id": "",
    "etc/hostname": "",
}


def recipe(suite: str) -> str:
    """Name what a root of this suite is built from; another recipe has another name."""
    return f"{suite}-{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]}"


def ensure(suite: str, in_use: set[str]) -> Path:
    """Give this week's root of a suite, building it when there is none; others that nobody uses are removed.

    The week is part of the name so that a cached root never misses more than a week of security updates.
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
    # No mirror is named: mmdebstrap knows Debian's, with the security updates.
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
    for key in (root / "etc/ssh").glob("ssh_host_*"):  # each host has its own
        key.unlink()
    (root / "var/log/journal").mkdir(exist_ok=True)  # tests read the journal of the boot before
    run("systemctl", f"--root={root}", "enable", "systemd-networkd", "ssh")
    run("chroot", root, "apt-get", "update", "-q")


def _make_repository(root: Path) -> None:
    """Turn the packages that apt downloaded into a repository at /srv/apt."""
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
