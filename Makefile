# FewSeg: `make help` lists what can be done.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SERVE_STAMP := $(VENV)/.installed-to-serve
# onnxruntime would otherwise write telemetry state under the user's cache.
export ORT_DISABLE_TELEMETRY := 1

.PHONY: help install demo serve triton test lint fmt proto bench bench-peers bench-triton clean

help: ## Lists the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## Everything for development, into .venv

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "FewSeg needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@ $(SERVE_STAMP)

# What serving and the demo need: no torch, a minute instead of several.
$(SERVE_STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[demo]'
	touch $@

demo: $(SERVE_STAMP) ## Registers tasks and segments photographs into demo-output/ (IMAGES=folder: your own)
	$(BIN)/python examples/demo.py --output demo-output $(if $(IMAGES),--images "$(IMAGES)")

serve: $(SERVE_STAMP) ## Serves model_repository/ on localhost:50051
	$(BIN)/fewseg-serve

triton: $(STAMP) ## Serves model_repository/ with a real Triton on localhost:8001 (installs it once)
	$(BIN)/fewseg-triton

# One thread a process: exporting graphs is single-threaded work. Files go out in the order of
# tests/conftest.py, the longest first. A worker takes up to 3 GB: with more cores and memory, WORKERS=4.
WORKERS ?= 2
test: $(STAMP) ## Runs every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term

lint: $(STAMP) ## Formatting, lint, types, layers, the API's style and its generated stubs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/proto.py --check

fmt: $(STAMP) ## Formats the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## The standard load-test suite: prints its table, updates docs/performance.md (quiet machine, 10 minutes)
	$(BIN)/fewseg-loadtest bench --document docs/performance.md

bench-triton: $(STAMP) ## What the gateway adds to a real Triton, and how Triton batches (quiet machine, 3 minutes)
	$(BIN)/python -m loadtests.triton_bench

# The peers live in environments of their own, outside of this folder: their dependencies are not ours.
PEERS ?= $(or $(FEWSEG_PEERS),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fewseg/peers)

bench-peers: ## Installs LitServe and MLServer for `make bench` to compare with
	for peer in litserve mlserver; do \
	  $(PYTHON) -m venv $(PEERS)/$$peer && \
	  $(PEERS)/$$peer/bin/pip install --quiet --requirement loadtests/peers/$$peer.txt || exit 1; \
	done

proto: $(STAMP) ## Regenerates the stubs of protos/ into fewseg/v1/
	$(BIN)/python tools/proto.py

clean: ## Removes what make made
	rm -rf $(VENV) .triton-venv .triton-venv.lock build dist demo-output loadtest-results .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
