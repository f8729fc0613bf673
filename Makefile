# make train | test | quick | parity | lint      PYTHON=python3.12 chooses the interpreter, VENV=.venv312 another environment
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/quickstart
BIN := $(VENV)/bin
PYTEST := JAX_PLATFORMS=cpu JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/jax-$(notdir $(VENV)) $(BIN)/python -m pytest -q -p no:cacheprovider

.PHONY: train test quick kernels parity benchmark-cpu lint clean

train: $(VENV)/installed
	$(BIN)/python train.py --config=configs/quickstart.py --workdir=$(WORKDIR)

test: $(VENV)/installed-dev
	$(PYTEST) -n 2

quick: $(VENV)/installed-dev
	$(PYTEST) -n 2 -m "not slow"

kernels: $(VENV)/installed-dev
	$(PYTEST) -n 2 tests/kernels

parity: .venv-parity/installed
	JAX_PLATFORMS=cpu .venv-parity/bin/python -m pytest -q -p no:cacheprovider -o addopts="--import-mode=importlib" tests/parity

benchmark-cpu: .venv-parity/installed
	.venv-parity/bin/python -m benchmarks.cpu_vs_pytorch

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .

# Environments: made once, again when pyproject.toml changes.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/installed

.venv-parity/installed: pyproject.toml
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --editable ".[parity]" pytest
	touch $@

clean:
	rm -rf .venv .venv-* .cache build *.egg-info
