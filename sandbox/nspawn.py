"""Containers that boot like machines: systemd-nspawn on an overlay over a shared root."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sandbox.machine import SandboxError, kill, processes, run, spawn, unmount, wait_gone

# nspawn exits with 133 when the container asked for a reboot. Each boot runs in cgroups of its own, because containers
# that share a cgroup would change each other's units. Writing "0" moves the writing process into the cgroup.
_BOOT_LOOP = """
while :; do
    ( for group in $CGROUPS; do echo 0 > "$group/cgroup.procs"; done; exec "$@" )
    [ $? -eq 133 ] || exit
done
"""


@dataclass(frozen=True)
class Container:
    """A container, running or stopped."""

    directory: Path
    """The container's files: `upper` and `work` are its disk, `root` is the mounted root while it runs."""
    machine: str
    """A unique name of at most 12 characters: "vb-" and this name is its network interface on this machine."""

    @property
    def root(self) -> Path:
        """The mount point of the root file system, mounted while the container runs."""
        return self.directory / "root"

    @property
    def log(self) -> Path:
        """The console's output of all boots."""
        return self.directory / "console.log"

    @property
    def running(self) -> bool:
        """Whether the container runs; it may still be booting."""
        return bool(processes(self._mark))

    @property
    def _mark(self) -> str:
        """The argument that identifies the processes of this container: nspawn and the loop around it."""
        return f"--directory={self.root}"

    @property
    def _unit(self) -> str:
        return f"booty-sandbox-{self.machine}.service"

    @property
    def _cgroups(self) -> list[Path]:
        """The container's cgroups if systemd does not make them: one in each hierarchy that tracks processes."""
        if _under_systemd():
            return []
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        tracking = [Path(m[1]) for m in mounts if m[2] == "cgroup2" or "name=systemd" in m[3].split(",")]
        return [hierarchy / "booty-sandbox" / self.machine for hierarchy in tracking]

    def boot(self, base: Path, hostname: str, bridge: str, prepare: Callable[[], None]) -> None:
        """Start to boot the container; returns before the boot is over.

        Args:
            base: the shared root below the container's disk.
            hostname: the host name inside the container.
            bridge: the bridge for its network interface.
            prepare: called when `root` is mounted and nothing runs on it yet.
        """
        self.power_off()  # cleans up after a crash
        for part in ("upper", "work", "root"):
            (self.directory / part).mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)  # other users must not reach the set-user-ID programs on the disk
        layers = f"lowerdir={base},upperdir={self.directory}/upper,workdir={self.directory}/work"
        run("mount", "-t", "overlay", "-o", layers, self.machine, self.root)
        prepare()
        nspawn = ["systemd-nspawn", "--quiet", "--boot", "--keep-unit", "--register=no", self._mark]
        nspawn += ["--link-journal=no", "--resolv-conf=off", "--timezone=off"]
        nspawn += [f"--machine={self.machine}", f"--hostname={hostname}", f"--network-bridge={bridge}"]
        if _under_systemd():
            # A service and not a scope, because a service outlives the caller's session, and nspawn's --keep-unit needs
            # a unit with a delegated cgroup. 133 asks for a reboot, as in systemd-nspawn@.service.
            properties = ["Delegate=yes", "KillMode=mixed", "TasksMax=16384", "StartLimitIntervalSec=0"]
            properties += ["RestartForceExitStatus=133", "SuccessExitStatus=133"]
            properties += [f"StandardOutput=append:{self.log}", f"StandardError=append:{self.log}"]
            unit = [f"--unit={self._unit}", "--collect", *(f"--property={value}" for value in properties)]
            run("systemd-run", "--quiet", *unit, *nspawn)
        else:
            for group in self._cgroups:
                group.mkdir(parents=True, exist_ok=True)
            # cgroup v2 inside, as on a Debian host, even if this machine has a hybrid of both versions.
            modes = {"CGROUPS": " ".join(map(str, self._cgroups)), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
            spawn(["sh", "-c", _BOOT_LOOP, "booty-sandbox", *nspawn], self.log, **modes)

    def power_off(self) -> None:
        """Kill the container, like a power cut, and remove its mounts, cgroups and interface; its files stay."""
        if _under_systemd():
            run("systemctl", "kill", "--signal=SIGKILL", self._unit, check=False)
            run("systemctl", "stop", self._unit, check=False)
        kill(self._mark)
        for group in self._cgroups:
            _remove_cgroup(group)
            with suppress(OSError):
                group.parent.rmdir()
        # The kernel removes the interface later by itself, maybe not before the next boot needs its name.
        run("ip", "link", "delete", f"vb-{self.machine}", check=False)
        with suppress(OSError):  # a killed nspawn leaves these files
            root = self.root.stat()
            Path(f"/run/systemd/nspawn/locks/inode-{root.st_dev}:{root.st_ino}").unlink()
        for kind in ("propagate", "unix-export"):
            with suppress(OSError):
                Path(f"/run/systemd/nspawn/{kind}/{self.machine}").rmdir()
        unmount(self.directory)

    def reboot(self, patience: float = 60) -> None:
        """Let the container shut down cleanly and boot again; returns when it is down.

        Raises:
            SandboxError: the container does not run, or did not shut down within `patience` seconds.
        """
        with self._leader() as (pid, descriptor):
            os.kill(pid, signal.SIGRTMIN + 5)  # systemd(1): start reboot.target
            if not wait_gone(descriptor, time.monotonic() + patience):
                raise SandboxError(
                    f"{self.directory.name} did not shut down within {patience:.0f} s: stop and start it"
                )

    @contextmanager
    def _leader(self) -> Iterator[tuple[int, int]]:
        """Yield the container's PID 1, as the id that it has on this machine and a pidfd."""
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
                for pid in (directory / "cgroup.procs").read_text().split():  # processes that outlived PID 1
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                time.sleep(0.02)
