# Two commands do everything: `make chat` opens the app, `make test` runs all checks.
# Both make .venv on first use and start at once afterwards. VENV=DIR puts it elsewhere, PYTHON=... chooses one.

VENV ?= .venv
PYTHON ?=
PY := $(VENV)/bin/python

.PHONY: chat test lint types unit clean help

help:
	@echo "make chat   open tui-chat (ARGS=PATH opens your checkpoint)"
	@echo "make test   run every check: lint, types, tests, the app in a real terminal"
	@echo "make clean  remove the environment"

chat: $(VENV)/.ready-app
	@$(VENV)/bin/tui-chat $(ARGS)

test: $(VENV)/.ready-dev lint types unit

lint: $(VENV)/.ready-dev
	@echo "── lint"
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

types: $(VENV)/.ready-dev
	@echo "── types"
	@$(PY) -m mypy

unit: $(VENV)/.ready-dev
	@echo "── tests"
	@$(PY) -m pytest $(PYTEST_ARGS)

$(VENV)/.ready-app: pyproject.toml .ci/constraints.txt .ci/install.py
	@sh .ci/venv "$(VENV)" "$(PYTHON)"
	@$(PY) .ci/install.py app
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready-app
	@$(PY) .ci/install.py dev
	@touch $@

clean:
	rm -rf "$(VENV)"
