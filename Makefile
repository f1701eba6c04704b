# `make help` lists the targets. Every target that needs an environment makes it.
.DEFAULT_GOAL := help
.PHONY: help quickstart test test-fast test-faults fuzz scale bench quality style docs clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The one place where PyTorch is pinned. It is installed first: later steps keep what is there, so a CPU build stays.
# Where only the CPU build is wanted: make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH := torch==2.13.0
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

help: ## Show this help.
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk 'BEGIN {FS = ":.*?## "} {printf "  %-12s %s\n", $$1, $$2}'

quickstart: $(VENV)/.train ## Simulate logs, train DeGRe and what it is compared with, evaluate, rerank a request (3 minutes).
	$(BIN)/rerankzoo quickstart

test: $(VENV)/.dev ## Run the whole test suite (CPU, offline).
	$(BIN)/python -m pytest -n 2

test-fast: $(VENV)/.dev ## Run the tests without the slow ones.
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-faults: $(VENV)/.dev ## Kill commands while they train, mine, convert, predict and push; compare results (10 minutes).
	$(BIN)/python -m qa.faults

fuzz: $(VENV)/.dev ## Attack all that reads what others wrote, with 100,000 hostile cases (4 minutes on 2 cores).
	OMP_NUM_THREADS=1 $(BIN)/python -m qa.fuzz

bench: $(VENV)/.dev ## Compare speed with peers on one thread: the table of docs/serving.md, into outputs/bench.
	OMP_NUM_THREADS=1 $(BIN)/python -m qa.benchmarks

scale: $(VENV)/.dev ## Measure large logs and long service: the figures of docs/scaling.md, into outputs/scale (12 GB of disk).
	OMP_NUM_THREADS=1 $(BIN)/python -m qa.scale

quality: $(VENV)/.dev docs ## Check style, types and the docs build.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(VENV)/.dev ## Fix what style checks can fix.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs ## Build the documentation into site/, warnings as errors.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean: ## Remove the environment and everything built.
	rm -rf $(VENV) site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(BIN)/python
	$(PIP) install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$(TORCH)"
	@touch $@

$(VENV)/.train: pyproject.toml $(VENV)/.torch
	$(PIP) install -e ".[train]"
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch
	$(PIP) install -e ".[dev]"
	@touch $@ $(VENV)/.train

$(VENV)/.docs: pyproject.toml $(VENV)/.dev
	$(PIP) install -e ".[docs]"
	@touch $@
