#!/usr/bin/python
"""Make a directory of a release or a layer out of its archive: whole, or not at all."""

from __future__ import annotations

import base64
import compileall
import hashlib
import io
import os
import py_compile
import shutil
import tarfile
import tempfile
from pathlib import Path

from ansible.module_utils import booty_host as host
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: booty_stage
short_description: Make a directory of a release or a layer out of its archive
description:
  - Checks the archive's digest, unpacks it beside the destination, compiles its bytecode, puts all of it on disk and
    renames it. A directory under its own name is therefore whole.
options:
  archive: {description: The archive on the host. It is removed afterwards., type: path}
  content: {description: Or the archive itself in base64, if it is small., type: str}
  sha256: {description: The digest that the controller computed., type: str, required: true}
  dest: {description: The directory to make., type: path, required: true}
author: [Booty]
"""
EXAMPLES = r"""
- booty_stage: {archive: /opt/booty/incoming/x.tar.gz, sha256: 01ab…, dest: /opt/booty/releases/x}
"""
RETURN = r"""#"""


def stage(archive: bytes, sha256: str, dest: Path) -> None:
    """Unpack, compile and rename.

    Args:
        archive: a `.tar.gz` of files and links.
        sha256: its digest, in hexadecimal.
        dest: the directory that appears.

    Raises:
        ValueError: the digest differs, or the archive holds what it must not.
        OSError: the disk is full or read-only.
    """
    found = hashlib.sha256(archive).hexdigest()
    if found != sha256:
        raise ValueError(f"the archive arrived damaged: its SHA-256 is {found}, not {sha256}. Deploy again.")
    # Another deploy of the same release may be at it as well. The lock ends with the process.
    with host.locked(dest.parent):
        if not dest.is_dir():
            make(archive, dest)


def make(archive: bytes, dest: Path) -> None:
    """Make the directory; nobody else does at the same time."""
    for abandoned in dest.parent.glob(f".{dest.name}.*"):
        shutil.rmtree(abandoned)
    partial = Path(tempfile.mkdtemp(dir=dest.parent, prefix=f".{dest.name}."))
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            # As it is, link to the host's Python and all: the digest says that it is ours. Debian 12's Python has no
            # `filter=` yet, and newer ones refuse such a link without one.
            tar.extraction_filter = lambda member, _: member
            tar.extractall(partial)
        # The tree is read-only to the service and never changes: its bytecode needs no check against the source.
        compileall.compile_dir(
            partial,
            quiet=2,
            stripdir=str(partial),
            prependdir=str(dest),
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        for path in (
            partial,
            *(path for path in partial.rglob("*") if path.is_dir() and not path.is_symlink()),
        ):
            path.chmod(0o755)
        os.sync()
        partial.rename(dest)
        host.sync_directory(dest.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def main() -> None:
    """Stage, unless it is there."""
    module = AnsibleModule(
        argument_spec={
            "archive": {"type": "path"},
            # Not a secret, but nobody wants to read it.
            "content": {"type": "str", "no_log": True},
            "sha256": {"type": "str", "required": True},
            "dest": {"type": "path", "required": True},
        },
        supports_check_mode=True,
        required_one_of=[("archive", "content")],
        mutually_exclusive=[("archive", "content")],
    )
    sent, dest = module.params["archive"], Path(module.params["dest"])
    missing = not dest.is_dir()
    if not module.check_mode:
        os.umask(0o022)
        try:
            archive = Path(sent).read_bytes() if sent else base64.b64decode(module.params["content"])
            stage(archive, module.params["sha256"], dest)
        except (OSError, ValueError, tarfile.TarError) as error:
            module.fail_json(msg=f"{dest} can't be made: {error}")
        if sent:
            Path(sent).unlink(missing_ok=True)
    module.exit_json(changed=missing)


if __name__ == "__main__":
    main()
