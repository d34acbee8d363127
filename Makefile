# Ordinary venv and pip, wrapped; docs/contributing.md lists the targets.

PYTHON ?= python3
NEWEST ?= python3.13
TESTS ?=
BIN := .venv/bin

.PHONY: ablation methods concrete native sanitize bench docs site-check notebooks test test-slow test-newest \
	oracles lint format clean help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

ablation: .venv/.ready .venv/.native ## train the dropout plane on Japanese Vowels and write a report
	$(BIN)/python -m experiments ablate configs/vowels_plane.toml

methods: .venv/.ready ## compare all methods of dropout on Japanese Vowels
	$(BIN)/python -m experiments ablate configs/vowels_methods.toml

concrete: .venv/.ready ## learn the rates by gradient descent, and draw them on the plane
	$(BIN)/python -m experiments ablate configs/vowels_plane.toml
	$(BIN)/python -m experiments ablate configs/vowels_concrete.toml
	$(BIN)/python -m experiments report runs/vowels_plane runs/vowels_concrete

native: .venv/.ready ## compile and install the loop for CPU, which needs a C++ compiler
	$(BIN)/python -m pip install --quiet 'scikit-build-core>=0.11' cmake ninja
	$(BIN)/python -m pip install --quiet --no-build-isolation ./native

sanitize: .venv/.ready ## test the compiled loop with the sanitizers of the compiler
	$(BIN)/python -m pip install --quiet cmake ninja
	$(BIN)/cmake -S native -B .venv/sanitize -G Ninja -DRDROP_SANITIZE=ON \
		-DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	$(BIN)/cmake --build .venv/sanitize
	ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
		PYTHONPATH=native RDROP_CPU_LIBRARY=.venv/sanitize/librdrop_cpu.so \
		$(BIN)/python -m pytest tests/loops/test_native.py

bench: .venv/.ready-bench .venv/.native ## time rdrop's loops beside Keras, PyTorch and flax
	$(BIN)/python -m benchmarks

docs: .venv/.ready-docs ## build the documentation in site/, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

site-check: .venv/.ready-docs .venv/.ready-browser ## build the site, and check it in Chromium
	$(BIN)/python docs/check_site.py

notebooks: .venv/.ready-notebooks ## run the notebooks, and write them as .ipynb files
	$(BIN)/jupytext --to ipynb --execute notebooks/*.py

test: .venv/.ready ## run the quick tests; TESTS=path for some of them
	$(BIN)/python -m pytest -n auto --dist loadfile $(TESTS)

test-slow: .venv/.ready ## run the tests that take minutes
	$(BIN)/python -m pytest -n auto --dist worksteal -m slow $(TESTS)

test-newest: .venv-newest/.ready ## run them on the newest Python and jax, optimised
	XLA_FLAGS= .venv-newest/bin/python -m pytest -n auto --dist loadfile $(TESTS)

oracles: .venv/.ready-oracles ## install Keras and PyTorch, to compare with

lint: .venv/.ready-dev ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/.ready-dev ## format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environments, the caches and the site, not the runs
	rm -rf .venv .venv-newest .pytest_cache .mypy_cache .ruff_cache *.egg-info site

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.ready: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[experiments,test]'
	@touch $@

.venv/.native: .venv/.ready $(wildcard native/*.* native/*/*)
	@$(MAKE) --no-print-directory native >.venv/native.log 2>&1 || echo \
		"Without the compiled loop, which could not be built (.venv/native.log says why)."
	@touch $@

.venv-newest/.ready: pyproject.toml
	$(NEWEST) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --editable '.[experiments,test]'
	@touch $@

.venv/.ready-oracles: .venv/.ready
	$(BIN)/python -m pip install --quiet --editable '.[oracles]'
	@touch $@

.venv/.ready-bench: .venv/.ready
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@touch $@

.venv/.ready-notebooks: .venv/.ready
	$(BIN)/python -m pip install --quiet --editable '.[notebooks]'
	@touch $@

.venv/.ready-docs: .venv/.ready
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

.venv/.ready-browser: .venv/.ready
	$(BIN)/python -m pip install --quiet --editable '.[browser]'
	@touch $@

.venv/.ready-dev: .venv/.ready
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
