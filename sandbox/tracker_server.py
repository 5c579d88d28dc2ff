"""Runs Bugsink in one process, with the tracker's own Python.

`tracker_server.py --directory=DIR [ADDRESS PORT]`; without an address it only creates the databases.
"""

# ruff: noqa: PLC0415 - Bugsink's modules can only be imported once Django is configured.

import json
import secrets
import sys
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer


class Server(ThreadingMixIn, WSGIServer):
    """A WSGI server with a thread for each request."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without resolving this machine's name, which the base class does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class QuietHandler(WSGIRequestHandler):
    """A request handler that logs nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def configure(directory: Path, url: str, secret_key: str) -> None:
    """Configure Django for a Bugsink with one user, which keeps its data in `directory`."""
    import django  # type: ignore[import-not-found]
    from bugsink.settings import default  # type: ignore[import-not-found]
    from django.conf import settings  # type: ignore[import-not-found]

    values = {name: value for name, value in vars(default).items() if name.isupper()}
    values["DATABASES"]["default"]["NAME"] = str(directory / "db.sqlite3")
    values["DATABASES"]["snappea"]["NAME"] = str(directory / "snappea.sqlite3")
    values |= {
        "SECRET_KEY": secret_key,
        "TIME_ZONE": "UTC",
        "EMAIL_BACKEND": "django.core.mail.backends.dummy.EmailBackend",
        # Store each event before answering 200, and not in a background task.
        "SNAPPEA": {"TASK_ALWAYS_EAGER": True},
        "BUGSINK": {
            "BASE_URL": url,
            "SINGLE_USER": True,
            "SINGLE_TEAM": True,
            "USER_REGISTRATION": "CB_NOBODY",
            "PHONEHOME": False,
            "INGEST_STORE_BASE_DIR": str(directory / "ingestion"),
        },
    }
    settings.configure(**values)
    django.setup(set_prefix=False)


def populate(url: str) -> dict[str, object]:
    """Create the user, project and token if they are missing; return the access data of `tracker.json`."""
    from bsmain.models import AuthToken  # type: ignore[import-not-found]
    from django.contrib.auth import get_user_model  # type: ignore[import-not-found]
    from projects.models import Project, ProjectMembership  # type: ignore[import-not-found]

    user, _ = get_user_model().objects.get_or_create(username="booty", is_superuser=True, is_staff=True)
    password = secrets.token_urlsafe(9)
    user.set_password(password)
    user.save()
    project, _ = Project.objects.get_or_create(name="booty")
    ProjectMembership.objects.get_or_create(project=project, user=user, accepted=True)
    token = AuthToken.objects.first() or AuthToken.create_full_access()
    return {
        "url": url,
        "dsn": project.dsn,
        "token": token.token,
        "user": user.username,
        "password": password,
        "project": project.id,
    }


def bind(address: str, port: int) -> Server:
    """Listen on a port, or on any free one if that port is in use."""
    try:
        return Server((address, port), QuietHandler)
    except OSError:
        return Server((address, 0), QuietHandler)


def main() -> None:
    """Serve until killed. `tracker.json` appears in the directory once the tracker answers."""
    directory = Path(sys.argv[1].removeprefix("--directory="))
    if len(sys.argv) == 2:
        configure(directory, "http://localhost", "unused")
        from django.core.management import call_command  # type: ignore[import-not-found]

        call_command("migrate", verbosity=0)
        call_command("migrate", database="snappea", verbosity=0)
        return
    # Listen first, because the DSN contains the port.
    server = bind(sys.argv[2], int(sys.argv[3]))
    url = f"http://{sys.argv[2]}:{server.server_port}"
    configure(directory, url, secrets.token_urlsafe(40))
    access = populate(url)
    from bugsink.wsgi import application  # type: ignore[import-not-found]

    server.set_app(application)
    ready = directory / "tracker.json.new"
    ready.touch(mode=0o600)
    ready.write_text(json.dumps(access, indent=2))
    ready.rename(directory / "tracker.json")
    server.serve_forever()


if __name__ == "__main__":
    main()
