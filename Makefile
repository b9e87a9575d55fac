# What there is to do here. `make run` and `make test` need Python 3.11 or newer and a C compiler, and nothing else.

# The first of these that is new enough; or say it: make run PYTHON=/path/to/python3.12
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
UV ?= uv
# More for pytest, as in: make test ARGS="tests/proxy -x"
ARGS ?=
# Each process has servers of its own. In one, as the debugger needs it: make test ARGS="--numprocesses 0 --pdb"
IN_PARALLEL := --numprocesses 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup run test check bench bench-peers chaos fuzz lock clean

help:  ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.base  ## Make the virtual environment with what Tollgate needs

run: $(VENV)/.base  ## Run everything here: admin, gateway, workers, PostgreSQL, Redis, a demo
	@exec $(BIN)/python manage.py up

test: $(VENV)/.dev  ## Run the tests
	$(BIN)/python -m pytest $(IN_PARALLEL) $(ARGS)

check: $(VENV)/.dev  ## Format, lint, types, import contract, tests: what CI runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports
	$(MAKE) test

bench: $(VENV)/.dev  ## Measure the proxy on this machine
	$(BIN)/python -m bench $(ARGS)

bench-peers: $(VENV)/.dev  ## Measure other gateways beside it (installs them)
	$(BIN)/python -m bench --peers $(ARGS)

chaos: $(VENV)/.dev  ## Kill processes under load and reconcile the books
	$(BIN)/python -m tests.chaos $(ARGS)

fuzz: $(VENV)/.dev  ## Fuzz a parser until it breaks or is stopped: make fuzz ARGS=sse
	PYTHONPATH=. $(BIN)/python tests/fuzz/framing.py $(ARGS)

lock:  ## Lock the dependencies anew (needs uv)
	cd requirements && for name in base dev sdks sdks-openai2; do \
		$(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
			$$name.in -o $$name.txt || exit 1; done

clean:  ## Remove the virtual environment and caches; the data in var/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found; say where it is: make run PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "$(PYTHON) lacks venv; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.base: requirements/base.txt | $(VENV)/.created
	@echo "Installing what Tollgate needs (the first time it takes a minute or two)"
	@$(PIP) install --require-hashes -r requirements/base.txt
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.base
	@echo "Installing what its tests need"
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@
