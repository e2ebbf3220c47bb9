# `make search` and `make test` need Python 3.11 or newer, make and a package index; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
MARK := .venv/.installed

.PHONY: search test test-slow lint types bench docs clean

search: $(MARK)  ## a real search on the embedded data set: leaderboard, place of the results, command for the UI
	$(BIN)/latentune search conv_autoencoder --dataset digits --trials 12 --max-epochs 9

test: $(MARK)  ## the default suite
	$(BIN)/python -m pytest

test-slow: $(MARK)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: $(MARK)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(MARK)
	$(BIN)/python -m mypy

bench: $(MARK)  ## figures on this machine; nothing is asserted
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python -m benchmarks.compare --results build/comparison --contenders latentune ray-tune optuna
	$(BIN)/python -m benchmarks.quality --seeds 3

docs: $(MARK)  ## the documentation as a site: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

$(MARK): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "latentune needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(MARK)

clean:
	rm -rf .venv build dist site *.egg-info
