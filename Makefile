# Every target makes the virtual environment first. HOSTS and SUITE are the number and the Debian suite of sandbox hosts.
HOSTS ?= 1
SUITE ?= bookworm
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo,)

.PHONY: help setup demo sandbox sandbox-down test test-long bench lint format lock clean
.DEFAULT_GOAL := help

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/.ready ## Make the controller's virtual environment, and the runner's private packages
	@PYTHONPATH=collections $(BIN)/python -m ansible_collections.booty.deploy.plugins.module_utils.controller.checkout

demo: setup ## Deploy to new sandbox hosts, and show one error in the local tracker
	@$(BIN)/python -m sandbox.demo --hosts $(HOSTS) --suite $(SUITE)

sandbox: setup ## Boot HOSTS sandbox hosts of SUITE and a tracker
	@$(BIN)/python -m sandbox up --hosts $(HOSTS) --suite $(SUITE)

sandbox-down: setup ## Remove every sandbox host and the tracker
	@$(BIN)/python -m sandbox down --all

# Tests mostly wait for a host, so two processes take little more than half the time. Each test file has one of them.
test: setup ## Run the tests, except those of `make test-long`
	$(BIN)/pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

test-long: setup ## Run the long tests: new hosts in every state, controllers and hosts that fail
	$(BIN)/pytest -m long

bench: setup ## Compare deploys with pyinfra and a shell script, cutovers with simpler ones, the runner with other servers
	PYTHONPATH=collections $(BIN)/python -m tests.bench.deploy
	PYTHONPATH=collections $(BIN)/python -m tests.bench.cutover
	$(BIN)/python -m tests.bench.serve
	PYTHONPATH=collections $(BIN)/python -m tests.bench.proxy

lint: setup ## Run ruff, mypy, yamllint and ansible-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/yamllint --strict .
	$(BIN)/ansible-lint --offline

format: setup ## Format the Python code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup ## Lock the dependencies again
	cd app && ../$(BIN)/uv pip compile $(LOCK) pyproject.toml -o requirements.txt
	@# click, h11 and typing_extensions belong to parts of uvicorn that the runner's layer leaves out.
	cd runner && ../$(BIN)/uv pip compile $(LOCK) pyproject.toml -c ../app/requirements.txt -o requirements.txt \
		--no-emit-package click --no-emit-package h11 --no-emit-package typing-extensions
	$(BIN)/uv pip compile $(LOCK) pyproject.toml app/pyproject.toml --group dev -c app/requirements.txt -o requirements/dev.txt
	$(BIN)/uv pip compile $(LOCK) pyproject.toml --no-emit-package ansible-core -c requirements/dev.txt -o requirements/controller.txt
	$(BIN)/uv pip compile $(LOCK) --group tracker -o requirements/tracker.txt
	$(BIN)/uv pip compile $(LOCK) --group bench -o requirements/bench.txt
LOCK := --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command 'make lock'

clean: sandbox-down ## Remove the sandbox and the virtual environment
	rm -rf $(VENV)

# pip installs the locked uv, and uv installs the other packages faster than pip. Compiled bytecode halves the time that
# every play needs to start.
$(VENV)/.ready: requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Booty needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(SUDO) apt-get install -y -q python3-venv || \
		{ echo "Booty needs Python's venv module: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	sed -n '/^uv==/,/[^\\]$$/p' $< > $(VENV)/uv.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r $<
	@# molecule searches Ansible on PATH. So path.pth adds bin/ to PATH, for calls of .venv/bin/molecule without `activate`.
	@echo 'import os, sys; os.environ["PATH"] = os.pathsep.join((sys.prefix + "/bin", os.environ.get("PATH", os.defpath)))' \
		> $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/path.pth
	@touch $@
