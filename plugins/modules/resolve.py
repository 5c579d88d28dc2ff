"""The documentation of the action `booty.deploy.resolve`, where ansible-doc looks for it."""

DOCUMENTATION = """
module: resolve
short_description: Resolve a release to its commit, and describe the app in it
description:
  - Returns the 40 characters of the commit that a SHA, a short SHA, a tag or a branch names.
  - Reads the files of the commit, and runs nothing of them.
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
  describe:
    type: bool
    default: false
    description: Whether to describe the app, by the variables app_serve, app_lock and so on, and to print the result.
  quiet:
    type: bool
    default: false
    description: Whether to print nothing.
"""

RETURN = """
release:
  description: The 40 characters of the commit.
  returned: success
  type: raw
description:
  description: >-
    What a release of the app needs, as serve, lock, extras, groups, path, import_paths, health, state_paths and dotenv;
    and the sentences in found.
  returned: with O(describe)
  type: dict
"""
