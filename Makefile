# Every target makes the environment that it needs and runs in it: nothing has to be activated.
# Kept to what GNU make 3.81 understands.

PYTHON  ?= python3
PROFILE ?= default
MINUTES ?= 10

VENV   := .venv
ORACLE := .venv-oracle
BENCH  := .venv-bench
DOCS   := .venv-docs
NVRTC  := .venv-nvrtc
DEVICE := .venv-gpu
GPU    ?= gpu13
RUN    := $(VENV)/bin/python -m

comma := ,

.DEFAULT_GOAL := help
.PHONY: help figures test test-slow fuzz check format oracle oracle-slow bench bench-kernels docs study nvrtc gpu-test \
	gpu-bench clean

help:  ## show this list
	@echo 'Usage: make TARGET [PYTHON=python3] [PROFILE=default|quick]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' Makefile

figures: $(VENV)/installed  ## run the main comparison and a DPQ in the plane, and draw; PROFILE=quick for a short run
	$(VENV)/bin/dpq-ref compare --profile $(PROFILE) --output figures/results/main
	$(RUN) figures.geometry
	$(RUN) figures.plot_geometry

test: $(VENV)/installed  ## the default tests and the doctests, two files at a time
	$(RUN) pytest -n 2 --dist loadfile

test-slow: $(VENV)/installed  ## the tests marked slow, which take minutes
	$(RUN) pytest -m slow || [ $$? -eq 5 ]  # 5: no test carries the marker

check: $(VENV)/installed  ## formatting, lint and types, changing nothing
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy

format: $(VENV)/installed  ## format the code and mend what lint can mend
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

fuzz: $(VENV)/installed  ## damage files of all kinds for MINUTES=10, and see them refused or read as they are
	$(RUN) tests.fuzz --minutes $(MINUTES)

oracle: $(ORACLE)/installed  ## compare with torch, faiss, nanopq and gensim, in an environment of its own
	$(ORACLE)/bin/python -m pytest -m 'oracle and not slow'

oracle-slow: $(ORACLE)/installed  ## the same on large tables; prints the ratios
	$(ORACLE)/bin/python -m pytest -s -m 'oracle and slow'

nvrtc: $(NVRTC)/installed  ## compile the kernels for GPUs, in an environment of its own; needs no GPU
	$(NVRTC)/bin/python -m pytest -m nvrtc tests/kernels

gpu-test: $(DEVICE)/installed  ## on a GPU: the contract, gradients, training; GPU=gpu12 for CUDA 12; an error without one
	$(DEVICE)/bin/python -c 'from dpq_ref import backend; backend.get("cupy")'
	$(DEVICE)/bin/python -m pytest -m gpu tests/kernels

gpu-bench: $(DEVICE)/installed  ## on a GPU: time it beside torch, where that finds one, and floors; an error without one
	$(DEVICE)/bin/python -m figures.gpu
	$(DEVICE)/bin/python -m figures.plot_speed --results figures/results/gpu

bench: $(BENCH)/installed  ## time everything beside its peers (minutes), and draw it
	$(BENCH)/bin/python -m figures.speed
	$(BENCH)/bin/python -m figures.plot_speed
	$(BENCH)/bin/python -m figures.scale

bench-kernels: $(VENV)/installed  ## has a kernel become slower against its reference? (seconds)
	$(RUN) figures.speed --grid figures/grids/kernels.toml --against figures/results/kernels/speed.csv

docs: $(DOCS)/installed  ## build the documentation: build/docs/index.html; a warning is an error
	$(DOCS)/bin/python -m sphinx -E -n -W --keep-going -q -b html docs build/docs
	@echo build/docs/index.html

study: $(VENV)/installed  ## the study of DPQ as a notebook and a page, build/study.ipynb and .html (a minute)
	$(RUN) figures.notebook

clean:  ## remove the environments, builds and caches; results stay
	rm -rf $(VENV) $(ORACLE) $(BENCH) $(DOCS) $(NVRTC) $(DEVICE) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/installed: pyproject.toml constraints.txt
	$(call install,$(VENV),test$(comma)check$(comma)study)

$(ORACLE)/installed: pyproject.toml constraints.txt
	$(call install,$(ORACLE),test$(comma)oracle)

$(BENCH)/installed: pyproject.toml constraints.txt
	$(call install,$(BENCH),bench)

$(NVRTC)/installed: pyproject.toml constraints.txt
	$(call install,$(NVRTC),test$(comma)nvrtc)

$(DEVICE)/installed: pyproject.toml constraints.txt
	$(call install,$(DEVICE),test$(comma)$(GPU))

$(DOCS)/installed: pyproject.toml constraints.txt
	$(call install,$(DOCS),docs)

# $(call install,DIRECTORY,EXTRAS): interrupted at any point, it is taken up again by the next call. The stamp comes
# last; an environment whose pip does not run is made anew; a package on which pip did not finish (INSTALLER is nearly
# the last file that it writes) is forgotten, so that pip installs it again. The build uses the pinned setuptools.
define install
@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo 'Python 3.11 or newer is needed, and "$(PYTHON)" is not: try make PYTHON=python3.13' >&2; exit 1; }
@echo 'Installing into $(1) (the first time takes a minute) ...'
@$(1)/bin/pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(1)
@for d in $(1)/lib/python*/site-packages/*.dist-info; do [ -f "$$d/INSTALLER" ] || rm -rf "$$d"; done
@$(1)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt setuptools wheel
@$(1)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[$(2)]'
@touch $@
endef
