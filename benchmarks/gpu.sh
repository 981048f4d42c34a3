#!/usr/bin/env bash
# All that is owed on a GPU, in at most 8 minutes, one command from the root of the repository:
#
#     benchmarks/gpu.sh [--rehearse] [STEP ...]
#
# The plan and its steps stand in gpu_plan.py, how to carry it to a lent machine and read it in METHOD.md.
#
# PYTHON    interpreter with the packages (default: the checkout's .venv, else python3)
# OUT       folder of what is written (default: benchmarks/results/gpu)
set -u
cd "$(dirname "$0")/.." || exit 1
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
exec "$PYTHON" benchmarks/gpu_plan.py --out "${OUT:-benchmarks/results/gpu}" "$@"
