# `make` prints the targets. The environment in .venv is built on first use, and brought up to date when
# pyproject.toml or constraints.txt change. Choose the interpreter with `make PYTHON=...`.

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
BIN := .venv/bin
READY := .venv/ready
LOWEST := .venv-lowest
NEWEST := .venv-newest
PEERS := .venv/peers
RELEASE := .venv-release

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-cuda test-lowest test-newest faults fuzz wheels peers contracts check types structure docs drawings notebooks release-check clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## tune the bundled model and show what it gains
	@$(BIN)/time-tuner demo

test: check ## check, then run the tests on every core (the slow ones: .venv/bin/pytest -m slow)
	@$(BIN)/pytest -q -n auto --dist worksteal --ignore tests/test_structure.py

test-cuda: $(READY) ## run the tests that need a GPU; skipped with the reason where torch finds none
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
		{ $(BIN)/python -c 'import torch; print(f"skipped: torch {torch.__version__} finds no CUDA device here")'; exit 0; } && \
		$(BIN)/pytest -q -m cuda tests

test-lowest: ## run the tests with the lowest versions of torch and diffusers that are supported; gigabytes
	@lowest() { sed -n "s/.*\"$$1>=\([0-9.]*\)\".*/\1/p" pyproject.toml; }; \
	$(PYTHON) -m venv $(LOWEST) && \
	sed "s/^torch==.*/torch==$$(lowest torch).0/; s/^diffusers==.*/diffusers==$$(lowest diffusers).0/; \
		/^\(httpx2\|huggingface_hub\|transformers\)==/d" constraints.txt >$(LOWEST)/constraints.txt && \
	$(LOWEST)/bin/python -m pip install -qq -c $(LOWEST)/constraints.txt -e '.[dev]'
	@$(LOWEST)/bin/pytest -q -n auto --dist worksteal

test-newest: ## run the tests with the newest versions of everything; gigabytes
	@$(PYTHON) -m venv $(NEWEST) && $(NEWEST)/bin/python -m pip install -qq -e '.[dev]'
	@$(NEWEST)/bin/pytest -q -n auto --dist worksteal

faults: $(READY) ## kill every kind of work KILLS times (10), start it again, and compare the results
	@OMP_NUM_THREADS=1 $(BIN)/python tests/support/kills.py $(or $(KILLS),10)

fuzz: $(READY) ## mutate FILES (100000) plan files, and files of every other kind
	@OMP_NUM_THREADS=1 TIME_TUNER_FUZZ=$(or $(FILES),100000) $(BIN)/pytest -q -s tests/test_fuzz.py

wheels: $(READY) ## build the wheel twice, and fail unless both have the same bytes
	@rm -rf dist/first dist/second
	@for build in first second; do SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) \
		$(BIN)/python -m pip wheel -qq --no-deps --wheel-dir dist/$$build . || exit 1; done
	@cmp dist/first/*.whl dist/second/*.whl && sha256sum dist/first/*.whl

peers: $(READY) ## run diffusers' own tests of schedulers against ours: make peers DIFFUSERS=/path/to/their/checkout
	@test -d "$(DIFFUSERS)/tests/schedulers" || { echo 'error: give DIFFUSERS=, a checkout of diffusers' >&2; exit 1; }
	@$(BIN)/python benchmarks/peers.py $(DIFFUSERS)

contracts: $(READY) ## compare the exports with the packages of other programs, which are downloaded without dependencies
	@$(BIN)/python -m pip install -qq --no-deps --upgrade --target $(PEERS) \
		cache-dit==1.5.3 k-diffusion==0.1.1.post1 sglang==0.5.23 vllm-omni==0.30.0
	@TIME_TUNER_PEERS=$(PEERS) $(BIN)/pytest -q tests/test_exports.py tests/integrations

check: $(READY) ## lint, formatting, types, the layers of imports and the structure of the code
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/lint-imports --no-cache >.venv/layers.log || { cat .venv/layers.log; exit 1; }
	@$(MAKE) --no-print-directory -j2 types structure

types structure: $(READY) # at once: they take the longest
types:
	@$(BIN)/mypy --no-error-summary
structure:
	@$(BIN)/pytest -q --no-header tests/test_structure.py >.venv/structure.log || { cat .venv/structure.log; exit 1; }

docs: $(READY) ## build the site of the documentation into site/; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'The site is in site/. To search in it: $(BIN)/python -m http.server -d site'

drawings: $(READY) ## make the pictures and tables of the documentation anew that are made by code
	@$(BIN)/python docs/drawings
	@$(BIN)/python docs/hooks/tables.py

notebooks: $(READY) ## execute the notebooks, docs/notebooks/*.py to *.ipynb with outputs; some minutes
	@$(BIN)/python docs/hooks/notebooks.py

release-check: ## build the wheel and the sdist, install them into an empty environment, and try what is installed
	@rm -rf dist $(RELEASE) && for name in build empty; do $(PYTHON) -m venv $(RELEASE)/$$name; done
	@$(RELEASE)/build/bin/python -m pip install -qq build && $(RELEASE)/build/bin/python -m build --outdir dist >$(RELEASE)/build.log 2>&1
	@$(RELEASE)/empty/bin/python -m pip install -qq -c constraints.txt dist/*.whl
	@cd $(RELEASE) && empty/bin/python -W error $(CURDIR)/tests/smoke.py
	@$(RELEASE)/empty/bin/python -m pip install -qq -c constraints.txt "$$(ls dist/*.whl)[all]"
	@cd $(RELEASE) && empty/bin/python -W error $(CURDIR)/tests/smoke.py
	@$(RELEASE)/empty/bin/python -m pip install -qq --no-deps --force-reinstall dist/*.tar.gz
	@cd $(RELEASE) && empty/bin/python -W error $(CURDIR)/tests/smoke.py && empty/bin/python -m pip check
	@echo "dist/ holds a release: $$(ls dist | tr '\n' ' ')"

clean: ## remove the environment, caches, builds and the demo's output
	@rm -rf .venv $(LOWEST) $(NEWEST) $(RELEASE) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site time-tuner-demo
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
