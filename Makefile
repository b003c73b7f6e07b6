# `make reproduce` runs the experiments and prints the table, `make test` checks the kit, and
# `make test-faults` breaks it on purpose; together the last two run every test once.
# Both do all the set-up they need. `make local` is the quick way to a first result.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
KIT := $(BIN)/kit
PIP := $(BIN)/pip install --quiet --quiet --disable-pip-version-check
# Only PyTorch comes from TORCH_INDEX: beside pip's own index it could replace any other package.
TORCH_INDEX ?=
export TORCH_INDEX
TORCH := $(if $(TORCH_INDEX),$(PIP) --no-deps --index-url $(TORCH_INDEX) \
  $(shell grep '^torch==' requirements.lock),:)

.DEFAULT_GOAL := help
.PHONY: help setup local reproduce test test-faults lint lab docs bench sandbox sandbox-down audit lock docs-reference platform-source images

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "The kit needs Python 3.11; choose one with: make PYTHON=python3.11 …"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "cannot create a venv; on Debian and Ubuntu: sudo apt-get install python3-venv"; exit 2; }

$(VENV)/local.stamp: requirements.lock pyproject.toml | $(BIN)/python
	@echo "Installing the packages of the local target into $(VENV) (one to two minutes) …"
	@$(TORCH)
	@$(PIP) -c requirements.lock setuptools
	@$(PIP) -c requirements.lock --no-build-isolation -e '.[local]'
	@touch $@

$(VENV)/full.stamp: requirements.lock pyproject.toml | $(BIN)/python
	@echo "Installing all packages of requirements.lock into $(VENV) (two to three minutes) …"
	@$(TORCH)
	@$(PIP) -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $(VENV)/local.stamp $@

setup: $(VENV)/full.stamp ## create .venv with all packages of the lock

local: $(if $(wildcard $(VENV)/full.stamp),,$(VENV)/local.stamp) ## a first result: the local target, one epoch
	@$(KIT) run local -p epochs 1
	@$(KIT) report

reproduce: setup ## run every notebook and print the article's table with the new runs
	@$(KIT) reproduce

lint: setup ## linters, types, imports, shell files, spelling
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-logo
	@git ls-files '*.sh' env/sandbox/svc ':!tests/golden' | \
	  xargs $(BIN)/shellcheck --shell=bash --severity=warning --exclude=SC1091
	@$(BIN)/codespell README.md CONTRIBUTING.md CHANGELOG.md docs notebooks kit env

test: setup lint ## linters, types, unit tests, the services, a run of each target, documents
	@$(KIT) sandbox install
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not sandbox and not slow and not core"
	@$(BIN)/python -m pytest -q -m core --durations=10 --durations-min=5

test-faults: setup ## all other tests: faults on the sandbox's real services, slow tests
	@$(KIT) sandbox install
	@tests/sandbox_and_slow.sh $(BIN)/python --durations=25 --durations-min=5

sandbox: setup ## start the sandbox's services
	@$(KIT) sandbox up

sandbox-down: setup ## stop the sandbox's services
	@$(KIT) sandbox down

lab: setup ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab --ip=127.0.0.1 notebooks

docs: setup ## the documentation site, with the notebooks that were run, in build/site
	@$(BIN)/python docs/site/build.py

bench: setup ## speed and memory, as ratios or beside an aim; NAMES="slurm store" runs some
	@$(KIT) sandbox install && $(KIT) sandbox up
	@PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/run.py --record $(NAMES)

audit: setup ## known holes of the locked packages (asks the internet)
	@$(BIN)/python -m pip_audit --version >/dev/null 2>&1 || $(PIP) pip-audit
	@for lock in requirements.lock env/sandbox/keystone.lock; do \
	  $(BIN)/python -m pip_audit --disable-pip --no-deps --requirement $$lock || exit 1; done

lock: setup ## write requirements.lock and environment.yml from pyproject.toml
	@$(BIN)/python env/lock.py

docs-reference: setup ## write the pages of docs/ that are made from the code
	@$(BIN)/python env/docs_reference.py

platform-source: setup ## fetch the upstream platform at its pinned commit into env/platform/upstream
	@$(KIT) platform source

images: setup ## build the four images of the platform on the profile's VM and push them to its registry
	@$(KIT) platform images
