"""The documentation of the action `booty.deploy.proxy`, where ansible-doc looks for it."""

DOCUMENTATION = """
module: proxy
short_description: Serve the app's domains with HTTPS
description:
  - Brings nginx on the host to what the variables of the app say, with the app's certificates. Only what differs is
    changed, and no connection is cut. docs/proxy.md describes how.
author: The Booty authors
options:
  state:
    type: str
    choices: [present, absent, closed, open]
    default: present
    description: V(absent) removes the app's names. V(closed) and V(open) turn the maintenance page on and off.
"""

RETURN = """
notices:
  description: The names without a certificate, and the next step for each; what became of the app's own port.
  returned: success
  type: list
  elements: str
"""
