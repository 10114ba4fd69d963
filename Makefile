# Two commands need nothing but Python 3.10 to 3.13 and make: `make demo` and `make test`.
# Each creates .venv and installs everything at the versions of constraints.txt; a second call installs nothing.
#   make demo PYTHON=python3.12      another interpreter
#   make demo ARGS="seed=1"         arguments for the command
#   make test ARGS="-k chain -x"

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check --constraint constraints.txt
ARGS ?=

# The networks are small: more threads than this cost more in hand-over than they save.
export OMP_NUM_THREADS ?= 2
# DeepSpeed would otherwise compile its operators while it is being installed.
export DS_BUILD_OPS ?= 0

.PHONY: demo plan test coverage lint soak install clean

demo: | plan $(STAMP)
	@$(VENV)/bin/ddvi-fast demo $(ARGS)

plan:
	@test -e $(STAMP) || echo "demo: first an installation into $(VENV), once: a few GB, which takes some minutes"
	@echo "demo: trains two posteriors on digits and compares them, a few minutes on two processors; prints one table, and pictures into runs/demo"

# One process of tests per processor, each with one thread. `make test ARGS="-n 0"` runs all tests in one process.
test: OMP_NUM_THREADS := 1
# glibc would give the memory of each tensor over 128 KiB back to the system, which clears every page of the next one.
test: export MALLOC_MMAP_THRESHOLD_ ?= 33554432
test: export MALLOC_TRIM_THRESHOLD_ ?= 1073741824
test: $(STAMP)
	$(VENV)/bin/python -m pytest -n logical --maxprocesses 8 --dist worksteal $(ARGS)

# How much of the package the tests run, in lines and branches; the last line has the sum. Twice as slow as `make test`.
coverage: $(STAMP)
	$(VENV)/bin/python -m pytest --cov --cov-report=term $(ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m mypy

# Kills at random moments, full and read-only disks: takes minutes, and root for the file systems. Results go into bench/results/.
soak: $(STAMP)
	$(VENV)/bin/python -m bench.studies.soak $(ARGS)

install: $(STAMP)

# Three steps, because DeepSpeed's source package asks for torch while it is being built and a separate build environment
# would fetch the newest one: setuptools first, torch second, the rest without build isolation.
$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; ok = (3, 10) <= v <= (3, 13); ok or sys.exit("Python 3.10 to 3.13 is needed, $(PYTHON) is %d.%d; choose another: make PYTHON=python3.12" % v)'
	@echo "installing into $(VENV), once, at the versions of constraints.txt: 1 of 4, an environment and build tools"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) setuptools wheel
	@echo "installing into $(VENV): 2 of 4, torch, the largest part"
	@$(PIP) torch numpy
	@echo "installing into $(VENV): 3 of 4, everything else; compiles the extension for the CPU, about a minute"
	@$(PIP) --no-build-isolation --editable ".[all,dev]"
	@touch $@
	@echo "installing into $(VENV): 4 of 4, done"

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .benchmarks
	rm -f ddvi_fast/_native*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
