# Two commands do everything from a bare machine, set-up included: `make demo` and `make test`.
# The environment is .venv, made with uv where it works, else with venv and pip; made again when its list changes.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# files in this order, those first that take long: what comes last is short enough to fill the cores evenly
TEST_FOLDERS := tests/slurm tests/faults tests/distributed tests/end_to_end tests/property tests/golden tests/unit
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help install demo test test-full check format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       the whole job on a CPU in minutes: data, training, resume, zero-shot, export"
	@echo "make test       checks and all tests but the long ones"
	@echo "make test-full  checks and all tests"
	@echo "make check      formatting, lint, types, import layers"
	@echo "make format     mend what formatting and lint can mend"
	@echo "make clean      remove caches and the demo's output (not .venv, not other runs)"

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/clipx demo --out runs/demo

test: check
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -m "not full" $(TEST_FOLDERS)

test-full: check
	$(PYTEST) --durations=25 $(TEST_FOLDERS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache runs/demo
	find clipx tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Bytecode is compiled at once: where Python may not write it later, every process of a run or a test would need seconds
# more for torch. A pyenv shim is a `uv` or `python3` that may be found and still not run, so each candidate is asked,
# not looked up.
$(INSTALLED): pyproject.toml constraints.txt
	@set -eu; \
	if uv --version >/dev/null 2>&1; then \
		test -x $(BIN)/python || uv venv --quiet --python '>=3.11' $(VENV); \
		uv pip install --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
		if ! test -x $(BIN)/python; then \
			found=; \
			for python in python3 python3.13 python3.12 python3.11 python; do \
				if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
					found=$$python; break; \
				fi; \
			done; \
			test -n "$$found" || { echo "clipx needs Python 3.11 or newer, or uv; neither was found" >&2; exit 1; }; \
			$$found -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; \
		fi; \
		$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@
