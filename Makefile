# Each target sets up what it needs in .venv, once. Any Python from 3.11: make PYTHON=python3.12 test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is imported is compiled when it is; all of it beforehand would take a minute. It has to be kept, or each process
# would compile torch anew, which takes two seconds.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q --no-compile -c constraints.txt

.PHONY: demo test check bench docs wheel gpu-wheels clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   set up, train and compare on the A100's profile, then serve real models under each policy"
	@echo "make test   set up, run the tests"
	@echo "make check  ruff and mypy"
	@echo "make bench  every benchmark in its short form"
	@echo "make docs   build the documentation into site/"
	@echo "make wheel  build dist/strait_rl-*.whl"
	@echo "make gpu-wheels   gather what a machine with a GPU lacks, for benchmarks.gpu_day"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	$(BIN)/python -m envs.precompile
	touch $@

# All at once, which takes less time than one after the other.
$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[test,grpc,tune,bench]'
	$(BIN)/python -m envs.precompile
	touch $(VENV)/.base $@

$(VENV)/.docs: $(VENV)/.base
	$(PIP) -e '.[docs]'
	touch $@

demo: $(VENV)/.base
	$(BIN)/python -m serving.demo $(ARGS)

# Two workers on two cores: threads of each would only wait for those of the other.
test: export OPENBLAS_NUM_THREADS = 1
test: export OMP_NUM_THREADS = 1
test: $(VENV)/.test
	$(BIN)/python -m pytest -m 'not gpu' -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.test
	for b in env_speed train_speed decision_latency cold_start predictor front overload; do \
	  echo "== $$b"; $(BIN)/python -m benchmarks.$$b || exit 1; done

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict --quiet

# Nothing of a former build may get into it: setuptools packs what lies in build/.
wheel: $(VENV)/.base
	rm -rf build dist
	$(BIN)/python -m pip --disable-pip-version-check wheel -q --no-deps -w dist .
	ls -l dist

# For Python 3.12 on Linux, whatever runs here; into a folder that travels with the sources.
gpu-wheels: $(VENV)/.base
	rm -rf .wheels
	$(BIN)/python -m pip --disable-pip-version-check download -q -c constraints.txt --no-deps --only-binary=:all: \
	  --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
	  --platform manylinux2014_x86_64 -d .wheels -r benchmarks/gpu_day/wheels.txt
	ls -l .wheels

clean:
	rm -rf .wheels $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis site build dist *.egg-info
