# SPDX-License-Identifier: Apache-2.0
# One word per task; each sets up what it needs.
#
#   make run ARGS='-m processes -o json'    what happens on this machine
#   make test                               everything below, as far as the machine allows
#   make test-unit                          no privileges, no kernel
#   make test-bpf                           loads BPF programs, attaches none
#   make test-kernel                        attaches to this machine's own kernel
#   make test-vm KERNEL=6.12                in guests: all kernels without KERNEL
#   make vm KERNEL=6.12 CMD='uname -a'      one command in a guest
#   make check                              lint, types, format, architecture, generated files
#   make format                             what `make check` would ask for and a tool can do
#   make bpf                                compile the BPF objects, write the layouts and specs
#   make captures                           make the golden captures of tests/unit/captures anew, in guests
#   make bench                              the figures, also in build/bench.json
#   make clean
#
# KPROBE_MODULES_TEST_STRICT=1 turns every skipped test into a failure.  TESTS=... chooses tests.

export PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest
INSTALL := tools/install_packages.sh
C_SOURCES = $$(git ls-files --cached --others --exclude-standard '*.c' '*.h')
PYTHON_SOURCES := src modules rings tests tools examples setup.py

.DEFAULT_GOAL := help
.PHONY: help run test test-unit test-bpf test-kernel test-vm vm check check-lint check-types check-c check-imports check-generated format bpf captures bench clean

help:
	@sed -n '/^#   make/s/^#   //p' $(firstword $(MAKEFILE_LIST))

# The virtual environment: what running needs, and what developing needs on top.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	@$(INSTALL) venv
	$(PYTHON) -m venv $(VENV)

MADE_FROM := setup.cfg setup.py pyproject.toml $(wildcard rings/*.c rings/*.h src/kprobe_modules/*/*.c)

$(VENV)/.run: $(MADE_FROM) | $(VENV)/bin/python
	@$(INSTALL) run build
	$(PY) -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: $(MADE_FROM) | $(VENV)/bin/python
	@$(INSTALL) run build
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[cli,dev,test,pylibbpf]'
	@touch $(VENV)/.run $@

run: $(VENV)/.run
	@$(VENV)/bin/kprobe-modules run $(ARGS)

test:
	@$(MAKE) --no-print-directory --keep-going test-unit test-bpf test-kernel test-vm

test-unit: $(VENV)/.dev
	@$(INSTALL) bpf peers
	$(PYTEST) $(or $(TESTS),tests/unit)

test-bpf: $(VENV)/.dev
	@$(INSTALL) bpf peers
	$(PYTEST) $(or $(TESTS),tests/bpf)

# The guests prove each hook strictly; the machine's own kernel has the hooks that it has.
test-kernel: $(VENV)/.dev
	@$(INSTALL) peers containers network
	KPROBE_MODULES_TEST_STRICT=0 $(PYTEST) $(or $(TESTS),tests/kernel)

test-vm: $(VENV)/.dev
	@$(INSTALL) vm peers containers network
	KPROBE_MODULES_KERNELS='$(KERNEL)' KPROBE_MODULES_VM_TESTS='$(TESTS)' $(PYTEST) tests/vm

vm: $(VENV)/.dev
	@$(INSTALL) vm
	@$(PY) -m tests.vm run --kernel '$(KERNEL)' -- "$$CMD"

# Each of these runs, whatever the others find.
check: $(VENV)/.dev
	@$(INSTALL) bpf check
	@$(MAKE) --no-print-directory --keep-going \
	    check-lint check-types check-c check-imports check-generated

check-lint:
	$(VENV)/bin/ruff check $(PYTHON_SOURCES)
	$(VENV)/bin/ruff format --check $(PYTHON_SOURCES)

check-types:
	$(PY) tools/package_view.py
	MYPYPATH=build/view $(PY) -m mypy -p kprobe_modules
	MYPYPATH=build/view:examples/datagram_sizes $(PY) -m mypy -p datagram_sizes

check-c:
	clang-format-14 --dry-run --Werror $(C_SOURCES)

check-imports:
	$(PYTEST) -q tests/unit/test_imports_table.py

check-generated:
	$(PY) tools/build_bpf.py --check

format: $(VENV)/.dev
	@$(INSTALL) check
	$(VENV)/bin/ruff check --fix --exit-zero --quiet $(PYTHON_SOURCES)
	$(VENV)/bin/ruff format --quiet $(PYTHON_SOURCES)
	clang-format-14 -i $(C_SOURCES)

bpf: $(VENV)/.run
	@$(INSTALL) bpf
	$(PY) tools/build_bpf.py

# Small captures of synthetic workloads, from each kernel (or KERNEL) and for each module (or
# MODULES), and what handlers make of them.
captures: $(VENV)/.dev
	@$(INSTALL) vm peers
	@set -e; for kernel in $(or $(KERNEL),$$($(PY) -m tests.vm list | cut -d' ' -f1)); do \
	    rm -rf build/captures; mkdir -p build/captures; \
	    $(PY) -m tests.vm run --kernel $$kernel --share build/captures --timeout 900 -- \
	        "cd '$(CURDIR)' && $(PY) -m tests.support.captures make '$(CURDIR)/build/captures' $$kernel $(MODULES)"; \
	    cp build/captures/*.kmc build/captures/*.json tests/unit/captures/; \
	done

bench: $(VENV)/.dev
	$(PY) -m tests.bench

clean:
	rm -rf build dist $(VENV) *.egg-info src/*.egg-info rings/*.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src modules rings tests tools -name __pycache__ -prune -exec rm -rf {} +
