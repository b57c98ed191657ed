# make demo   the whole flow on a tiny model, offline
# make test   format check, lint, types and tests, but for those in a browser
# make test-browser   the tests in a browser; installs Debian's chromium when there is none
# make docs   the documentation as pages, in build/site
# They make .venv when it is missing and install what they need; once installed they work without a network.

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
# Test files run side by side, each on one thread.
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() or 1))')

VENV := .venv
BIN := $(VENV)/bin
# A module is compiled when it is first imported, and kept: the tests start many processes.
unexport PYTHONDONTWRITEBYTECODE
# What an installation depends on: asked again only when one of these changes.
WANTED = $(shell cat pyproject.toml constraints.txt | cksum)
# The package is that of this folder, also when the folder has moved since it was installed.
export PYTHONPATH := $(CURDIR)

# $(call install,EXTRA,STAMPS,TAKES): install the extra, unless one of the stamps says that this was done.
define install
@want='$(WANTED)'; \
for stamp in $(2); do [ "$$(cat $(VENV)/$$stamp 2>/dev/null)" = "$$want" ] && exit 0; done; \
echo "Installing hubprune[$(1)] into $(VENV) ($(3))"; \
$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch && \
$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[$(1)]' && \
printf '%s\n' "$$want" > $(VENV)/installed-$(1)
endef

# How a browser gets here, with letters for its pages.
APT = { ROOT=$$([ "$$(id -u)" = 0 ] || echo sudo); $$ROOT apt-get update -qq && \
  $$ROOT apt-get install --yes -qq --no-install-recommends chromium fonts-dejavu-core; }

.PHONY: demo test test-browser check lint types pytest bench docs clean install-demo install-docs install-test \
  install-browser

demo: install-demo
	@$(BIN)/python -m hubprune demo

test: lint types pytest

check: test

lint: install-test
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .

types: install-test
	$(BIN)/python -m mypy

pytest: install-test
	$(BIN)/python -m pytest -m "not browser" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-browser: install-browser
	@command -v chromium > /dev/null || $(APT)
	HUBPRUNE_SCREENSHOTS=$${HUBPRUNE_SCREENSHOTS:-build/screenshots} $(BIN)/python -m pytest -m browser -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

bench: install-test
	@failed=; for name in quality speed memory scale processes structured shrunk experts attribution evaluation export recovery; do \
	  $(BIN)/python -m benchmarks.$$name || failed="$$failed $$name"; \
	done; \
	[ -z "$$failed" ] || { echo "short of a target:$$failed"; exit 1; }

docs: install-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "build/site/index.html"

clean:
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

install-demo: $(BIN)/python
	$(call install,demo,installed-demo installed-test,2 GB; some minutes the first time)

install-docs: $(BIN)/python
	$(call install,docs,installed-docs installed-test,2 GB; some minutes the first time)

install-test: $(BIN)/python
	$(call install,test,installed-test,2 GB; some minutes the first time)

install-browser: install-test
	$(call install,browser,installed-browser,50 MB)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "hubprune needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version 2>&1): try make PYTHON=python3.12"; \
	  exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
