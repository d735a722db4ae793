# The same verbs for people and for CI. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo

# Never put the current folder on sys.path: operator/ must not stand in front of the standard library's `operator`.
export PYTHONSAFEPATH := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-ranks check generate bench clean cluster-up cluster-test cluster-down

help:  ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 21

setup: $(STAMP)  ## make .venv with everything that the other verbs need (they call this themselves)

# The demo needs a third of what the tests need; pip adds the rest when a verb asks for it.
$(DEMO_STAMP): EXTRAS := local,runtime,demo
$(STAMP): EXTRAS := dev
$(STAMP) $(DEMO_STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "everstep needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(DEMO_STAMP)  ## the main job: train on three nodes, lose a rank, resume, finish with the same weights
	$(BIN)/python examples/digits/demo.py

test: $(STAMP)  ## the tests, three at a time: many of them wait for processes
	$(BIN)/python -m pytest -q -n 3 --dist worksteal -m "not ranks and not cluster"

test-ranks: $(STAMP)  ## more tests: exactness, strategies, metrics, callbacks and examples on several ranks
	$(BIN)/python -m pytest -q -n 2 --dist loadscope -m ranks

check: $(STAMP)  ## lint, format, types, import contracts, generated files fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m everstep_operator.api.crd --check
	$(BIN)/python tests/render/golden.py --check
	$(BIN)/python deploy/render.py --check
	$(BIN)/python docs/parity.py --check

generate: $(STAMP)  ## write the files that come from the API models, the chart and the tests
	$(BIN)/python -m everstep_operator.api.crd
	$(BIN)/python tests/render/golden.py
	$(BIN)/python deploy/render.py
	$(BIN)/python docs/parity.py

cluster-up: $(STAMP)  ## a Kubernetes for the tests (kind), with the images of this tree in it
	@$(BIN)/python tests/cluster/provision.py up

# A test that breaks nodes can meet a bad moment of a busy machine: what failed is tried once more, alone, in sight.
cluster-test: cluster-up  ## the tests on a real Kubernetes: that of KUBECONFIG, or the one of cluster-up
	@settings=$$($(BIN)/python tests/cluster/provision.py env) && eval "$$settings" && \
		twice() { "$$@" || { echo "once more, what failed:"; "$$@" -n 0 --last-failed --last-failed-no-failures none; }; } && \
		pytest="$(BIN)/python -m pytest -q tests/cluster tests/api --timeout 600 --durations 10" && \
		twice env EVERSTEP_TEST_SCOPE=namespaces $$pytest -m "cluster and not serial" -n 3 --dist loadscope && \
		twice $$pytest -m "cluster and serial"

cluster-down:  ## remove what cluster-up made
	@$(PYTHON) tests/cluster/provision.py down

bench: export PYTHONSAFEPATH :=  # a benchmark imports its neighbours
bench: $(STAMP)  ## measure, with bars: cost per step, scaling, saving, memory, recovery (ratios to a peer in the same run)
	$(BIN)/python benchmarks/step_overhead.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/checkpoint_save.py
	$(BIN)/python benchmarks/footprint.py
	$(BIN)/python benchmarks/recovery.py

clean:  ## remove .venv, caches, build/ and the state of local runs
	rm -rf $(VENV) build dist .everstep .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
