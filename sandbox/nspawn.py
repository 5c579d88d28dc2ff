"""Containers that boot like machines: systemd-nspawn with a disk that is an overlay on a shared root."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sandbox.machine import SandboxError, kill, processes, run, spawn, wait_gone

# nspawn exits with 133 when the container asked for a reboot. Each boot is put into cgroups of its own first,
# because containers that share one would meddle with each other's units. "0" is the process that writes.
_BOOT_LOOP = """
while :; do
    ( for group in $CGROUPS; do echo 0 > "$group/cgroup.procs"; done; exec "$@" )
    [ $? -eq 133 ] || exit
done
"""


@dataclass(frozen=True)
class Container:
    """A container, running or not."""

    directory: Path
    """Its files on this machine: `upper` and `work` are its disk, `root` shows it while it runs."""
    machine: str
    """Unique on this machine; at most 12 characters, as with "vb-" it names its end of the network cable."""

    @property
    def root(self) -> Path:
        """Its root file system, while it runs."""
        return self.directory / "root"

    @property
    def log(self) -> Path:
        """What its console showed, over all boots."""
        return self.directory / "console.log"

    @property
    def running(self) -> bool:
        """Whether it is there; it may still be booting."""
        return bool(processes(self._mark))

    @property
    def _mark(self) -> str:
        """The argument by which its nspawn, and the loop around that, is told from all other processes."""
        return f"--directory={self.root}"

    @property
    def _unit(self) -> str:
        return f"booty-sandbox-{self.machine}.service"

    @property
    def _cgroups(self) -> list[Path]:
        """Its cgroups where no systemd makes them: one in each hierarchy that tracks processes."""
        if _under_systemd():
            return []
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        tracking = [Path(m[1]) for m in mounts if m[2] == "cgroup2" or "name=systemd" in m[3].split(",")]
        return [hierarchy / "booty-sandbox" / self.machine for hierarchy in tracking]

    def boot(self, base: Path, hostname: str, bridge: str, prepare: Callable[[], None]) -> None:
        """Boot it, and don't wait for that.

        Args:
            base: the root below its disk.
            hostname: its name inside.
            bridge: what its network card is put on.
            prepare: called when `root` shows the disk, and nothing runs on it yet.
        """
        self.power_off()  # what a crash may have left
        for part in ("upper", "work", "root"):
            (self.directory / part).mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)  # the disk has set-user-ID programs, and files for root only
        layers = f"lowerdir={base},upperdir={self.directory}/upper,workdir={self.directory}/work"
        run("mount", "-t", "overlay", "-o", layers, self.machine, self.root)
        prepare()
        nspawn = ["systemd-nspawn", "--quiet", "--boot", "--keep-unit", "--register=no", self._mark]
        nspawn += ["--link-journal=no", "--resolv-conf=off", "--timezone=off"]
        nspawn += [f"--machine={self.machine}", f"--hostname={hostname}", f"--network-bridge={bridge}"]
        if _under_systemd():
            # A service and not a scope of the caller's session: it outlives that, and only so may nspawn keep
            # the unit, whose cgroup is delegated to it. 133 means the same as in systemd-nspawn@.service.
            properties = ["Delegate=yes", "KillMode=mixed", "TasksMax=16384", "StartLimitIntervalSec=0"]
            properties += ["RestartForceExitStatus=133", "SuccessExitStatus=133"]
            properties += [f"StandardOutput=append:{self.log}", f"StandardError=append:{self.log}"]
            unit = [f"--unit={self._unit}", "--collect", *(f"--property={value}" for value in properties)]
            run("systemd-run", "--quiet", *unit, *nspawn)
        else:
            for group in self._cgroups:
                group.mkdir(parents=True, exist_ok=True)
            # A hybrid of cgroup versions, as this machine may have, is nothing that a Debian host has.
            modes = {"CGROUPS": " ".join(map(str, self._cgroups)), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
            spawn(["sh", "-c", _BOOT_LOOP, "booty-sandbox", *nspawn], self.log, **modes)

    def power_off(self) -> None:
        """End it at once, like a power cut, and remove all of it but its files."""
        if _under_systemd():
            run("systemctl", "kill", "--signal=SIGKILL", self._unit, check=False)
            run("systemctl", "stop", self._unit, check=False)
        kill(self._mark)
        for group in self._cgroups:
            _remove_cgroup(group)
            with suppress(OSError):
                group.parent.rmdir()
        # It goes by itself, but not before the next boot might want its name.
        run("ip", "link", "delete", f"vb-{self.machine}", check=False)
        with suppress(OSError):  # what a killed nspawn leaves
            root = self.root.stat()
            Path(f"/run/systemd/nspawn/locks/inode-{root.st_dev}:{root.st_ino}").unlink()
        for kind in ("propagate", "unix-export"):
            with suppress(OSError):
                Path(f"/run/systemd/nspawn/{kind}/{self.machine}").rmdir()
        unmount(self.directory)

    def reboot(self, patience: float = 60) -> None:
        """Let it shut down properly and boot again; returns once it is down.

        Raises:
            SandboxError: it does not run, or did not shut down within `patience` seconds.
        """
        with self._leader() as (pid, descriptor):
            os.kill(pid, signal.SIGRTMIN + 5)  # systemd(1): start reboot.target
            if not wait_gone(descriptor, time.monotonic() + patience):
                raise SandboxError(
                    f"{self.directory.name} did not shut down within {patience:.0f} s: stop and start it"
                )

    @contextmanager
    def _leader(self) -> Iterator[tuple[int, int]]:
        """Hold the process that is its PID 1, as an id and a pidfd."""
        for pid in processes(self._mark):
            if Path(f"/proc/{pid}/comm").read_text() == "systemd-nspawn\n":
                leader = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
                descriptor = os.pidfd_open(leader)
                try:
                    yield leader, descriptor
                finally:
                    os.close(descriptor)
                return
        raise SandboxError(f"{self.directory.name} does not run: start it")


def unmount(directory: Path) -> None:
    """Unmount everything below a directory."""
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in sorted(mounted, reverse=True):
        if point.startswith(f"{directory}/") and run("umount", point, check=False).returncode:
            run("umount", "--lazy", point)


def _under_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()  # sd_booted(3)


def _remove_cgroup(group: Path) -> None:
    deadline = time.monotonic() + 10
    for directory in (Path(path) for path, _, _ in os.walk(group, topdown=False)):
        while directory.exists():
            try:
                directory.rmdir()
            except OSError as error:
                if time.monotonic() > deadline:
                    raise SandboxError(f"end the processes in {directory}/cgroup.procs and try again") from error
                for pid in (directory / "cgroup.procs").read_text().split():  # survived its PID 1
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                time.sleep(0.02)
