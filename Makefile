# Targets install what they need into .venv: the package and, for tests, docs and benchmarks, the extra "dev".
# PYTHON sets another interpreter (3.10 to 3.13); PIP_ARGS adds arguments to "pip install".
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet $(PIP_ARGS)
Q := quickstart
PROCESSES ?= 2
# Compile even if PYTHONDONTWRITEBYTECODE is set, as in many images: otherwise each Ray process compiles the package.
COMPILE := $(BIN)/python -m compileall -q hwr_ray jobs

.PHONY: install install-dev quickstart test test-fast check docs bench

install: .venv/installed

install-dev: .venv/installed-dev

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) --upgrade pip
	$(PIP_INSTALL) --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@

# Draws names, transcribes them with the shipped model, fine-tunes the model on them and transcribes them again.
quickstart: install
	rm -rf $(Q)
	$(COMPILE)
	$(BIN)/python examples/quickstart.py --out $(Q)

# All tests, on PROCESSES processes with a Ray cluster each (0: in this process). RECORD is a file for their durations.
test: install-dev
	$(BIN)/python tests/install_browser.py
	$(COMPILE)
	$(BIN)/python -m pytest -n $(PROCESSES) $(if $(RECORD),--record=$(RECORD))

# For the edit loop: the tests that need neither Ray nor a browser and are not slow.
test-fast: install-dev
	$(BIN)/python -m pytest -q -n $(PROCESSES) -m 'not ray and not browser and not slow'

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

# Builds the documentation site in build/site; warnings are errors. (The variable silences Material's advertisement.)
docs: install-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: install-dev
	$(BIN)/python benchmarks/speed.py
