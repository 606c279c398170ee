# Needed: Python 3.11 or newer with venv, and make. Everything else goes into .venv.
PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; \
	done)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo test torture lint rehearse audit bench bench-live bench-warehouse clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1: \2/p' Makefile

demo: $(READY) ## Build the platform on a real retailer's year, then serve the Dagster UI
	@$(BIN)/python -m platform_defs.demo

test: $(READY) ## Lint, then run all tests, two files at a time
	@$(BIN)/python -m services.debian || true
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m pytest -n 2 --dist loadfile

torture: $(READY) ## Kill the live process 100 times on each profile store, then compare everything; an hour
	@$(BIN)/python -m tests.torture

lint: $(READY) ## Style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@! command -v cargo-fmt >/dev/null || cargo fmt --manifest-path native/Cargo.toml --check

rehearse: $(READY) ## Start an installation as deploy/ describes it, back it up, lose it, restore it
	@$(BIN)/python -m pytest tests/engines/test_deployment.py

audit: $(READY) ## Look for known vulnerabilities of the dependencies, and for secrets in the files
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1 detect-secrets==1.5.0
	@$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip
	@git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --baseline .secrets.baseline

bench: $(READY) ## Measure the batch path; prints a table and writes JSON
	@$(BIN)/python -m benchmarks.batch

bench-live: $(READY) ## Measure the live path beside other stream processors; prints tables and writes JSON
	@$(BIN)/python -m benchmarks.live

bench-warehouse: $(READY) ## Measure loads, merges and sessions in the warehouse; ENGINE=duckdb, snowflake or bigquery
	@$(BIN)/python -m benchmarks.warehouse --engine $(or $(ENGINE),duckdb)

clean: ## Remove the environment and all caches; data/ stays
	rm -rf .venv *.egg-info build .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

test lint: export DAGSTER_DISABLE_TELEMETRY = 1

$(READY): pyproject.toml constraints.txt native/Cargo.toml $(wildcard native/src/*.rs)
	@test -n "$(PYTHON)" || { \
		echo "Python 3.11 or newer is needed and was not found: install it, or say make PYTHON=/path/to/python" >&2; \
		exit 1; }
	@echo "Building .venv with $(PYTHON): about 190 packages, a few minutes"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@if command -v cargo >/dev/null; then \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check ./native; \
	else \
		echo "No Rust toolchain (cargo): live events are decoded and folded by Python alone, at half the speed"; \
	fi
	@touch $@
