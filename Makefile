# `make` prints the targets. The environment in .venv is built on first use, and brought up to date when
# pyproject.toml or constraints.txt change. Choose the interpreter with `make PYTHON=...`.

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
BIN := .venv/bin
READY := .venv/ready
LOWEST := .venv-lowest
PEERS := .venv/peers

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-lowest peers contracts check clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## tune the bundled model and show what it gains
	@$(BIN)/time-tuner demo

test: check ## check, then run the tests on every core (the slow ones: .venv/bin/pytest -m slow)
	@$(BIN)/pytest -q -n auto --dist worksteal

test-lowest: ## run the tests that concern diffusers with the lowest version that is supported
	@lowest=$$(sed -n 's/.*"diffusers>=\([0-9.]*\)".*/\1/p' pyproject.toml); \
	$(PYTHON) -m venv $(LOWEST) && \
	sed "s/^diffusers==.*/diffusers==$$lowest.0/; /^\(httpx2\|huggingface_hub\|transformers\)==/d" constraints.txt >$(LOWEST)/constraints.txt && \
	$(LOWEST)/bin/python -m pip install -qq -c $(LOWEST)/constraints.txt -e '.[dev]'
	@$(LOWEST)/bin/pytest -q -n auto --dist worksteal tests -k 'diffusers or pipeline or parity'

peers: $(READY) ## run diffusers' own tests of schedulers against ours: make peers DIFFUSERS=/path/to/their/checkout
	@test -d "$(DIFFUSERS)/tests/schedulers" || { echo 'error: give DIFFUSERS=, a checkout of diffusers' >&2; exit 1; }
	@$(BIN)/python benchmarks/peers.py $(DIFFUSERS)

contracts: $(READY) ## compare the exports with the packages of other programs, which are downloaded without dependencies
	@$(BIN)/python -m pip install -qq --no-deps --upgrade --target $(PEERS) \
		cache-dit==1.5.3 k-diffusion==0.1.1.post1 sglang==0.5.23 vllm-omni==0.30.0
	@TIME_TUNER_PEERS=$(PEERS) $(BIN)/pytest -q tests/test_exports.py tests/integrations

.PHONY: notebooks
notebooks: $(READY) ## execute the notebooks, docs/notebooks/*.py to *.ipynb with outputs; some minutes
	@$(BIN)/python docs/hooks/notebooks.py

check: $(READY) ## lint, formatting, types, the layers of imports and the structure of the code
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache >.venv/layers.log || { cat .venv/layers.log; exit 1; }
	@$(BIN)/pytest -q --no-header tests/test_structure.py >.venv/structure.log || { cat .venv/structure.log; exit 1; }

clean: ## remove the environment, caches, builds and the demo's output
	@rm -rf .venv $(LOWEST) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist time-tuner-demo
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@version=$$($(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null) || \
		{ echo 'error: "$(PYTHON)" does not run; name a Python 3.11 or newer: make PYTHON=/path/to/python' >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: time-tuner needs Python 3.11 or newer, got $$version from \"$(PYTHON)\";" \
			"name another one: make PYTHON=/path/to/python" >&2; exit 1; }; \
	echo "Installing into .venv with Python $$version; the first time takes a few minutes."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev]'
	@touch $@
