VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: repro test test-fast lint types docs dist clean

repro: $(VENV)/installed
	dvc repro
	@echo "The report: $(CURDIR)/reports/index.html (and reports/report.md)"

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile --durations 15

test-fast: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile -m "not slow"

lint: $(VENV)/installed-dev
	ruff check .
	ruff format --check .

types: $(VENV)/installed-dev
	mypy

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet
	@echo "The site: $(CURDIR)/build/site/index.html"

dist: $(VENV)/installed-dev
	pip install --quiet --constraint constraints.txt build twine
	rm -rf build/dist
	python -m build --no-isolation --outdir build/dist > /dev/null
	twine check --strict build/dist/*

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) data models library results .checkpoints
