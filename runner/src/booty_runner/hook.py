"""The import hook. Importing this module activates it: events of any Sentry SDK that is imported later are covered.

The runner imports it before the app. A line `import booty_runner.hook` in a `.pth` file of a release does the same for
every other Python program of the release. So this module imports nothing until an SDK is imported.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def _cover(client: "ModuleType") -> None:
    from booty_runner import clients  # noqa: PLC0415 - slow; a program without an SDK doesn't need it

    clients.cover(client)


# The names that an SDK may have: the app's own, and the runner's private copy.
SDKS = ("sentry_sdk", "booty_runner._vendor.sentry_sdk")
# The functions to call after the import of a module, by the module's name. The argument is the module.
after: "dict[str, Callable[[ModuleType], object]]" = {f"{sdk}.client": _cover for sdk in SDKS}


class _Finder:
    """Finds a module of `after` by the other finders, and has its function called when the import is over."""

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return the module's spec, or None for all modules that `after` does not name."""
        if name not in after:
            return None
        others = (finder.find_spec for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((spec for find_spec in others if (spec := find_spec(name, path, target))), None)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def execute_then_call(module: "ModuleType") -> None:
                execute(module)
                if module.__name__ in after:
                    after[module.__name__](module)

            # Only this loader: it is a new object for each module, and inspect and importlib.resources still know it.
            spec.loader.exec_module = execute_then_call  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())
for _name in SDKS:
    if _client := sys.modules.get(f"{_name}.client"):
        _cover(_client)
