# Every command that README and CONTRIBUTING name. `make demo` and `make test` set up what they miss.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test test-slow test-cluster lint types bench clean help

help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 14

.venv/demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo]'
	$(BIN)/xinv doctor --prepare
	touch $@

.venv/dev: .venv/demo
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,dev]'
	touch $@

demo: .venv/demo ## audit real digits end to end; writes runs/demo/report.html
	$(BIN)/xinv audit configs/demo.yaml

lint: .venv/dev  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev ## mypy
	$(BIN)/mypy

test: lint types ## lint, types and the default tests
	$(BIN)/python -m pytest -m 'not slow and not cluster'

test-slow: .venv/dev ## the suites that take minutes: whole audits, kills, resumes
	$(BIN)/python -m pytest -m 'slow and not cluster'

test-cluster: .venv/dev ## jobs on a real Slurm of two nodes, in network namespaces; needs root, installs slurm-wlm and munge
	@test "$$(id -u)" = 0 || { echo 'make test-cluster needs root: it makes network namespaces and starts slurmd' >&2; exit 1; }
	$(BIN)/python -m pytest -m cluster tests/cluster

bench: .venv/dev ## the figures of tests/bench; writes tests/bench/RESULTS.md
	$(BIN)/python tests/bench/all.py
	$(BIN)/python tests/bench/demo_cost.py
	$(BIN)/python tests/bench/explanations.py
	$(BIN)/python tests/bench/search.py

clean:           ## removes the environment and caches, never a run
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build *.egg-info
