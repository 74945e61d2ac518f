# `make demo` and `make test` do all the set-up; the rest builds on the same environment.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo lab test nightly bench lint eval-demo clean

demo: $(INSTALLED)
	$(BIN)/python notebooks/execute.py notebooks/01_quickstart.ipynb

lab: $(INSTALLED)
	$(BIN)/jupyter lab notebooks/01_quickstart.ipynb

# A process for each core, and one thread in each: small tensors gain nothing from more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test: $(INSTALLED)
	$(PYTEST)

# Everything that takes too long for every change: all random device maps.
nightly: $(INSTALLED)
	$(PYTEST) -m nightly

bench: $(INSTALLED)
	$(BIN)/python benchmarks/load_ext.py
	$(BIN)/python benchmarks/tokens_per_second.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

eval-demo: $(INSTALLED)
	$(BIN)/python -m training.evaluate

# Installed once, and again whenever what is to be installed has changed.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist
