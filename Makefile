# Set up .venv and run; every line here is also given as plain pip and hybridize lines in the README.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo full test test-slow test-kill test-engines lint teacher

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/hybridize run tiny

full: $(INSTALLED)
	$(BIN)/hybridize run tiny-full

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not gpu"

test-slow: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "slow"

test-kill: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s -m slow tests/pipeline/test_kill.py

# Serving engines and what exports need; each test that finds its engine missing says so.
ENGINES := .venv/.engines

$(ENGINES): $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gguf]' xllamacpp
	touch $@

test-engines: $(ENGINES)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -m "not gpu" tests/engines tests/exports

lint: $(INSTALLED)
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

teacher: $(INSTALLED)
	$(BIN)/python scripts/train_teacher.py --out build/teacher
