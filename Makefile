# make train | test | slow | scaling-check | paper | kernels | slow-kernels | faults | parity | benchmark-cpu | benchmark-inference | benchmark-baselines | compare | aot-gpu | on-a-gpu | modelled-steps | scaling-table | notebooks | lint | docs | release-check
# PYTHON=python3.12 chooses the interpreter, VENV=.venv312 and DEV=.venv312-dev other environments.
PYTHON ?= python3
VENV ?= .venv
DEV ?= .venv-dev
WORKDIR ?= runs/quickstart
# Processes of the tests: one for each core, of which each takes up to 3 GB; 2 to 4.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 4 ] && n=4; [ $$n -lt 2 ] && n=2; echo $$n)
# Neighbours in one process, because they share fixtures and what was traced; the quicker one takes over the rest of the other's.
SIDE_BY_SIDE := -n $(WORKERS) --dist worksteal
PYTEST := JAX_PLATFORMS=cpu JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/jax-$(notdir $(DEV)) $(DEV)/bin/python -m pytest -q -p no:cacheprovider

.PHONY: train test slow scaling-check paper kernels slow-kernels faults parity benchmark-cpu benchmark-inference benchmark-baselines compare aot-gpu on-a-gpu modelled-steps scaling-table notebooks lint docs release-check clean

# Huge pages spare XLA the page faults of its temporaries (docs/performance.md).
train: $(VENV)/installed
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(VENV)/bin/python train.py --config=configs/quickstart.py --workdir=$(WORKDIR)

# All but the tests marked slow, of which each takes more than about five seconds.
test: $(DEV)/installed
	$(PYTEST) $(SIDE_BY_SIDE) -m "not slow"

# Those, but for the kernels'.
slow: $(DEV)/installed
	$(PYTEST) $(SIDE_BY_SIDE) -m slow --ignore=tests/kernels

# Optimised as users compile them, unlike the suite (tests/conftest.py).
kernels: $(DEV)/installed
	XLA_FLAGS= $(PYTEST) $(SIDE_BY_SIDE) tests/kernels

# Theirs, optimised.
slow-kernels: $(DEV)/installed
	XLA_FLAGS= $(PYTEST) $(SIDE_BY_SIDE) -m slow tests/kernels

# Minutes: runs that are killed 20 times.
faults: $(DEV)/installed
	$(PYTEST) -o addopts="--import-mode=importlib" tests/faults

parity: .venv-parity/installed
	JAX_PLATFORMS=cpu .venv-parity/bin/python -m pytest -q -p no:cacheprovider $(SIDE_BY_SIDE) -o addopts="--import-mode=importlib" tests/parity

benchmark-cpu: .venv-parity/installed
	.venv-parity/bin/python -m benchmarks.cpu_vs_pytorch

benchmark-inference: .venv-parity/installed
	.venv-parity/bin/python -m benchmarks.inference

benchmark-baselines: .venv-parity/installed
	.venv-parity/bin/python -m benchmarks.baselines

# The models of the paper at D 128, docs/comparison.md: an hour, and it can be stopped: what is done stays done. ROWS: see
# configs/comparison.py. FLAGS='--config.data.path=DIR' for another text.
ROWS ?= table1
compare: $(VENV)/installed
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 JAX_PLATFORMS=cpu $(VENV)/bin/python -m benchmarks.compare --rows=$(ROWS) $(FLAGS)

# How often the intervals of scaling laws hold the truth: minutes.
scaling-check: $(DEV)/installed
	$(PYTEST) -s tests/analysis/scaling/check_coverage.py

# docs/paper.md: the paper's tables row by row, ours beside them, what a full run costs.
paper: $(DEV)/installed
	JAX_PLATFORMS=cpu $(DEV)/bin/python -m xlstm_jax.analysis.paper

lint: $(DEV)/installed
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/lint-imports

# Compiles every GPU kernel to machine code, without a GPU; Mosaic GPU needs jax >= 0.11, so PYTHON=python3.12 or later. 4 GB.
aot-gpu: .venv-aot/installed
	.venv-aot/bin/python -m benchmarks.aot_gpu

# Everything that only a GPU can show, in 9 minutes: docs/performance.md. FLAGS='--budget=300 --stages=step,inference', or --tiny on a CPU.
on-a-gpu: .venv-aot/installed
	.venv-aot/bin/python -m benchmarks.on_a_gpu $(FLAGS)

# The training and inference steps that were measured on an H100, compiled for one and modelled. Minutes; 4 GB as above.
modelled-steps: .venv-aot/installed
	JAX_PLATFORMS=cpu JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 .venv-aot/bin/python -m benchmarks.modelled_steps

# The site, into build/site; a broken link or a name that is not there ends it.
docs: .venv-docs/installed
	.venv-docs/bin/mkdocs build --strict

# Everything before a version is given away: lint, the archives and what they say of themselves, a run of the wheel in an environment
# that has nothing else, the site, the notebooks. The rest is .ci/run.
release-check: lint .venv-docs/installed
	rm -rf build/dist build/installed
	.venv-docs/bin/python -m build --outdir build/dist
	.venv-docs/bin/twine check --strict build/dist/*
	$(PYTHON) -m venv build/installed
	build/installed/bin/python -m pip install --quiet build/dist/*.whl
	cd build && installed/bin/xlstm-train --config=quickstart --workdir=installed/run --config.train.steps=10 --config.optimizer.warmup_steps=2 --config.eval.max_tokens=5000
	$(PYTEST) tests/test_package.py tests/test_docs.py
	$(MAKE) docs
	$(MAKE) notebooks FLAGS=--short

# Hours, and it can be stopped: rows that exist are kept. GPU rows, after make aot-gpu: .venv-aot/bin/python -m benchmarks.scaling --only 100
scaling-table: $(DEV)/installed
	JAX_PLATFORMS=cpu $(DEV)/bin/python -m benchmarks.scaling

# Executes the notebooks and keeps their outputs: about ten minutes. NAMES=notebooks/6_a_scaling_law.ipynb for one, FLAGS=--short
# only tries them. The extra `parity` is there for torch and transformers.
notebooks: .venv-notebooks/installed
	JAX_PLATFORMS=cpu .venv-notebooks/bin/python notebooks/execute.py $(FLAGS) $(NAMES)

# Environments: made once, again when pyproject.toml changes. The one for tests is apart, because libtpu in it makes every program of
# that environment look for a TPU.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable .
	touch $@

$(DEV)/installed: pyproject.toml
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/python -m pip install --quiet --editable ".[dev]"
	touch $@

.venv-aot/installed: pyproject.toml
	$(PYTHON) -m venv .venv-aot
	.venv-aot/bin/python -m pip install --quiet --editable ".[cuda13]"
	touch $@

.venv-notebooks/installed: pyproject.toml
	$(PYTHON) -m venv .venv-notebooks
	.venv-notebooks/bin/python -m pip install --quiet --editable ".[notebooks,parity]"
	touch $@

.venv-docs/installed: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --editable ".[docs,release]"
	touch $@

.venv-parity/installed: pyproject.toml
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --editable ".[parity]" pytest pytest-xdist
	touch $@

clean:
	rm -rf .venv .venv-* .cache build *.egg-info
