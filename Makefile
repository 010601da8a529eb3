# Two commands do everything on a fresh machine: `make demo` runs the main job, `make test` the tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test slow daemons nightly check bench release

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11+ is needed; name one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/python -m harness -m algo=dpo,grpo

test: setup
	$(PYTEST) -m "not slow and not nightly"

# Ray, Slurm and PostgreSQL for the tests of tests/scale, where they can be had.
daemons: setup
	BIN=$(BIN) scripts/install_daemons

slow: setup
	$(PYTEST) -m "slow and not nightly"

nightly: setup
	$(PYTEST) -m nightly

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# The wheel, installed into an environment of its own, runs the demo in an empty folder.
release: setup
	scripts/release_check

bench: setup
	$(BIN)/python bench/sampler.py
	$(BIN)/python bench/start.py
	$(BIN)/python bench/train_phase.py
	$(BIN)/python bench/sweep.py
	$(BIN)/python bench/update_cost.py
	$(BIN)/python bench/shared_reference.py
	$(BIN)/python bench/report_many.py
