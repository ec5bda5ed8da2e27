# make demo   compile a real pretrained model and look at the result
# make test   the whole suite
# make lint   formatting, lint, types
# make docs   the documentation site, in site/
# make bench  the benchmarks (an hour or two on two cores), into benchmarks/results/ and docs/benchmarks.md

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs bench clean
.DELETE_ON_ERROR:

demo: .venv/installed
	$(BIN)/python -m examples.demo

test: .venv/installed-dev
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/installed-dev
	$(BIN)/python -m tools.reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: .venv/installed-dev
	$(BIN)/python -m benchmarks.kernels
	$(BIN)/python -m benchmarks.recipes
	$(BIN)/python -m benchmarks.language --accuracy --speed --compiling
	$(BIN)/python -m benchmarks.sparsity
	$(BIN)/python -m benchmarks.sparsity --masks
	$(BIN)/python -m benchmarks.compile
	$(BIN)/python -m benchmarks.calibration
	$(BIN)/python -m benchmarks.tables

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[images]'
	touch $@

.venv/installed-dev: pyproject.toml tests/requirements.txt | .venv/installed
	$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[dev,docs,images,safetensors]' --requirement tests/requirements.txt
	touch $@

clean:
	rm -rf .venv site demo .pytest_cache .mypy_cache .ruff_cache
