"""The names of one app on a host: its paths and its units."""

from __future__ import annotations

from pathlib import Path
from typing import Final


def installed(root: Path) -> list[str]:
    """Return the names of the apps that bootstrap.yml has prepared on the host, in alphabetical order."""
    return sorted(path.parent.name for path in root.glob("opt/*/incoming") if (path.parent / "releases").is_dir())


class App:
    """Every path and unit name of an app, computed from the app's name; mypy refuses to assign one anew."""

    def __init__(self, name: str = "booty", root: Path = Path("/")) -> None:
        """Compute the names.

        Args:
            name: `app_name`.
            root: the directory that all paths of the host start at; a test passes one of its own.
        """
        self.name: Final = name
        self.root: Final = root
        self.etc: Final = root / "etc" / name
        self.release_env: Final = self.etc / "release.env"
        self.secrets_env: Final = self.etc / "secrets.env"
        self.opt: Final = root / "opt" / name
        self.releases: Final = self.opt / "releases"
        self.layers: Final = self.opt / "layers"
        # The files of app_config_dir, in a folder named after their hash.
        self.configs: Final = self.opt / "config"
        # Archives of releases and layers arrive here.
        self.incoming: Final = self.opt / "incoming"
        self.state: Final = self.opt / "state.json"
        # The service's StateDirectory=.
        self.var: Final = root / "var/lib" / name
        # The static files of releases, for the proxy: see `static`.
        self.static: Final = root / "var/lib/booty-front/static" / name
        # A reboot clears /run, and stops the candidate. So only release.env names a release after it.
        run = root / "run"
        self.candidate_env: Final = run / name / "candidate.env"
        # The PIDs of the old main process and of the candidate's, during a handover, and the script that settles it.
        self.handover: Final = run / name / "handover"
        self.settle: Final = run / name / "settle"
        # A record of the start of each process, and of each run of a timer, by its unit.
        self.started: Final = run / name / "started"
        # The text of a socket unit that was replaced while its sockets stayed open: see `sockets.opened`.
        self.opened: Final = run / name / "opened"
        # The output of commands while they run, and a script that starts a shell.
        self.commands: Final = run / name / "commands"
        self.shell: Final = run / name / "shell"
        self.internal_socket: Final = run / name / "internal.sock"
        self.lock: Final = run / f"{name}-deploy.lock"
        # Which run last changed the host or found it in order, and when.
        self.last: Final = run / f"{name}-deploy.last"
        # When each persistent timer ran last.
        self.stamps: Final = root / "var/lib/systemd/timers"
        self.unit_files: Final = root / "etc/systemd/system"
        self.service: Final = f"{name}.service"
        self.socket: Final = f"{name}.socket"
        # The socket that the proxy of the host connects to, if the app has domains.
        self.http_socket: Final = f"{name}-http.socket"
        self.candidate: Final = f"{name}-candidate.service"
        # systemd nests slices at dashes, so that an app `a` would limit the memory of `a-b`. As in systemd's own slices
        # of templates, \x2d stands for a dash of the name.
        self.slice: Final = "system-{}.slice".format(name.replace("-", r"\x2d"))
        self.units: Final = (self.slice, self.socket, self.http_socket, self.service, self.candidate)
        self.enabled: Final = (self.socket, self.service)
