PYTHON ?= python3
RUN := .venv/bin/
# Tests start hundreds of processes: each would compile all of our modules anew, and pytest all of its tests.
unexport PYTHONDONTWRITEBYTECODE
# Tests wait more than they compute: more workers than cores. Tests of one file share servers, and a worker. The order of
# the files is that of tests/conftest.py: the longest are begun first.
WORKERS ?= 3
PYTEST := $(RUN)python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help bootstrap demo demo-mysql demo-load dev test test-all check lock bench soak clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "  make %-10s %s\n", $$1, $$2 }'

bootstrap:  ## Make .venv and install the locked packages (all the others do this first)
	@$(PYTHON) scripts/bootstrap.py

demo: bootstrap  ## Export, archive and clean up real tables in an embedded database
	@$(RUN)export-pipelines demo

demo-mysql: bootstrap  ## Export and archive the four dumps of a health service from a MariaDB (which it installs)
	scripts/debian-packages.sh mariadb
	@$(RUN)export-pipelines demo --mysql

demo-load: bootstrap  ## Load monthly files, a sheet and a paged API into an embedded database
	@$(RUN)export-pipelines demo --load

dev: bootstrap  ## Run database, web UI, daemon and code server until Ctrl-C
	@$(RUN)export-pipelines up

test: bootstrap  ## Run every test that needs only pip-installable parts
	$(PYTEST) -m "not debian and not slow"

test-all: test  ## Run the long tests too, and those that need Debian packages (which it installs)
	scripts/debian-packages.sh
	$(PYTEST) -m "debian or slow"

soak: bootstrap  ## Let N random faults strike (5000), in SOAK_WORKERS processes; SEED=… does it again
	$(RUN)python -m tests.fault.soak --faults $(or $(N),5000) --workers $(or $(SOAK_WORKERS),3) $(if $(SEED),--seed $(SEED))

check: bootstrap  ## Lint, types, layers, definitions, documentation
	@scripts/check.sh

lock: bootstrap  ## Write requirements.lock anew; make lock UPGRADE=1 takes newer versions
	$(RUN)python scripts/lock.py $(if $(UPGRADE),--upgrade)

bench: bootstrap  ## Run the benchmarks (needs some minutes of a quiet machine)
	$(RUN)python -m pip install --quiet --require-hashes --no-deps -r requirements-bench.lock
	$(RUN)python -m benchmarks

clean: ## Remove .venv and everything that was made in .local, the embedded database included
	@$(PYTHON) scripts/clean.py
