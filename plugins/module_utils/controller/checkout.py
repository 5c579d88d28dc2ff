"""Write the runner's private packages into a checkout, where its code and tests run without a layer: `make setup`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .archive import key
from .build import RECIPE, RUNNER, build_runner
from .lock import Host
from .vendor import __file__ as generator


def main() -> None:
    """Replace `booty_runner/_vendor` unless it was written from this lock, by this code, for this Python."""
    target, lock = RUNNER / "src/booty_runner/_vendor", (RUNNER / "requirements.txt").read_text()
    host = Host("{}.{}.{}".format(*sys.version_info), os.uname().machine)
    current = key(RECIPE, lock, Path(generator).read_bytes(), host.python, host.machine)
    written = target / ".key"
    if written.is_file() and written.read_text() == current:
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "runner.tar.gz")
        build_runner(archive, lock, host)
        subprocess.run(["tar", "-xzf", archive, "-C", folder, "booty_runner/_vendor"], check=True)
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(Path(folder, "booty_runner/_vendor"), target)
    written.write_text(current)


if __name__ == "__main__":
    main()
