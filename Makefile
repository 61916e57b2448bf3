# Two commands from a fresh clone: `make demo` (the whole tool on real data) and `make test`.
PYTHON ?= python3
VENV   ?= .venv
# Another choice for another machine: make install EXTRAS=cpu,dev (no torch), EXTRAS=train,gpu,dev, ...
EXTRAS ?= train,cpu,rtx,dev
PIP_FLAGS ?= --disable-pip-version-check --no-input $(if $(CI),--quiet)
PYTEST_FLAGS ?=

BIN     := $(VENV)/bin
COMMA   := ,
STAMP   := $(VENV)/.installed-$(subst $(COMMA),-,$(EXTRAS))
SOURCES := calib sbs_train sbs_deploy benchmarks

.DEFAULT_GOAL := help
.PHONY: help install demo check test test-slow format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## .venv with the project, editable, and its extras

# The stamp is older than what it was made from exactly when the environment is stale.
# tensorrt-stubs are types for mypy; their requirement, the real tensorrt, takes its libraries from NVIDIA's own index,
# which not every machine reaches: they are installed alone.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[$(EXTRAS)]'
	$(if $(findstring dev,$(EXTRAS)),$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt --no-deps tensorrt-stubs)
	touch $@

demo: install  ## train, compress, export, validate, build, measure, report: minutes on two CPU cores
	$(BIN)/sbs-train
	$(BIN)/sbs-deploy build --engine int8
	$(BIN)/sbs-deploy build --engine int8 --backend onnxruntime --placement-minutes 0.2
	$(BIN)/sbs-deploy bench --batch 1 32
	$(BIN)/sbs-deploy report

check: install  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: install  ## the fast suite, on two cores
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist worksteal $(PYTEST_FLAGS)

test-slow: install  ## training and whole pipelines, on two cores
	$(BIN)/python -m pytest -m "slow and not gpu" -n 2 --dist worksteal $(PYTEST_FLAGS)

format: install  ## sort imports, format
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

clean:  ## caches and build leftovers; keeps .venv and runs
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(SOURCES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
