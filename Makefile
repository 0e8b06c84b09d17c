PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install demo test test-processors torture test-integration bench bench-lds bench-facts lint clean

install: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python3 is %s; Python 3.11 or later is needed" % sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: install
	$(BIN)/trackstar demo --out demo

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n auto --dist worksteal

torture: install
	$(BIN)/python -m tests.corruption

test-processors: install
	$(BIN)/python -m tests.processors

test-integration: install
	$(BIN)/python -m pytest -m integration tests/integration

bench: install
	$(BIN)/python benchmarks/cost/index_cost.py

bench-lds: install
	$(BIN)/python -m benchmarks.retraining.run --out build/lds --influence-queries 0 --removal-queries 8 --results build/lds/retraining.md

bench-facts: install
	$(BIN)/python -m benchmarks.facts.run --out build/facts --results build/facts/facts.md

lint: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info
