# Every target sets up what it needs by itself; a second run starts at once.
# Another interpreter than the first one found: make test PYTHON=python3.12

VENV := .venv
OLDEST := .venv-oldest
PYTHON ?=

SLOWEST := --durations=15 --durations-min=0.5
# One process a core, as the tests compute with one thread each. Neighbors
# stay together, since they share fixtures, until a process runs out of work.
PARALLEL := --numprocesses=auto --maxprocesses=8 --dist=worksteal

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-all test-oldest docs lint clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' \
		$(MAKEFILE_LIST)

setup: ## Only set up .venv (all the others do it by themselves)
	@sh requirements/setup.sh $(VENV) requirements/pinned.txt 3.14 $(PYTHON)

quickstart: setup ## Pretrain, fine-tune, compare, export, in ten to twenty minutes
	$(VENV)/bin/python recipes/SyntheticCommands/quickstart.py

test: setup ## The tests, in less than six minutes on two cores
	$(VENV)/bin/python -m pytest $(PARALLEL) $(SLOWEST) -m "not slow"

test-all: setup ## The tests, and those that take longer
	$(VENV)/bin/python -m pytest $(PARALLEL) $(SLOWEST)

test-oldest: ## The tests on the oldest packages that are declared
	@sh requirements/setup.sh $(OLDEST) requirements/oldest.txt 3.12 \
		$(or $(PYTHON),python3.10 python3.11 python3.12 python3)
	$(OLDEST)/bin/python -m pytest $(PARALLEL) $(SLOWEST) -m "not slow"

docs: setup ## The pages of docs/ and the API reference, in build/html/docs
	$(VENV)/bin/python -m sphinx --quiet -W -c docs . build/html

lint: setup ## Check the style, and say what to change
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean: ## Remove caches and build leftovers (.venv and results stay)
	rm -rf build dist docs/api *.egg-info .pytest_cache .ruff_cache
	find . -name '.venv*' -prune -o -name __pycache__ -type d -prune \
		-exec rm -rf {} +
