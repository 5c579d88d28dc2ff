"""The documentation of the action `booty.deploy.resolve`, where ansible-doc looks for it."""

DOCUMENTATION = """
module: resolve
short_description: Resolve a release to its commit
description: Returns the 40 characters of the commit that a SHA, a short SHA, a tag or a branch names.
author: The Booty authors
options:
  repository:
    type: path
    required: true
    description: "The git repository on the controller: its top folder, or a git directory."
  path:
    type: str
    required: true
    description: The folder of the app in it.
  release:
    type: str
    required: true
    description: The SHA, tag or branch.
"""

RETURN = """
release:
  description: The 40 characters of the commit.
  returned: success
  type: raw
"""
