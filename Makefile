# Everything that a reader needs: make study, make test, make book, make lab, make publish. See README.md and CONTRIBUTING.md.
SHELL := bash
.SHELLFLAGS := -eo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PAGE := book/_build/html/index.html
# A process per core, each test file whole in one of them, in the order that tests/conftest.py gives them.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile \
	--no-loadscope-reorder
# Warnings are errors, and every page is built again: a page must not outlive the results that it shows.
BUILD := $(BIN)/jupyter-book build . -W -n --keep-going --all --path-output book

# Compiled modules are kept, whatever the environment says: each process would compile torch and transformers for itself.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: study test test-core lint book lab publish

## Run the quick study (about ten minutes on two cores) and show it beside the reference.
study: $(INSTALLED)
	$(BIN)/python -m bvlm_utils.grid run data/grids/quick.yml --workers 2
	rm -rf book/_build
	BVLM_YOURS=local $(BUILD)
	@echo "Your study is in $(CURDIR)/$(PAGE)"

## Run all tests, notebooks and a build of the book included; the form of the code first, which takes a second.
test: lint
	$(TEST)

## Run the tests of the core alone; neither a notebook nor the book.
test-core: $(INSTALLED)
	$(TEST) tests/core

## Say what is not in the form that all code here has; `ruff format .` mends most of it.
lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

## Build the book from the committed reference: nothing is trained, torch is not imported.
book: $(INSTALLED)
	rm -rf book/_build
	$(BUILD)
	@echo "The book is in $(CURDIR)/$(PAGE)"

## Build the book and push its pages to the branch gh-pages; `make publish DRY=1` commits to that branch here, no more.
publish: book
	@$(BIN)/python -c 'import ghp_import' 2>/dev/null \
		|| { echo "make publish needs ghp-import: $(BIN)/pip install -c constraints.txt -e '.[dev]'" >&2; exit 1; }
	$(BIN)/ghp-import --no-jekyll $(if $(DRY),,--push) --message "The book of $$(git rev-parse --short HEAD)" $(dir $(PAGE))
	@echo "The pages are in the branch gh-pages$(if $(DRY), of this checkout: git log -1 --stat gh-pages)."

## Open the notebooks in JupyterLab.
lab: $(INSTALLED)
	$(BIN)/jupyter lab --notebook-dir=notebooks

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$$($(PYTHON) --version) is too old: Python 3.11 or newer is needed (make PYTHON=python3.12 ...)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@# Python compiles what it imports: compiling all that is installed takes as long as unpacking it
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[book,lab,test]'
	touch $@
