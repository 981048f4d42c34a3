#!/usr/bin/env bash
# Starts a run, or goes on with it, on one node or on several:
#
#   launch/torchrun.sh configs/vit_b32_cc12m_8xh100.yaml [overlay.yaml ...] [key=value ...]
#
# On several nodes, run the same line on each with NNODES and MASTER_ADDR set. What may be set, and what holds if not:
#
#   NPROC_PER_NODE  processes on this node           its GPUs, or 1
#   NNODES          number of nodes                  1
#   MASTER_ADDR     a node that all others reach     (needed for more than one)
#   MASTER_PORT     a free port there                29500
#   RUN_ID          names this start on all nodes    SLURM_JOB_ID, or clipx
#   SAVE_SECONDS    time to save after a signal      300
#   PYTHON          interpreter                      .venv/bin/python of this repository, else python3
#
# Exit code: 0 complete; 85 saved and stopped on request, start it again; else failed.
set -euo pipefail

if [[ $# -eq 0 ]]; then
  echo "usage: launch/torchrun.sh CONFIG.yaml [OVERLAY.yaml ...] [KEY=VALUE ...]" >&2
  exit 2
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3

# A mistake in the config is one line here instead of one per process; the run folder is needed at the end.
config=$("$python" -m clipx config "$@")
run_dir=$(sed -n 's/^run_dir: //p' <<<"$config" | tr -d "'\"")

nproc=${NPROC_PER_NODE:-$("$python" -c 'import torch; print(torch.cuda.device_count() or 1)')}
nnodes=${NNODES:-1}
if [[ $nnodes == 1 ]]; then
  rendezvous=(--standalone)
else
  : "${MASTER_ADDR:?is not set: with NNODES=$nnodes, name a node that all others reach}"
  rendezvous=(--rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:${MASTER_PORT:-29500}"
    --rdzv-id="${RUN_ID:-${SLURM_JOB_ID:-clipx}}")
fi

# torchrun's options --signals-to-handle and --shutdown-timeout, as variables: a torch that lacks one passes over it.
# Unhandled, SIGUSR1 would kill torchrun and leave its processes orphaned.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export PET_SHUTDOWN_TIMEOUT=${SAVE_SECONDS:-300}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

started=$(mktemp)
trap 'rm -f "$started"' EXIT
"$python" -m torch.distributed.run --nnodes="$nnodes" --nproc-per-node="$nproc" --max-restarts=0 \
  "${rendezvous[@]}" -m clipx train "$@" &
torchrun=$!

# The shell passes signals on, then waits again; a terminal sends Ctrl-C to torchrun itself.
asked_to_stop=0
for signal in TERM HUP QUIT USR1; do
  trap "interrupted=1; asked_to_stop=1; kill -s $signal $torchrun 2>/dev/null || true" "$signal"
done
trap 'interrupted=1' INT
interrupted=1
while [[ $interrupted -eq 1 ]]; do
  interrupted=0
  code=0
  wait "$torchrun" || code=$?
done

# torchrun turns every failure into 1. Whether to start the run again is its own word, if that is of this start; if it
# has not got as far as a word when it was asked to stop, nothing was lost.
if [[ $code -ne 0 ]]; then
  if [[ $run_dir/status.json -nt $started ]]; then
    grep -q '"status": "again"' "$run_dir/status.json" && code=85
  elif [[ $asked_to_stop -eq 1 ]]; then
    code=85
  fi
fi
exit "$code"
