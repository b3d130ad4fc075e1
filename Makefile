# `make demo` and `make test` do their whole set-up in .venv; they need Python >= 3.10 and make, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?= -n auto --dist worksteal

# The demo needs less than development does, so it is content with either installation.
DEV := $(VENV)/.installed
DEMO := $(if $(wildcard $(DEV)),$(DEV),$(VENV)/.demo-installed)

.DEFAULT_GOAL := help
.PHONY: help demo test lint rooms docs pictures build clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DEMO)  ## Train on scikit-learn's diabetes data plainly and with VAMO, and print both (under two minutes)
	OMP_NUM_THREADS=1 $(BIN)/python examples/demo.py # one thread: the model is tiny

test: $(DEV)  ## Run the test suite and the doctests on all cores; PYTEST_ARGS replaces the options
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(DEV)  ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict lightning_vamo

rooms: $(DEV)  ## Print which room of the package imports which, and the largest files and functions
	$(BIN)/python -m tests.support.rooms

docs: $(DEV)  ## Build the documentation, warnings being errors; `make test` runs its snippets
	rm -rf docs/reference/generated # pages of names that are gone would stay
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

pictures: $(DEV)  ## Draw the pictures of the documentation that need no downloads
	OMP_NUM_THREADS=1 $(BIN)/lightning-vamo fit --config examples/digits.yaml --trainer.default_root_dir docs/_build/digits
	PYTHONPATH=. $(BIN)/python docs/pictures.py "$$(ls -td docs/_build/digits/lightning_logs/version_* | head -1)"

build: $(DEV)  ## Build the wheel into dist/
	$(BIN)/python -m build --wheel

clean:  ## Remove the environment and everything that was built
	rm -rf $(VENV) build dist docs/_build docs/reference/generated .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: EXTRA := dev
$(VENV)/.demo-installed: EXTRA := examples
$(VENV)/.installed $(VENV)/.demo-installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[$(EXTRA)]'
	@touch $@
