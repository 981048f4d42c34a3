#!/usr/bin/env bash
# All that is owed on a GPU, in under 8 minutes, one command from the root of the repository:
#
#     benchmarks/gpu.sh
#
# Kernels against float64 with fresh random inputs; the loss at G = 32,768 and its memory at G = 65,536 (one rank of
# eight, b = 8,192, d = 768); whole steps of B/32, B/16 and L/14 in bf16 beside open_clip; the gradient cache at
# G = 32,768 for L/14; a short run that is resumed. Each part has a time limit, so that one that fails leaves the
# others their time; the table of what was measured comes last.
#
# PYTHON    interpreter with the packages (default: the checkout's .venv, else python3)
# OUT       folder of the CSV files (default: benchmarks/results)
# DEVICE    cuda (default), or cpu: the same parts at toy sizes, to try the script itself
# PATIENCE  factor on all time limits (default: 1)
set -u
cd "$(dirname "$0")/.." || exit 1
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
OUT=${OUT:-benchmarks/results}
DEVICE=${DEVICE:-cuda}
PATIENCE=${PATIENCE:-1}
export PYTHONPATH="$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
started=$(date -u '+%Y-%m-%d %H:%M')
report="$scratch/report"

# part LIMIT_S NAME COMMAND...: runs it, shows its last lines, keeps its outcome for the end.
part() {
    local limit=$(($1 * PATIENCE)) name=$2 began=$SECONDS outcome=ok code
    shift 2
    printf '\n== %s\n' "$name"
    timeout --kill-after=10 "$limit" "$@" >"$scratch/log" 2>&1
    code=$?
    tail -n 25 "$scratch/log"
    if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then outcome="stopped after $limit s"; fi
    if [ "$code" -ne 0 ] && [ "$outcome" = ok ]; then outcome="FAILED ($code)"; fi
    printf '%-24s %-22s %4d s\n' "$name" "$outcome" $((SECONDS - began)) >>"$report"
}

measure() {
    local limit=$1 name=$2 script=$3
    shift 3
    part "$limit" "$name" "$PYTHON" "benchmarks/$script.py" --device "$DEVICE" --out "$OUT" "$@"
}

short_run() {
    local run=("$PYTHON" -m clipx train clipx/demo/demo.yaml "run_dir=$scratch/run" "data.train=[$scratch/scenes/train]")
    run+=("evaluate.seen.data=$scratch/scenes/wds_scenes" "evaluate.unseen.data=$scratch/scenes/wds_scenes_unseen")
    run+=(track.wandb=disabled data.workers=2 "$@")
    "$PYTHON" -m clipx data synth --out "$scratch/scenes" --train 600 --size 48 &&
        "${run[@]}" steps=20 && "${run[@]}" steps=40 && grep -q '"step": 40\b' "$scratch/run/metrics.jsonl" &&
        tail -n 1 "$scratch/run/metrics.jsonl"
}

kernels=("$PYTHON" -m pytest -m gpu tests -p no:cacheprovider)
if [ "$DEVICE" = cuda ]; then
    "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
        { echo "torch of $PYTHON finds no CUDA device here (DEVICE=cpu tries the script itself)" >&2; exit 2; }
    precision=bf16
    part 100 "kernels" "${kernels[@]}"
    measure 60 "loss" loss --quick --repetitions 10
    measure 50 "step B/32" step --model b32 --repetitions 10
    measure 50 "step B/16" step --model b16 --repetitions 8
    measure 55 "step L/14" step --model l14 --repetitions 5 --steps 3
    measure 105 "cache L/14, G = 32,768" grad_cache --model l14 --micro-batch 256 --k 128 --repetitions 1
else
    precision=fp32
    part 100 "kernels" "${kernels[@]}"
    measure 60 "loss" loss --quick --repetitions 3
    measure 60 "step demo" step --model demo --batch 16 --repetitions 3
    measure 60 "cache demo" grad_cache --model demo --micro-batch 8 --k 1 4 --repetitions 3
fi
export -f short_run
export PYTHON scratch
part 55 "run and resume" bash -c 'short_run "$@"' short_run "precision=$precision"

printf '\n== What was measured\n'
"$PYTHON" benchmarks/harness.py "$OUT" --since "$started"
printf '\n'
cat "$report"
! grep -qv ' ok ' "$report"
