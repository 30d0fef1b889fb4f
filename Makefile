# Two commands matter: `make align` (the main job on the embedded apprentice) and `make test`.
# Both make .venv in this clone and install into it; a second call finds that done.
#
#   PYTHON=python3.12      another interpreter for the environment (3.11 or newer)
#   TORCH_INDEX=URL        take torch from this package index (say, one with CPU builds)
#   ARGS="--seed 1"        passed on to the command of `align`, `test`, `test-full`, `bench`

SHELL := /bin/bash
PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)

BIN := .venv/bin
STAMP := .venv/.installed
# one thread per worker: two processes that each start two threads are slower than two that start one
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

.PHONY: align test test-full live lint format bench bench-trl docs clean

align: $(STAMP)
	$(BIN)/fairlead align $(ARGS)

test: $(STAMP)
	$(PYTEST) -m "not full" $(ARGS)

test-full: $(STAMP)
	$(BIN)/python -m pip install -q -e '.[cluster]'
	$(PYTEST) $(ARGS)

# the contract of remote models against the providers whose keys are set, for a little money; says so where none is
MODELS ?=
live: $(STAMP)
	$(BIN)/python tests/live/run.py $(MODELS)

# all four run, so that one call tells all
lint: $(STAMP)
	@failed=0; \
	for step in "ruff check ." "ruff format --check ." "mypy" "lint-imports"; do \
		echo "== $$step"; $(BIN)/$$step || failed=1; \
	done; exit $$failed

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# everything that is measured here for speed: the main job, cost by tokens, decoding beside transformers, and the ratios
# to TRL (about 50 minutes)
bench: $(STAMP)
	$(BIN)/python bench/align.py $(ARGS)
	$(BIN)/python bench/linear.py
	$(BIN)/python bench/decode.py
	$(MAKE) bench-trl ARGS=

# METHODS="dpo,reward,sft,grpo"; the last lines give the ratios of rates, ours over TRL's
METHODS ?= dpo,reward,sft,grpo
bench-trl: $(STAMP)
	$(BIN)/python -m pip install -q -e '.[bench]'
	$(BIN)/python bench/vs_trl.py --methods $(METHODS) $(ARGS)

# what is derived from the code: the schema that editors check a constitution with
docs: $(STAMP)
	@mkdir -p docs
	$(BIN)/fairlead constitution schema > docs/constitution.schema.json.tmp
	mv docs/constitution.schema.json.tmp docs/constitution.schema.json

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; name another one: make PYTHON=python3.12 ..." >&2; exit 4; }
	$(PYTHON) -m venv .venv

# torch comes first and without its dependencies where an index is named: that index need hold nothing but torch
$(STAMP): pyproject.toml | .venv/bin/python
	@if [ -n "$(TORCH_INDEX)" ]; then set -x; \
		$(BIN)/python -m pip install --no-deps --index-url "$(TORCH_INDEX)" 'torch>=2.11,<2.14'; fi
	$(BIN)/python -m pip install -q -e '.[train,report,guard,dev]'
	@touch $(STAMP)
