"""Loads the app by its name, and checks that its code is in the release that the label names."""

import inspect
import re
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from booty_runner.place import Place
from booty_runner.settings import Refusal, Settings, current, refusal
from booty_runner.wsgi import WsgiApp

# The file of the module that the app was loaded from.
code: Path | None = None
# Frameworks whose apps serve by themselves, by the package of a base class.
_OTHERS = {"aiohttp": "aiohttp", "tornado": "Tornado", "twisted": "Twisted", "cherrypy": "CherryPy"}


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


def adapt(app: Any, target: str, settings: Settings) -> Callable[..., Awaitable[None]]:
    """Return an app as an ASGI 3 app: itself, or an adapter for ASGI 2 or WSGI. Its call tells which it is.

    Args:
        app: what `load` returned.
        target: its name, for the message.
        settings: how many threads and processes serve it.

    Raises:
        Refusal: it is no such app.
    """
    if inspect.iscoroutine(app):
        app.close()
        raise Refusal(f"{target} calls an async function: write a function that is not async, or name the app itself")
    kind = f"{target} is {_kind(app)}, and no ASGI or WSGI app"
    is_async = any(map(inspect.iscoroutinefunction, _calls(app)))
    packages = {base.__module__.split(".")[0] for base in type(app).__mro__}
    if not is_async and (others := _OTHERS.keys() & packages):
        raise Refusal(f"{kind}: {_OTHERS[others.pop()]} serves by itself, which Booty does not support")
    if not callable(app):
        raise Refusal(f"{kind}: write module:attribute of an app, or module:factory() of a function that returns one")
    needed, any_number = _parameters(app)
    match needed:
        case [] if not any_number:
            raise Refusal(f"{kind}, but takes no arguments: if it returns the app, write {target}()")
        case ["scope"]:
            return _Asgi2(app)
        case [name]:
            raise Refusal(f"{kind}, but takes the argument {name}: write a function without arguments that calls it")
        case [_, _, _]:
            return app  # type: ignore[no-any-return]
        case [] if is_async:
            return app  # type: ignore[no-any-return]
        case [_, _] | [] if not is_async:
            return WsgiApp(app, settings.booty_threads, settings.booty_workers)
    raise Refusal(f"{kind}: it takes {len(needed)} arguments")


def _kind(app: Any) -> str:
    """Return in words what an object is."""
    if inspect.isclass(app):
        return "a class"
    if inspect.ismodule(app):
        return "a module"
    if inspect.isroutine(app):
        return "a function"
    return f"an object of the type {type(app).__name__}"


def _calls(app: Any) -> list[Any]:
    """Return what a call of an object runs; an object may have a `__call__` of its own, as Sentry's middleware does."""
    return [app] if inspect.isclass(app) else [app, getattr(app, "__call__", None)]  # noqa: B004


def _parameters(app: Callable[..., Any]) -> tuple[list[str], bool]:
    """Return the names of the arguments that a call needs, and whether it takes any number of them."""
    for call in _calls(app):
        with suppress(TypeError, ValueError):  # a function in C
            parameters = inspect.signature(call).parameters.values()
            break
    else:
        return [], True
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [one.name for one in parameters if one.kind in positional and one.default is one.empty]
    return needed, any(one.kind is one.VAR_POSITIONAL for one in parameters)


class _Asgi2:
    """An ASGI 2 app, which is called twice, as an ASGI 3 app."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope)(receive, send)


def label_flaw() -> str | None:
    """Return why the running code is not the release in SENTRY_RELEASE, or None. Each call reads the disk."""
    release_dir, release = current().booty_release_dir, current().sentry_release
    if release_dir is None or code is None:
        return None
    try:
        directory, file = release_dir.resolve(), code.resolve()
        # An app may also be a locked dependency: the release's manifest names its layer.
        layer = Place.read().layer
        if not file.is_relative_to(directory) and not (layer and file.is_relative_to(layer.resolve())):
            return f"the running code is not in {directory} but in {file.parent}"
        if directory.name != release:
            return f"the directory is named {directory.name}, SENTRY_RELEASE is {release or 'not set'}"
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"the running code is gone from {code.parent}"
    except (OSError, RuntimeError) as error:  # RuntimeError: symbolic links in a circle
        return f"{release_dir} can't be read: {error.strerror if isinstance(error, OSError) else error}"
    return None
