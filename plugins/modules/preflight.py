"""The documentation of the action `booty.deploy.preflight`, where ansible-doc looks for it."""

DOCUMENTATION = """
module: preflight
short_description: Find the problems that keep a host from taking a release
description: Changes nothing on the host.
author: The Booty authors
options:
  release:
    type: str
    description: The commit. Without it, and with O(goes_back), the release that served before.
  description:
    type: dict
    description: What resolve returned for the commit. The host's copy of the release is compared with it.
  goes_back:
    type: bool
    description: Whether this is a rollback.
"""

RETURN = """
problems:
  description: A sentence for each problem that stops the release.
  returned: success
  type: raw
host:
  description: The answer of the host.
  returned: success
  type: raw
due:
  description: Whether a cutover would change anything.
  returned: success
  type: raw
"""
