# unpool: `make demo` and `make test` do everything on a fresh machine; `make PYTHON=python3.13 demo` chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

# two settings that some machines make for OpenBLAS slow its matrix products down; measure without them
MEASURE := env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $(BIN)/python
BENCHMARKS := solvers notebook decoder references gains uncertainty speed million

.PHONY: demo test lint bench notebook clean

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

bench: $(READY)  ## speed and accuracy beside peers; writes benchmarks/results and benchmarks/README.md
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[bench]"
	@failed=0; for script in $(wildcard $(BENCHMARKS:%=benchmarks/%.py)); do \
	  echo; echo "== $$script"; $(MEASURE) $$script || failed=1; \
	done; $(BIN)/python benchmarks/page.py; exit $$failed

notebook: $(READY)  ## run docs/notebook.ipynb and store what it prints and draws
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	@$(BIN)/python -m nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False docs/notebook.ipynb

clean:
	rm -rf $(VENV) demo-output build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
