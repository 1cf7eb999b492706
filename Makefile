# unpool: `make demo` and `make test` do everything on a fresh machine; `make PYTHON=python3.13 demo` chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test lint bench clean

$(READY): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing unpool and what it needs into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[demo,dev]"
	@touch $@

demo: $(READY)  ## decode real cells from a quarter of the channels; writes demo-output/
	@$(BIN)/unpool demo

test: $(READY)  ## the whole suite
	@$(BIN)/python -m pytest -q

lint: $(READY)  ## style, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## speed and accuracy beside peers; writes benchmarks/results
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[bench]"
	@$(BIN)/python benchmarks/notebook.py
	@$(BIN)/python benchmarks/uncertainty.py

clean:
	rm -rf $(VENV) demo-output build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
