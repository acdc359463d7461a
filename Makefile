# Everything that people do with Shell Service, one verb each. `make VERB CONFIG=path/to/config.yaml` for another
# configuration than config.yaml; `make test ARGS="..."` passes arguments on.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help run stop status log monitor test test_soak test_cgroup lint format doc db_init db_migrate db_clear db_shell \
	load_demo_data rotate_secrets_key audit_verify retention bench clean tls_self_signed system lock

CONFIG ?=
ARGS ?=
# Where boot/vmlinuz-* and lib/modules are, for test_cgroup.
KERNEL ?= /
# The first Python that is new enough; only looked for when the environment has to be made.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && exit; done; echo python3)

VENV := .venv
IN_VENV := $(VENV)/bin/python
MANAGE = $(IN_VENV) -m services.manage $(if $(CONFIG),--config "$(CONFIG)")

# An environment whose Python has gone, as after an upgrade of the system, is none.
$(shell $(IN_VENV) -c '' 2>/dev/null || rm -f $(VENV)/installed-*)

# An environment is as good as its stamp: the stamp's name holds the hash of the lock that was installed, whole.
stamp = $(VENV)/installed-$(1)-$(shell cksum < $(2) | cut -d ' ' -f 1)
RUNTIME := $(call stamp,runtime,requirements.lock)
DEV := $(call stamp,dev,requirements-dev.lock)
BENCH := $(call stamp,bench,requirements-bench.lock)

# $(1): what, $(2): its lock. Removes the old stamp first, so that an installation that was cut short has none.
define install
	@echo "[check] installing the $(1) packages of $(2)"
	@rm -f $(VENV)/installed-$(1)-*
	@umask 022; $(IN_VENV) -m pip install -qq --disable-pip-version-check --no-input --no-deps --require-hashes --requirement $(2)
	@touch $@
endef

help: ## show this help
	@echo "make VERB [CONFIG=path/to/config.yaml]"
	@awk -F ':.*## ' '/^[a-z_]+:.*## / { printf "  %-19s %s\n", $$1, $$2 }' Makefile

run: system $(RUNTIME) ## run everything in the foreground; Ctrl-C stops it
	@$(MANAGE) run

stop: $(RUNTIME) ## stop the running service
	@$(MANAGE) stop

status: $(RUNTIME) ## show what runs, and how it is
	@$(MANAGE) status

log: $(RUNTIME) ## follow the logs of all services
	@$(MANAGE) log

monitor: $(RUNTIME) ## supervisor's own prompt
	@$(MANAGE) monitor

test: system $(RUNTIME) $(DEV) ## run the tests (ARGS="tests/... -k ...")
	@$(IN_VENV) -m pytest -m "not soak" $(ARGS)

test_soak: system $(RUNTIME) $(DEV) ## run the tests that take long
	@$(IN_VENV) -m pytest -m soak $(ARGS)

test_cgroup: system $(RUNTIME) $(DEV) ## run the tests of control groups in a small machine (KERNEL=folder)
	@$(IN_VENV) -m tests.machine --kernel "$(KERNEL)" -- /usr/bin/env SLOWNESS=10 "$(CURDIR)/$(IN_VENV)" -m pytest \
		tests/machine/checks.py -v -p no:cacheprovider --timeout 1000 $(ARGS)

lint: $(RUNTIME) $(DEV) ## check style, types and scripts
	@$(IN_VENV) -m ruff check .
	@$(IN_VENV) -m ruff format --check .
	@$(IN_VENV) -m mypy
	@if command -v shellcheck >/dev/null; then shellcheck .ci/run baselayer/tools/*.sh; \
	else echo "[check] shellcheck is not installed: scripts are not checked"; fi

format: $(RUNTIME) $(DEV) ## put the code into shape
	@$(IN_VENV) -m ruff check --fix .
	@$(IN_VENV) -m ruff format .

doc: $(RUNTIME) ## build the documentation site
	@$(MANAGE) doc

db_init: $(RUNTIME) ## create the database
	@$(MANAGE) db_init $(ARGS)

db_migrate: $(RUNTIME) ## bring the database to the newest schema
	@$(MANAGE) db_migrate

db_clear: $(RUNTIME) ## delete all jobs, users and tokens (asks first)
	@$(MANAGE) db_clear $(ARGS)

db_shell: $(RUNTIME) ## open psql on the database (ARGS=--owner to restore a backup)
	@$(MANAGE) db_shell $(ARGS)

load_demo_data: $(RUNTIME) ## add demo users, their tokens to .tokens.yaml
	@$(MANAGE) load_demo_data

rotate_secrets_key: $(RUNTIME) ## seal all secrets with a new key, while the service is stopped
	@$(MANAGE) rotate_secrets_key

retention: $(RUNTIME) ## show which old jobs would be removed
	@$(MANAGE) retention

audit_verify: $(RUNTIME) ## prove that nobody has changed the audit log (ARGS="--head DIGEST")
	@$(MANAGE) audit_verify $(ARGS)

bench: $(RUNTIME) $(DEV) ## measure the service beside its yardsticks
	@baselayer/tools/check_system.sh $(PYTHON) bench
	@$(MAKE) --no-print-directory $(BENCH) || echo "[check] the other queues cannot be installed: they are left out"
	@$(IN_VENV) -m benchmarks $(if $(CONFIG),--config "$(CONFIG)") $(ARGS)

tls_self_signed: $(RUNTIME) ## write a certificate and key for tests
	@$(MANAGE) tls_self_signed

clean: ## remove what was built here; never data
	@if grep -qsF "$(CURDIR)/$(VENV)/" /proc/[0-9]*/maps; then echo "something runs from $(VENV): make stop first" >&2; exit 1; fi
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis .schemathesis docs/_build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

system:
	@baselayer/tools/check_system.sh $(PYTHON)

# An environment without any stamp was never finished: begin again.
$(RUNTIME):
	@if ! ls $(VENV)/installed-runtime-* >/dev/null 2>&1; then \
		echo "[check] making $(VENV) with $(PYTHON)"; umask 022; $(PYTHON) -m venv --clear $(VENV); fi
	$(call install,runtime,requirements.lock)

$(DEV): $(RUNTIME)
	$(call install,dev,requirements-dev.lock)

$(BENCH): $(RUNTIME)
	$(call install,bench,requirements-bench.lock)

# For whoever changes a dependency in pyproject.toml.
COMPILE = $(IN_VENV) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-annotate
lock: $(RUNTIME)
	@$(IN_VENV) -m pip install --quiet uv
	@$(COMPILE) pyproject.toml -o requirements.lock
	@$(COMPILE) --group dev -c requirements.lock -o requirements-dev.lock
	@$(COMPILE) --group bench-peers -c requirements.lock -c requirements-dev.lock -o requirements-bench.lock
