# Everything is installed into a virtual environment of the repository's own; nothing outside it is touched.
#   make test PYTHON=python3.12 VENV=.venv312      another Python, beside the first

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# The tests and the demo are small: more threads in each worker only get into each other's way.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# A file stays on one worker, so that what its tests share, such as a group of processes, is set up once.
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile
DIAGONALS := -m 'not exhaustive'
# Of these every branch must be tested.
ALGORITHMS := src/cutwork/patterns/*,src/cutwork/methods/*,src/cutwork/training/allocation.py,src/cutwork/training/exploration.py,src/cutwork/training/foreseeing.py,src/cutwork/training/drop_connect.py,src/cutwork/costs/ramanujan.py,src/cutwork/transforms/decay.py,src/cutwork/sparsity/layout.py,src/cutwork/sparsity/numbers.py,src/cutwork/sparsity/gradient.py,src/cutwork/sparsity/base.py,src/cutwork/sparsity/fixed.py,src/cutwork/sparsity/learned.py,src/cutwork/sparsity/reprojected.py,src/cutwork/sparsity/softened.py
SOURCES := src tests docs benchmarks examples
# The package is installed in editable form: only a change to these needs another installation.
BUILT_FROM := pyproject.toml CMakeLists.txt constraints.txt $(shell find src -name '*.cpp' -o -name '*.h')
# So does a file that became a folder: the installation remembers which is which.
PACKAGES := $(sort $(shell find src -name __init__.py))

.DEFAULT_GOAL := help
.PHONY: help demo doctor test check everything lint types fix bench editor docs clean always

help:  ## list these targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## install, then train a small network dense and sparse, pack it and compare
	$(BIN)/cutwork demo

doctor: $(VENV)/.installed  ## show versions, devices and active kernels
	@$(BIN)/cutwork doctor

test: $(VENV)/.test  ## run the tests and the examples in docstrings; of large grids of tests only a diagonal
	$(PYTEST) $(DIAGONALS) $(OPTIONS)

check: lint types  ## all that a change must pass: lint, types, these tests, branch coverage of the algorithms
	$(PYTEST) $(DIAGONALS) --cov --cov-report=term
	@$(BIN)/coverage report --include='$(ALGORITHMS)' --fail-under=100 --format=total > /dev/null || \
		{ $(BIN)/coverage report --include='$(ALGORITHMS)'; echo 'make: a branch of the algorithms has no test'; exit 1; }

everything: $(VENV)/.test  ## run every test there is, which takes long
	$(PYTEST)

lint: $(VENV)/.lint  ## check format and style
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)

# The packages that the sources import where they find them are those of the tests.
types: $(VENV)/.test $(VENV)/.lint  ## check types in src/cutwork
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

fix: $(VENV)/.lint  ## format, and mend what ruff can mend
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

bench: $(VENV)/.bench  ## measure what benchmarks/ lacks, or PIECES="vit-b16 conv"; one piece takes up to ten minutes
	$(BIN)/python benchmarks/run.py $(PIECES)

editor: $(VENV)/.editor  ## write build/compile_commands.json, by which editors open the C++
	$(BIN)/cmake -S . -B build -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
		-Dnanobind_DIR="$$($(BIN)/python -m nanobind --cmake_dir)"

docs: $(VENV)/.docs  ## build the documentation into site/
	$(BIN)/mkdocs build --strict

clean:  ## remove the virtual environment and everything built
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
	find src tests -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("make: cutwork needs Python 3.11 or newer; $(PYTHON) is %d.%d; name another one: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	# Dependency groups need pip 25.1.
	$(PIP) install --quiet --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.packages: $(VENV)/.python always
	@echo '$(PACKAGES)' | cmp -s - $@ || echo '$(PACKAGES)' > $@

$(VENV)/.installed: $(VENV)/.python $(VENV)/.packages $(BUILT_FROM)
	$(PIP) install --quiet -c constraints.txt -e '.[cli]'
	@$(BIN)/python -c 'from cutwork.kernels import cpu; cpu.is_built() or print("make: the C++ kernels were not built, so all runs in plain PyTorch; why: $(PIP) install -v -c constraints.txt -e .")'
	@touch $@

# Order matters: a dependency that the group shares with the package must already be there at its pinned version.
$(VENV)/.test: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt --group test
	@touch $@

$(VENV)/.lint: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt --group lint
	@touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt -e '.[cli,vision,benchmark]' transformers
	@touch $@

# Of the package's own build nothing stays behind.
$(VENV)/.editor: $(VENV)/.test
	$(PIP) install --quiet -c constraints.txt cmake
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt --group docs
	@touch $@
