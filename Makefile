# Everything sets itself up: `make demo` and `make test` work from a fresh clone with Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-fast test-slow check bench clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,dev]'
	touch $@

demo: setup
	$(BIN)/synthscale demo

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Two processes share the test files. One thread each: more would wait for one another. Compiled modules are kept
# although containers often set PYTHONDONTWRITEBYTECODE: otherwise every process and worker would compile them anew.
PYTEST := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test: check
	$(PYTEST) -m "not slow"

# For the inner loop: no Ray, no browser.
test-fast: setup
	$(PYTEST) -m "not slow and not ray and not browser"

# Long simulations, kills, clusters, the wheel in a clean environment, and ten times the examples of properties.
test-slow: setup
	EXAMPLES_FACTOR=10 $(PYTEST) -m "slow or property"

bench: setup
	for name in end_to_end truth; do $(BIN)/python -m benchmarks.$$name; done

clean:
	rm -rf .venv runs
