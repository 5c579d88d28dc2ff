"""The documentation of the action `booty.deploy.watch`, where ansible-doc looks for it."""

DOCUMENTATION = """
module: watch
short_description: Watch the tracker for errors that a release brought
description:
  - Asks Sentry or Bugsink on the controller, which reads its token from E(SENTRY_WATCH_TOKEN) or E(SENTRY_AUTH_TOKEN).
  - The step V(look) takes as long as the watch. The step V(judge) shows the result.
author: The Booty authors
options:
  step:
    type: str
    choices: [look, judge]
    required: true
    description: Whether to ask the tracker, or to judge its answer together with those of the hosts.
  mode:
    type: str
    required: true
    description: V(report), V(hold) or V(back), or V(now) for C(watch.yml).
  release:
    type: str
    required: true
    description:
      - The commit, whose errors since the begin of this run count, for as long as O(seconds).
      - If empty, the release that the hosts serve, whose errors since its start count. The watch then ends as soon as
        the tracker is proven to show errors.
  before:
    type: list
    elements: str
    default: []
    description: The releases that the hosts served before.
  hosts:
    type: dict
    required: true
    description: The answers of the hosts when the watch began, by host.
  share:
    type: float
    default: 1.0
    description: The share of the hosts that serve the release.
  seconds:
    type: int
    default: 0
    description: How long to watch.
  repository:
    type: str
    required: true
    description: The git repository of the commits.
  found:
    type: dict
    default: {}
    description: The result of the step V(look).
  counted:
    type: dict
    default: {}
    description: The answers of the hosts when the watch ended, by host.
  commands:
    type: list
    elements: dict
    default: []
    description: The records of the commands that ran.
  forced:
    type: bool
    default: false
    description: Whether the release was deployed although a watch had taken it back.
"""

RETURN = """
result:
  description: V(clean), V(bad), V(quiet) or V(blind).
  returned: with the step V(judge)
  type: str
message:
  description: The result in words.
  returned: with the step V(judge)
  type: str
issues:
  description: The errors that the release brought, each with C(title), C(url), C(count), C(frames) and C(commits).
  returned: with the step V(judge)
  type: list
follows:
  description: V(back), V(hold) or nothing.
  returned: with the step V(judge)
  type: str
"""
