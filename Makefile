# Two commands do everything from a bare machine, set-up included: `make demo` and `make test`.
# The environment is .venv, made with uv where it works, else with venv and pip; made again when its list changes.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OLDEST := .venv-oldest
# files in this order, those first that take long: what comes last is short enough to fill the cores evenly
TEST_FOLDERS := tests/slurm tests/faults tests/distributed tests/end_to_end tests/property tests/golden tests/unit
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
SHORT := -n 2 --dist loadfile --no-loadscope-reorder -m "not full" $(TEST_FOLDERS)

.PHONY: help install demo test test-full test-oldest check format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       the whole job on a CPU in minutes: data, training, resume, zero-shot, export, report"
	@echo "make test       checks and all tests but the long ones"
	@echo "make test-full  checks and all tests"
	@echo "make check      formatting, lint, types, import layers"
	@echo "make format     mend what formatting and lint can mend"
	@echo "make clean      remove caches and the demo's output (not .venv, not other runs)"

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/clipx demo --out runs/demo

test: check
	$(PYTEST) $(SHORT)

test-full: check
	$(PYTEST) --durations=25 $(TEST_FOLDERS)

test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest $(SHORT)

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

# Makes an environment: $(call environment,FOLDER,CONSTRAINTS,EXTRA). Bytecode is compiled at once: where Python may not
# write it later, every process of a run or a test would need seconds more for torch. A pyenv shim is a `uv` or `python3`
# that may be found and still not run, so each candidate is asked, not looked up.
define environment
@set -eu; \
if uv --version >/dev/null 2>&1; then \
	test -x $(1)/bin/python || uv venv --quiet --python '>=3.11' $(1); \
	uv pip install --compile-bytecode --python $(1)/bin/python -c $(2) -e '.[$(3)]'; \
else \
	if ! test -x $(1)/bin/python; then \
		found=; \
		for python in python3 python3.13 python3.12 python3.11 python; do \
			if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
				found=$$python; break; \
			fi; \
		done; \
		test -n "$$found" || { echo "clipx needs Python 3.11 or newer, or uv; neither was found" >&2; exit 1; }; \
		$$found -m venv $(1) || { rm -rf $(1); exit 1; }; \
	fi; \
	$(1)/bin/python -m pip install -c $(2) -e '.[$(3)]'; \
fi
@touch $(1)/.installed
endef

$(INSTALLED): pyproject.toml constraints.txt
	$(call environment,$(VENV),constraints.txt,dev)

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(call environment,$(OLDEST),constraints-oldest.txt,tests)
