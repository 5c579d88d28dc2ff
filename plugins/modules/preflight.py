"""The documentation of the action `booty.deploy.preflight`, where ansible-doc looks for it."""

DOCUMENTATION = """
module: preflight
short_description: Ask a host everything that matters to a release, and judge the answer
description:
  - >-
    Nothing is changed on the host.
author: The Booty authors
options:
  release:
    type: str
    description:
      - >-
        The commit. Without it, and with O(goes_back), the release that served before.
  goes_back:
    type: bool
    description:
      - >-
        Whether this is a rollback.
"""

RETURN = """
obstacles:
  description:
    - >-
      A sentence for everything that stops the release.
  returned: success
  type: raw
host:
  description:
    - >-
      The answer of the host.
  returned: success
  type: raw
due:
  description:
    - >-
      Whether a cutover would change anything.
  returned: success
  type: raw
"""
