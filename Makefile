# Targets install what they need into .venv; PYTHON names another interpreter (3.10 to 3.13).
PYTHON ?= python3
BIN := .venv/bin
Q := quickstart

.PHONY: install quickstart test check docs bench

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# Draws names, reads them with the shipped model, teaches it their hand and reads them again.
quickstart: install
	rm -rf $(Q)
	$(BIN)/python examples/quickstart.py --out $(Q)

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) test

# The documentation as a site in build/site; a warning is an error. (The variable silences Material's advertisement.)
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: install
	$(BIN)/python benchmarks/speed.py
