#!/bin/sh
# Install Ansible, the collection beside this file, and the packages that it locks, into venv/.
set -eu
cd "$(dirname "$0")"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check 'ansible-core>=2.19,<2.22'
venv/bin/ansible-galaxy collection install --offline --force --collections-path venv/collections booty-deploy-*.tar.gz
venv/bin/pip install --quiet --disable-pip-version-check --require-hashes \
    -r venv/collections/ansible_collections/booty/deploy/requirements/controller.txt
