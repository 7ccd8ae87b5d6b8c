# make run    the quick ablation on the embedded zoo
# make test   lint, types, floors, and the whole test suite
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip
.DEFAULT_GOAL := help
.PHONY: help install run sweep web quick test test-slurm coverage lint fix bench bench-gpu docs wheel constraints clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# torch first and by its exact version: any looser wish brings several GB of CUDA packages.
$(VENV)/.installed: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lorabench needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet torch
	$(PIP) install --quiet --editable '.[dev,docs]'
	touch $@

install: $(VENV)/.installed ## make .venv with the exact versions of constraints.txt

run: install ## the quick ablation on the embedded zoo of real adapters; ARGS="num_runs=10" goes to it
	$(BIN)/python -m lorabench experiment=quick $(ARGS)

sweep: install ## 18 jobs on the embedded zoo: three representations, all layers and without the best five, three seeds
	$(BIN)/python -m lorabench --multirun experiment=sweep representation=stats,norms,flat top_k=0,5 seed=0,1,2 $(ARGS)

web: install ## the page on the embedded zoo's adapters, which it makes at first; ARGS="--port 9000" goes to it
	test -d build/adapters || $(BIN)/python -m lorabench zoo export glyphs build/adapters --format peft
	$(BIN)/python -m lorabench web build/adapters --runs outputs multirun --open $(ARGS)

lint: install ## ruff, mypy and the floors of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

TESTS := $(BIN)/python -m pytest --numprocesses auto --dist worksteal

quick: lint ## lint, and all tests but those marked as slow
	$(TESTS) -m "not slow"

# Slow ones are not traced: most start programs, which take up to three times as long so.
test: lint ## lint, then every test and doctest, and how much of the code those reach that are not slow
	@$(TESTS) -m "not slow" --cov --cov-report=; quick=$$?; \
	echo "coverage: $$($(BIN)/python -m coverage report --format=total) % of the lines"; \
	$(TESTS) -m slow && exit $$quick

# 77 is "not here": no root, no apt-get, or nothing to install from. It is told, and is no failure.
test-slurm: install ## a sweep on a SLURM of one node, which it installs (Debian, root), starts and stops
	@bash tests/try_slurm.sh $(BIN)/python || test $$? = 77

coverage: install ## the lines that the quick tests of the last `make test` did not reach
	$(BIN)/python -m coverage report

fix: install ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## speed and memory, as ratios measured side by side
	$(BIN)/python -m tests.bench

# A bare GPU machine needs no install: `python -m tests.bench.bench_gpu --record` from a checkout, with torch,
# pytorch-lightning, torchmetrics, safetensors and numpy. This target takes .venv, whose torch must know the GPU.
bench-gpu: ## phase 1 and compare on one GPU, into docs/benchmarks.md; ARGS="--quick" goes to it
	$(BIN)/python -m tests.bench.bench_gpu --record $(ARGS)

docs: install ## the documentation as a site in build/site, its links checked
	$(BIN)/mkdocs build --quiet

constraints: install ## constraints.txt again, from an empty environment; ARGS=--upgrade for newer versions
	sh tests/make_constraints.sh $(BIN)/python $(ARGS)

wheel: install ## build the wheel and run it from an empty venv in an empty folder
	sh tests/try_wheel.sh $(BIN)/python

clean: ## remove what was made, .venv included
	rm -rf $(VENV) dist build outputs multirun .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.*
