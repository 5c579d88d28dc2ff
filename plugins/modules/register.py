"""The documentation of the action `booty.deploy.register`, where ansible-doc looks for it."""

DOCUMENTATION = """
module: register
short_description: Register a release and its deploys in Sentry
description: Runs sentry-cli on the controller, which reads its token from E(SENTRY_AUTH_TOKEN).
author: The Booty authors
options:
  release:
    type: str
    required: true
    description: The commit.
  environments:
    type: list
    elements: str
    required: true
    description: The environments that the release serves in.
  changed:
    type: list
    elements: str
    required: true
    description: The environments that this run changed.
  repository:
    type: path
    description: The git repository of the commits. Without it no commits are listed.
  seconds:
    type: int
    required: true
    description: The time that the registration may take, in seconds.
  required:
    type: bool
    required: true
    description: Whether a registration that fails makes the run fail.
"""

RETURN = """
registration:
  description: V(registered), V(not configured), V(failed) or V(skipped).
  returned: success
  type: raw
"""
