# `make demo` and `make test` set up everything that they need in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

OLDEST ?= .venv-oldest

.PHONY: demo test test-oldest smoke docs lint types style clean

demo: $(VENV)/.demo
	$(BIN)/rada demo --out rada-demo

# One test process for each core; threads of their own would only get in each other's way.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

# The whole suite with the lowest version of every package that pyproject.toml allows, without the extras `onnx` and
# `app`, which ask for newer ones than the rest.
test-oldest: $(OLDEST)/.dev
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q -n auto --dist loadfile

# Builds wheel and sdist, and uses the wheel in an empty environment outside the checkout.
smoke:
	PYTHON=$(PYTHON) .ci/smoke

# The site of the documents, into site/: no warning, no dead link, no network.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=src $(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/mypy

style: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OLDEST) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rada needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install -e '.[embedded]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install -e '.[all,dev]'
	touch $@ $(VENV)/.demo

$(OLDEST)/.dev: pyproject.toml .ci/floors.py
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) .ci/floors.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install -c $(OLDEST)/constraints.txt -e '.[models,report,bench,finetune,embedded,shards,track,explain,labels,serve,test]'
	touch $@
