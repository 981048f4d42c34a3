#!/usr/bin/env bash
# Starts a run, or goes on with it, on one node or on several:
#
#   launch/torchrun.sh configs/vit_b32_cc12m_8xh100.yaml [overlay.yaml ...] [key=value ...]
#
# On several nodes, run the same line on each with NNODES and MASTER_ADDR set. What may be set, and what holds if not:
#
#   NPROC_PER_NODE  processes on this node                       its GPUs, or 1
#   NNODES          number of nodes, or a range: 2:4 is elastic  1
#   MASTER_ADDR     a node that all others reach                 (needed for more than one)
#   MASTER_PORT     a free port there                            29500
#   MAX_RESTARTS    times that torchrun restarts what failed     3 for a range, else 0: a scheduler's task
#   RUN_ID          names this start on all nodes                SLURM_JOB_ID, or clipx
#   SAVE_SECONDS    time to save after a signal                  300
#   PYTHON          interpreter                                  .venv/bin/python of this repository, or python3
#
# The first four may also have torchrun's own names (PET_NNODES ...), as Kubeflow Trainer sets them.
#
# Elastic: when a node is lost, those that stay go on from the last checkpoint. When one comes, all stop, save in the
# 30 s that torchrun gives them, and go on together. Every number of processes that can arise must divide
# global_batch_size. The node of MASTER_ADDR holds the rendezvous and must stay.
#
# Exit code: 0 complete; 85 saved and stopped on request, start it again; 2 bad input; else failed.
set -euo pipefail

if [[ $# -eq 0 ]]; then
  echo "usage: launch/torchrun.sh CONFIG.yaml [OVERLAY.yaml ...] [KEY=VALUE ...]" >&2
  exit 2
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3

# Stopped before anything was started, nothing is lost. (In a container, the first process hears only what it asks for.)
trap 'exit 85' TERM HUP QUIT USR1 USR2 XCPU

export PYTHONUTF8=1 # paths are bytes, and a terminal's locale need not be that of a node
# A mistake in the config is one line here instead of one per process; the run folder is needed at the end.
config=$("$python" -m clipx config "$@")
run_dir=$("$python" -m clipx.launching.run_folder <<<"$config")

nproc=${NPROC_PER_NODE:-${PET_NPROC_PER_NODE:-}}
nproc=${nproc:-$("$python" -c 'import torch; print(torch.cuda.device_count() or 1)')}
nnodes=${NNODES:-${PET_NNODES:-1}}
master=${MASTER_ADDR:-${PET_MASTER_ADDR:-}}
port=${MASTER_PORT:-${PET_MASTER_PORT:-29500}}
if [[ ! $nnodes =~ ^[1-9][0-9]*(:[1-9][0-9]*)?$ || ! $nproc =~ ^([1-9][0-9]*|gpu|auto|cpu)$ || ! $port =~ ^[0-9]+$ ]]; then
  echo "launch/torchrun.sh: NNODES=$nnodes NPROC_PER_NODE=$nproc MASTER_PORT=$port: expected numbers, 1 or more" >&2
  exit 2
fi
if [[ $nnodes == 1 ]]; then
  rendezvous=(--standalone)
elif [[ -z $master ]]; then
  echo "launch/torchrun.sh: MASTER_ADDR is not set: with NNODES=$nnodes, name a node that all others reach" >&2
  exit 2
else
  rendezvous=(--rdzv-backend=c10d --rdzv-endpoint="$master:$port"
    --rdzv-id="${RUN_ID:-${SLURM_JOB_ID:-clipx}}")
fi
# Where torchrun shares its store with the processes, a start finds the addresses of the one before in it, which nobody
# answers any more; and a node that comes later waits in vain for the store's own.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
if [[ $nnodes == *:* ]]; then restarts=3; else restarts=0; fi

# torchrun's options --signals-to-handle and --shutdown-timeout, as variables: a torch that lacks one passes over it.
# Unhandled, SIGUSR1 would kill torchrun and leave its processes orphaned.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2,SIGXCPU
export PET_SHUTDOWN_TIMEOUT=${SAVE_SECONDS:-300}
# A run that was asked to stop has not failed: torchrun must not start it again. Its word stands in status.json.
export CLIPX_EXIT_CODE_AGAIN=0
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

# Passes signals on to the processes, so that all nodes save and end together; its exit code is the run's.
# Under srun too, where Slurm signals torchrun itself as well: it waits for those who save, whatever torchrun does.
exec "$python" -m clipx.launching.supervise "$run_dir" \
  "$python" -m torch.distributed.run --nnodes="$nnodes" --nproc-per-node="$nproc" \
  --max-restarts="${MAX_RESTARTS:-$restarts}" "${rendezvous[@]}" -m clipx train "$@"
