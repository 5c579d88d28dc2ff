"""Make the programs of installed packages start with the Python of the release that they lie in."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path
from typing import TypedDict

# uv's head for a script that may be moved: sh executes the Python beside the script, also if the script is called by a
# link, and Python reads the same lines as a string.
HEAD = """#!/bin/sh
'''exec' "$(dirname -- "$(realpath -- "$0")")"/python "$0" "$@"
' '''
"""
CALL = """import sys
from {module} import {first}
if __name__ == "__main__":
    sys.exit({attribute}())
"""
# The release's own programs.
RESERVED = {"python", "python3", "serve"}


class Programs(TypedDict):
    """The programs of installed packages.

    Attributes:
        scripts: the texts of the Python scripts, by name.
        others: the names of all other programs in `bin/`, such as binaries.
    """

    scripts: dict[str, str]
    others: list[str]


def programs(installed: Path) -> Programs:
    """Return the programs of the packages in a folder, which `uv pip install --target` made."""
    scripts, others = {}, []
    for file in sorted((installed / "bin").glob("*")):
        first, _, rest = file.read_bytes().partition(b"\n")
        if first.startswith(b"#!") and b"python" in first:
            scripts[file.name] = HEAD + rest.decode(errors="surrogateescape")
        else:
            others.append(file.name)
    for distribution in distributions(path=[str(installed)]):
        for entry in distribution.entry_points.select(group="console_scripts"):
            module, _, attribute = entry.value.partition("[")[0].strip().partition(":")
            call = CALL.format(module=module, first=attribute.partition(".")[0], attribute=attribute)
            scripts[entry.name] = HEAD + call
    return {
        "scripts": {name: text for name, text in sorted(scripts.items()) if name not in RESERVED},
        "others": [name for name in others if name not in {*scripts, *RESERVED}],
    }
