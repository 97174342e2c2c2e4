# Two commands do it: `make run` and `make test`. Each makes .venv first if it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients
UV := $(BIN)/python -m uv
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: run test campaign serve lint bench lock clean

run: $(VENV)/.installed
	$(BIN)/graft run

serve: $(VENV)/.installed
	$(BIN)/graft serve

test: $(VENV)/.installed-test $(CLIENTS)/.installed
	$(BIN)/python -m pytest

# What takes minutes by its nature, and so is no part of `make test`: a cron's own minute, kills all along a night.
campaign: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m campaign

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks

$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "Graft wants Python 3.11 to 3.13; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(shell sed -n 's/^uv==\([^ ]*\).*/\1/p' requirements-test.txt)

$(VENV)/.installed: requirements.txt pyproject.toml | $(BIN)/uv
	$(UV) pip install --quiet --require-hashes -r requirements.txt
	$(UV) pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

# Tests start hundreds of processes; where Python may write no bytecode, each would compile its imports anew. What does
# not compile, such as a package's templates, stays as it is.
$(VENV)/.installed-test: requirements-test.txt $(VENV)/.installed
	$(UV) pip install --quiet --require-hashes -r requirements-test.txt
	-$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib
	touch $@

# The inference clients that tests ask with pin an older protobuf than the pipeline's.
$(CLIENTS)/.installed: tests/serving/clients/requirements.txt | $(BIN)/uv
	$(UV) venv --quiet --clear --python $(BIN)/python $(CLIENTS)
	$(UV) pip install --quiet --python $(CLIENTS)/bin/python --require-hashes -r $<
	touch $@

# The lock files hold versions and hashes and name no package index.
lock: | $(BIN)/uv
	$(UV) pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header --generate-hashes \
	  --extra pipeline -o requirements.txt pyproject.toml
	$(UV) pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header --generate-hashes \
	  --extra pipeline --extra test -c requirements.txt -o requirements-test.txt pyproject.toml
	$(UV) pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header --generate-hashes \
	  -o tests/serving/clients/requirements.txt tests/serving/clients/requirements.in

clean:
	rm -rf $(VENV) $(CLIENTS) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
