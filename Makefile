# make serve, make test: the two to begin with. Everything lives in .venv* folders beside this file.

PYTHON   ?= python3
CONFIG   ?= configs/digits.yaml
RUN      ?= runs/$(basename $(notdir $(CONFIG)))
ARTIFACT ?= $(shell ls -d exported_models/$(notdir $(RUN))/* 2>/dev/null | sort -V | tail -n 1)
# GPU=1 serves on CUDA, from an environment of its own.
KIND     := $(if $(GPU),gpu,cpu)
SERVICE  := $(if $(GPU),.venv-gpu,.venv)
DEV      := .venv-dev
PIP      := -m pip --quiet --disable-pip-version-check

# What is imported is compiled once: the next start is quick, and the tests start dozens of services and trainers.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help serve test check format fit export calibrate story bench-anomaly bench-serving container-test requirements clean

help:  ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /  make \1  |/p' $(MAKEFILE_LIST) | column -t -s '|'

serve: $(SERVICE)/ready  ## serve exported_models/ over HTTP (GPU=1: on CUDA); settings are VAE_SERVE_* variables
	@exec $(SERVICE)/bin/python -m service

test: $(DEV)/ready  ## run all the tests; ARGS="-k batcher" picks some
	$(DEV)/bin/python -m pytest $(ARGS)

check: $(DEV)/ready  ## format, lint, strict types, and which module may import which
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/ruff check .
	$(DEV)/bin/mypy
	$(DEV)/bin/python -m pytest tests/test_house.py

format: $(DEV)/ready  ## rewrite the sources as `make check` wants them
	$(DEV)/bin/ruff format .
	$(DEV)/bin/ruff check --fix .

fit: $(DEV)/ready  ## train CONFIG (configs/digits.yaml) into runs/
	$(DEV)/bin/python -m training fit $(CONFIG)

export: $(DEV)/ready  ## export RUN (CONFIG's) to exported_models/<name>/<next version>/
	$(DEV)/bin/python -m training export $(RUN)

calibrate: $(DEV)/ready  ## give ARTIFACT (the last one exported from RUN) its p-values
	$(DEV)/bin/python -m training calibrate $(ARTIFACT)

story: $(DEV)/ready  ## all of it on real digits, in a minute: fit, export, calibrate, serve, score
	@$(DEV)/bin/python scripts/story.py $(CONFIG)

bench-anomaly: $(DEV)/ready  ## what detects anomalies in TABLES, a folder of .npz with X and y
	@test -n "$(TABLES)" || { echo "usage: make bench-anomaly TABLES=folder"; exit 2; }
	@$(DEV)/bin/python -m benchmarks.anomaly $(TABLES)

bench-serving: $(DEV)/ready  ## how fast rows are scored, beside mosec, LitServe and others; ARGS="--quick" (needs wrk)
	@$(DEV)/bin/python -m benchmarks.serving $(ARGS)

container-test:  ## build the cpu image, run it locked down, and hold it to its promises
	@$(PYTHON) scripts/container_test.py

requirements: $(DEV)/ready  ## compile requirements/ anew from pyproject.toml; UPGRADE=1 takes newer versions
	@$(DEV)/bin/python $(PIP) install uv
	@PATH=$(CURDIR)/$(DEV)/bin:$$PATH sh scripts/requirements.sh $(if $(UPGRADE),--upgrade)

clean:  ## remove the environments and caches; runs/ stays
	rm -rf .venv .venv-gpu $(DEV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find service training tests benchmarks examples scripts -name __pycache__ -prune -exec rm -rf {} +

# The service's environment: its dependencies alone, by their hashes. It runs from this folder, so nothing of ours is installed.
# --no-compile: what is imported is compiled when it first is, and the rest never.
$(SERVICE)/ready: requirements/service-$(KIND).txt
	@$(PYTHON) scripts/environment.py $(SERVICE)
	@$(SERVICE)/bin/python $(PIP) install --no-compile --require-hashes -r $<
	@touch $@

# The trainer's and the tests' environment. torch first: on its own, pip takes the build that this machine's index prefers.
$(DEV)/ready: requirements/trainer.txt pyproject.toml
	@$(PYTHON) scripts/environment.py $(DEV)
	@$(DEV)/bin/python $(PIP) install --no-compile -c requirements/trainer.txt torch
	@$(DEV)/bin/python $(PIP) install --no-compile -c requirements/trainer.txt -e '.[cpu,train,dev,adapters]'
	@touch $@
