# Two commands do everything on a machine with Python >= 3.11 and make: `make demo` and `make test`.
# Set-up happens once, in .venv, with the versions pinned in constraints.txt.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SOURCES := $(wildcard cli.py) simulator workloads reports hardware_profiles
# Each file of tests is run by one process, so that what its tests share is computed once.
# Processes of the tests, one more than the cores of a small machine: some tests wait for browsers and commands.
JOBS   ?= 3
FUZZ   ?= 1000

export PIP_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup setup-all demo test test-all test-quick unit fuzz wheel-test bench lint format calibrate docs figures clean

help:
	@echo 'make demo       simulate one training step of DeepSeek-V3 on 2048 H800 and show the report'
	@echo 'make test       style, types, layers and tests'
	@echo 'make test-quick the same without the long tests'
	@echo 'make test-all   the same with the slow ones: every setting, every command of the documentation'
	@echo 'make setup-all  what optional tests need as well: Dask, Parquet, PyTorch, a browser'
	@echo 'make fuzz       so many wrong files of every kind as FUZZ says (1000), fresh ones each time'
	@echo 'make wheel-test the wheel, installed apart, under every Python that is here'
	@echo 'make lint       style, types, layers and dead names only'
	@echo 'make format     put the code into its one format'
	@echo 'make bench      speed and memory of the engines'
	@echo 'make calibrate  fit kernel and network parameters to the measured tables again'
	@echo 'make figures    draw the figures of the documentation'
	@echo 'make docs       build the documentation'
	@echo 'make clean      remove the environment and all caches'

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "foretrain needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@echo 'setting up $(VENV) (once) ...' >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo 'Python came without its venv module; on Debian: apt install python3-venv' >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet uv || echo 'no uv for this machine: pip installs, which takes minutes' >&2
	@.ci/install $(VENV) dev
	@touch $@

# What all tests need: documentation, Dask, Parquet, PyTorch, a browser. CI runs with it.
# PyTorch is left to pip, which takes the build that a machine's own configuration names.
setup-all: $(READY)
	@.ci/install $(VENV) dev,docs,dask,parquet,browser
	@$(BIN)/python -m pip install --quiet --no-compile --editable '.[torch]'
	@.ci/browser

demo: $(READY)
	@$(BIN)/foretrain simulate deepseek-v3-pretrain

test: lint unit

unit: $(READY)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -rs --durations=20 -m 'not slow'

test-all: lint
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -rs --durations=20

test-quick: lint
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m 'not long and not slow'

fuzz: $(READY)
	@FUZZ=$(FUZZ) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder tests/fuzz

wheel-test: $(READY)
	@.ci/wheel-test $(BIN)/python $$(.ci/pythons)

lint: $(READY)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo 'run "make format"' >&2; exit 1; }
	@$(BIN)/mypy $(SOURCES)
	@$(BIN)/lint-imports > $(VENV)/lint-imports.log 2>&1 || { cat $(VENV)/lint-imports.log; exit 1; }
	@$(BIN)/vulture

format: $(READY)
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

bench: $(READY)
	@$(BIN)/python -m pytest tests/benchmarks -o python_files='bench_*.py' -o addopts='' -q --benchmark-columns=min,median,rounds

calibrate: $(READY)
	@for fit in hardware_profiles/calibration/fit_*.py; do \
	    $(BIN)/python -m hardware_profiles.calibration.$$(basename $$fit .py) || exit 1; done

figures: $(READY)
	@$(BIN)/python -m reports.gallery

docs: $(READY)
	@.ci/install $(VENV) dev,docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
