# tcomp: `make train` and `make test` are all a fresh machine needs (Python 3.11 or newer, make, a C runtime).
#
# The virtual environment lives in $(VENV). Two stamp files record what was installed from pyproject.toml;
# they are remade when it changes, and nothing is installed twice.

VENV   ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
            $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
TORCH  ?= torch==2.13.0
RUN    := $(VENV)/bin
PIP    := $(RUN)/python -m pip install --quiet --disable-pip-version-check
WORKERS ?= auto
# Byte code is kept also where the environment says not to: a run starts hundreds of Pythons, and each would compile it all.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(RUN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal
CODE   := dsl tcomp autotune runtime models tests benchmarks
ARGS   ?=

.PHONY: help install train test test-all test-slow lint types format check bench locks tables clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 12

$(RUN)/python:
	@python=$(PYTHON); \
	test -n "$$python" && "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "tcomp needs Python 3.11 or newer, and none was found$${python:+ under the name $$python}."; \
	  echo "  help: install it (Debian, Ubuntu: apt install python3.11 python3.11-venv; or pyenv install 3.11)"; \
	  echo "        or name it: make $(firstword $(MAKECMDGOALS)) PYTHON=/path/to/python3.11"; exit 1; }; \
	"$$python" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$$python cannot make a virtual environment: its venv module is missing."; \
	  echo "  help: apt install $$(basename $$python)-venv (Debian, Ubuntu), or name another Python by PYTHON=..."; \
	  exit 1; }; \
	echo "making $(VENV) with $$python"; \
	"$$python" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# What running needs, and what testing needs beside it. A new stamp is written only after pip succeeded.
$(VENV)/.installed: pyproject.toml | $(RUN)/python
	@echo "installing tcomp"
	@$(PIP) -e .
	@touch $@

# The exact torch version comes first: where a package index offers a CPU build under it, a plain range
# would pick a build with gigabytes of GPU libraries instead. Any version in the declared range will do. Byte code is
# made as modules are first loaded: most of torch's and transformers' never are.
$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing what the tests need"
	@$(PIP) --no-compile "$(TORCH)" || $(PIP) --no-compile -e ".[torch]"
	@$(PIP) --no-compile -e ".[dev,torch]"
	@touch $@

install: $(VENV)/.installed  ## the tcomp command, in .venv/bin

train: $(VENV)/.installed  ## train the default small GPT-2 on this CPU (ARGS="--steps 50" to change it)
	@$(RUN)/tcomp train $(ARGS)

test: $(VENV)/.installed-dev  ## the tests, without the slow ones (ARGS="-k attention" to choose; WORKERS=0 for one process)
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(VENV)/.installed-dev  ## only the slow tests; of many cases some, others with each commit (TESTS_TURN=all for all)
	$(PYTEST) -m slow $(ARGS)

test-all: $(VENV)/.installed-dev  ## all tests
	TESTS_TURN=all $(PYTEST) $(ARGS)

lint: $(VENV)/.installed-dev  ## ruff: rules and format
	$(RUN)/ruff check $(CODE)
	$(RUN)/ruff format --check $(CODE)

format: $(VENV)/.installed-dev  ## rewrite the Python files in the project's format
	$(RUN)/ruff check --fix $(CODE)
	$(RUN)/ruff format $(CODE)

# The packages are mapped by pyproject.toml (tcomp.dsl is ./dsl), which mypy does not follow, so it gets a
# tree of links in the shape that they are imported in.
types: $(VENV)/.installed-dev  ## mypy --strict over the packages and the benchmarks
	@rm -rf build/typecheck && mkdir -p build/typecheck/tcomp
	@for f in tcomp/*; do ln -s "$(CURDIR)/$$f" build/typecheck/tcomp/; done
	@for d in dsl autotune runtime models; do ln -s "$(CURDIR)/$$d" build/typecheck/tcomp/$$d; done
	@for f in benchmarks/*.py benchmarks/peers/*.py; do ln -s "$(CURDIR)/$$f" build/typecheck/; done
	cd build/typecheck && "$(abspath $(RUN))/mypy" --strict --config-file "$(CURDIR)/pyproject.toml" \
	  --cache-dir "$(CURDIR)/.mypy_cache" tcomp *.py

check:  ## what CI runs
	@.ci/run

bench: $(VENV)/.installed-dev  ## machine ceilings, GEMM kernels, and the 124M step beside PyTorch (minutes)
	$(RUN)/python benchmarks/ceilings.py
	$(RUN)/python benchmarks/gemm_cpu.py
	$(RUN)/python benchmarks/step_cpu.py $(ARGS)

# Shipped lockfiles: predicted, so they need no GPU. Only the products and attention, which are most of a step; two
# searches at a time, each with a budget. Started again it goes on: kept trials and compiled kernels are used.
LOCK_GPUS   ?= h100 a100 rtx4090
LOCK_BUDGET ?= 110s
LOCK_OPS    := --ops 'linear*' --ops 'matmul*' --ops '*attention*'
locks: $(VENV)/.installed  ## tune the shipped lockfiles again, models/MODEL.GPU.lock (six minutes)
	@for gpu in $(LOCK_GPUS); do \
	  $(RUN)/tcomp tune gpt2 --gpu $$gpu --predicted --config 124M -B 16 -T 1024 --precision bf16 --budget $(LOCK_BUDGET) \
	    $(LOCK_OPS) --lock models/gpt2.$$gpu.lock & one=$$!; \
	  $(RUN)/tcomp tune llama --gpu $$gpu --predicted --config 1B -B 4 -T 2048 --precision bf16 --budget $(LOCK_BUDGET) \
	    --ops 'matmul*' --ops '*attention*' --lock models/llama.$$gpu.lock & two=$$!; \
	  wait $$one && wait $$two || exit 1; \
	done

tables: $(VENV)/.installed  ## write the parser's tables again, dsl/parser_tables.json, after a change to grammar.lark
	@$(RUN)/python -m tcomp.dsl.shipped_tables

clean:  ## remove build outputs (not the virtual environment, not runs/)
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
