# Everything runs from .venv, which `make install` builds; nothing needs root. `make help` lists the targets.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
PINS := pyproject.toml constraints.txt

# What make runs starts Python hundreds of times; without bytecode, each start compiles the whole product anew.
unexport PYTHONDONTWRITEBYTECODE

PYTEST_ARGS ?= -n auto --dist loadgroup
BENCH_ARGS ?=
CHAOS_ARGS ?=

# The build backend is pinned as well: older pips read the first variable for it, newer ones the second.
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	$(BIN)/python -m pip install -qq

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*##[+]? " } \
		/^[a-z-]+:.*## / { main = main sprintf("  make %-12s %s\n", $$1, $$2) } \
		/^[a-z-]+:.*##[+] / { more = more sprintf("  make %-12s %s\n", $$1, $$2) } \
		END { printf "%s\nFor work on it:\n%s", main, more }' $(firstword $(MAKEFILE_LIST))

# --- the environment ---------------------------------------------------------------------------------------------------

.PHONY: install
install: $(RUNTIME) ## build .venv with fleet-server, fleet-node and fleetctl (PYTHON=… picks the interpreter)
	@echo "Installed in $(BIN): fleet-server, fleet-node, fleetctl. Next: \`make demo\`, or docs/tutorial.md"

.PHONY: demo
demo: $(RUNTIME) ## the whole product on this machine, step by step (DEMO_ONCE=1 ends by itself)
	@exec $(BIN)/python deploy/demo/demo.py

.PHONY: demo-ha
demo-ha: $(DEV) ## a rolling upgrade under load: two replicas, PostgreSQL, HAProxy (DEMO_ONCE=1 ends by itself)
	@exec $(BIN)/python deploy/demo_ha/demo.py

.PHONY: dev
dev: $(DEV)

$(RUNTIME): $(PINS)
	@set -eu; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		found=; bare=; \
		for python in $${PYTHON:-python3.13 python3.12 python3.11 python3}; do \
			"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
			if "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then found=$$python; break; fi; \
			bare=$${bare:-$$python}; \
		done; \
		if [ -z "$$found" ] && [ -n "$$bare" ]; then \
			version=$$("$$bare" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
			echo "$$bare cannot make a virtual environment: it lacks ensurepip." >&2; \
			echo "On Debian and Ubuntu: apt-get install python$$version-venv. Then run make again." >&2; \
			exit 1; \
		elif [ -z "$$found" ]; then \
			echo "No Python 3.11 or newer found (tried: $${PYTHON:-python3.13 python3.12 python3.11 python3})." >&2; \
			echo "Install one (Debian and Ubuntu: apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python" >&2; \
			exit 1; \
		fi; \
		echo "$(VENV): $$("$$found" --version)"; \
		"$$found" -m venv --clear $(VENV); \
	fi
	@echo "$(VENV): installing what the product needs, pinned by constraints.txt (about a minute)"
	@$(PIP) -e .
	@touch $@

$(DEV): $(RUNTIME) $(PINS)
	@echo "$(VENV): installing what development needs"
	@$(PIP) -e '.[dev]'
	@touch $@

.PHONY: pins
pins: ##+ resolve anew and rewrite constraints.txt (PYTHON=… picks the interpreter, default python3.11)
	@set -eu; \
	folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$${PYTHON:-python3.11} -m venv "$$folder/venv"; \
	"$$folder/venv/bin/python" -m pip uninstall -qq --yes setuptools; \
	"$$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check hatchling editables setuptools -e '.[dev]'; \
	{ \
		echo '# Every package of a full install, direct or not, and of its build. Written by `make pins`.'; \
		"$$folder/venv/bin/python" -m pip freeze --all --exclude-editable --exclude pip | LC_ALL=C sort -fu; \
	} > constraints.txt.new; \
	mv constraints.txt.new constraints.txt; \
	grep -c == constraints.txt | sed 's/$$/ packages pinned in constraints.txt/'

# --- checks: each stands alone, `check` is all of them -------------------------------------------------------------------

CHECKS := lint types imports proto-check docs-check deploy-check

.PHONY: check $(CHECKS)
check: $(CHECKS) ## all checks: lint, types, imports, proto-check, docs-check, deploy-check
	@echo "check: ok"

lint: $(DEV) ##+ ruff: rules and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

types: $(DEV) ##+ mypy, strict, over the three packages
	@$(BIN)/mypy

imports: $(DEV) ##+ who may import whom
	@$(BIN)/lint-imports --no-cache --no-logo > $(VENV)/.imports.log 2>&1 || { cat $(VENV)/.imports.log; exit 1; }
	@grep '^Contracts:' $(VENV)/.imports.log

proto-check: $(DEV) ##+ compare shared/fleet/v1 with proto/, and hold proto/ to its rules
	@$(BIN)/python tests/architecture/check_proto.py

docs-check: $(DEV) ##+ the generated pages: metrics, fleetctl, settings
	@$(BIN)/python tests/architecture/check_metrics_docs.py
	@$(BIN)/python -m fleet_server.cli.reference --check
	@$(BIN)/python -m fleet_node.cli.reference --check
	@$(BIN)/fleet-server config --reference | diff -u docs/server-settings.md - || { echo "stale: run \`make docs\`" >&2; exit 1; }

deploy-check: $(DEV) ##+ deploy/ against schemas, linters, HAProxy, the settings and the metrics that there are
	@$(BIN)/python tests/architecture/check_deploy.py
	@$(BIN)/python tests/architecture/check_monitoring.py

# --- work --------------------------------------------------------------------------------------------------------------

.PHONY: proto
proto: $(DEV) ##+ regenerate shared/fleet/v1 from proto/
	@$(BIN)/python tests/architecture/check_proto.py --write

.PHONY: docs
docs: $(DEV) ##+ regenerate the pages that docs-check compares
	@$(BIN)/python tests/architecture/check_metrics_docs.py --write
	@$(BIN)/python -m fleet_server.cli.reference
	@$(BIN)/python -m fleet_node.cli.reference
	@$(BIN)/fleet-server config --reference > docs/server-settings.md

.PHONY: fmt
fmt: $(DEV) ##+ sort imports, apply safe fixes, format
	@$(BIN)/ruff check --fix --exit-zero --quiet
	@$(BIN)/ruff format

.PHONY: test
test: $(DEV) ## run every test (PYTEST_ARGS='-n auto --dist loadgroup')
	@$(BIN)/pytest $(PYTEST_ARGS)

.PHONY: chaos
chaos: $(DEV) ## break a whole installation at random for minutes, then check it (CHAOS_ARGS='--seed 1 --seconds 300')
	@$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

.PHONY: bench
bench: $(DEV) ## measure against a bare grpc.aio echo in the same run (BENCH_ARGS=…)
	@$(BIN)/python -m tests.load $(BENCH_ARGS)

.PHONY: routes-sim
routes-sim: $(DEV) ##+ the rules of routes and simpler policies on a simulated mesh; writes its part of docs/routes.md
	@$(BIN)/python -m tests.simulation

.PHONY: clean
clean: ## remove .venv, .demo, .demo-ha, caches and build output
	@rm -rf $(VENV) .demo .demo-ha .chaos .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
