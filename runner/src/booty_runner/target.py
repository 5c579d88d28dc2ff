"""Loads the app by its name, and checks that its code is in the release that the label names."""

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from booty_runner.settings import Refusal, current, refusal

# The file of the module that the app was loaded from.
code: Path | None = None


def load(target: str) -> Any:
    """Import an app.

    Args:
        target: `module:attribute`, or `module:factory()` to call a function that returns the app.

    Raises:
        Refusal: the name has another form, the module or the attribute does not exist, or the code is not in the
            release.
        Exception: an error of the module's import, or of the function.
    """
    global code  # noqa: PLW0603 - a process runs one app
    parts = re.fullmatch(r"([\w.]+):([\w.]+)(\(\))?", target)
    if not parts:
        raise Refusal(f"{target} is not the name of an app: write module:attribute or module:factory()")
    name, attributes, call = parts.groups()
    try:
        app: Any = import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise Refusal(f"there is no module {error.name}, which {target} names") from None
        raise
    if file := sys.modules[name].__file__:
        code = Path(file)
    try:
        for attribute in attributes.split("."):
            app = getattr(app, attribute)
    except AttributeError as error:
        raise Refusal(f"{target} does not exist: {error}") from None
    if flaw := label_flaw():
        raise Refusal(refusal("booty_release_dir", flaw))
    return app() if call else app


def label_flaw() -> str | None:
    """Return why the running code is not the release in SENTRY_RELEASE, or None. Each call reads the disk."""
    release_dir, release = current().booty_release_dir, current().sentry_release
    if release_dir is None or code is None:
        return None
    try:
        directory, file = release_dir.resolve(), code.resolve()
        if not file.is_relative_to(directory):
            return f"the running code is not in {directory} but in {file.parent}"
        if directory.name != release:
            return f"the directory is named {directory.name}, SENTRY_RELEASE is {release or 'not set'}"
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"the running code is gone from {code.parent}"
    except (OSError, RuntimeError) as error:  # RuntimeError: symbolic links in a circle
        return f"{release_dir} can't be read: {error.strerror if isinstance(error, OSError) else error}"
    return None
