# Every target sets up .venv first, from pyproject.toml alone.
PYTHON ?= python3
BIN := .venv/bin
PYTEST_ARGS ?=
# Processes that share the tests; each imports TensorFlow and takes about 2 GB of memory.
WORKERS ?= 2
PIP_ARGS ?=
BENCH_ARGS ?=
FUZZ_ARGS ?=
NOTEBOOKS ?=

.PHONY: demo pictures notebooks test test-backends lint format bench bench-batch-norm mutants fuzz clean

demo: .venv/installed
	$(BIN)/ckptavg demo

# Those of the README, from a demo.
pictures: demo
	cp ckptavg-demo/curves.png ckptavg-demo/trajectory.png ckptavg-demo/loss_plane.png notebooks/images/

# Runs all notebooks, or those named, and writes their outputs back.
notebooks: .venv/installed
	$(BIN)/python -m tests.system.notebooks $(NOTEBOOKS)

test: lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(PYTEST_ARGS)

# Keras' other backends, in an environment of their own.
test-backends: .venv-backends/installed
	for backend in tensorflow jax torch; do \
	  KERAS_BACKEND=$$backend .venv-backends/bin/python -m pytest tests/backends $(PYTEST_ARGS) || exit 1; \
	done

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/installed
	$(BIN)/python tests/benchmarks/bench_merge.py $(BENCH_ARGS)
	$(BIN)/python tests/benchmarks/bench_sweep.py
	$(BIN)/python tests/benchmarks/bench_geometry.py
	$(BIN)/python tests/benchmarks/bench_start.py

bench-batch-norm: .venv/installed
	$(BIN)/python tests/benchmarks/bench_batch_norm.py $(BENCH_ARGS)

# Small changes of the code that decides what comes out, each of which its tests must notice.
mutants: .venv/installed
	$(BIN)/python -m tests.mutation $(MUTANTS)

# At least 30,000 mutated files of every format, each read in a process that may die of it.
fuzz: .venv/installed
	$(BIN)/python -m tests.fuzzing $(FUZZ_ARGS)

clean:
	rm -rf .venv .venv-backends .pytest_cache .mypy_cache .ruff_cache .import_linter_cache ckptavg-demo fuzzing-failures

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: ckptavg needs Python 3.11 or later, but $(PYTHON) is $$($(PYTHON) --version 2>&1): try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || \
	  { echo "error: $(PYTHON) cannot make a virtual environment (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --editable '.[analysis,test]'
	@touch $@

# On Linux without a GPU, torch's CPU build is enough: pip's --index-url in PIP_ARGS names where it is.
.venv-backends/installed: pyproject.toml
	@$(PYTHON) -m venv .venv-backends
	.venv-backends/bin/python -m pip install --quiet --editable '.[jax,torch,test]' $(PIP_ARGS)
	@touch $@
