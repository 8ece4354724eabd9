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

# Draws names, prepares, trains, evaluates and transcribes them: about five minutes on 2 cores.
quickstart: install
	rm -rf $(Q)
	$(BIN)/python jobs/synthesize.py --out $(Q)/drawn --lines 3000
	$(BIN)/python jobs/prepare.py --data $(Q)/drawn --out $(Q)/prepared
	$(BIN)/python jobs/train.py --data $(Q)/prepared --out $(Q)/run --epochs 12 --batch-size 32 --num-workers 2
	$(BIN)/python jobs/evaluate.py --data $(Q)/prepared --model $(Q)/run/best --out $(Q)/evaluation
	$(BIN)/python jobs/transcribe.py --images $(Q)/drawn/test_v2 --model $(Q)/run/best --out $(Q)/transcripts

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
