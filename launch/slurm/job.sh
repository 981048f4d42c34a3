# Read by train.sbatch and torchrun.sbatch: what a job needs to know, and `keep_going`, which queues it again until its
# run is complete. What may be set in the environment of sbatch, and what holds if not:
#
#   PYTHON          interpreter                                   .venv/bin/python of this repository, or python3
#   MAX_FAILURES    failed starts in a row after which it ends    5
#   LONG_SECONDS    a start that lasted so long broke the row     3600
#
# A failed start is one that ended with an error: a rank died, or was stuck, or the storage was gone. Bad input ends the
# job at once (exit code 2): a second start would find it again.
#
# shellcheck shell=bash disable=SC2034,SC2154

if [[ $# -eq 0 ]]; then
  echo "usage: sbatch [options] launch/slurm/NAME.sbatch CONFIG.yaml [OVERLAY.yaml ...] [key=value ...]" >&2
  exit 2
fi

python=${PYTHON:-$here/../../.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3

export PYTHONUTF8=1 # paths are bytes, and a terminal's locale need not be that of a node
# A mistake in the config is one line here instead of one per task; the run folder is needed at the end.
config=$("$python" -m clipx config "$@")
run_dir=$("$python" -m clipx.launching.run_folder <<<"$config")

# Of each node: the GPUs asked for, which may be fewer than an exclusive node has (and stand there as `h100:8`), else
# those of this node, which all are taken to be like.
gpus=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
gpus=${gpus##*:}
cpus=$SLURM_CPUS_ON_NODE
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

# The first node is where the ranks meet, under the address that Slurm itself uses.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=$(scontrol --oneliner show node "${nodes[0]}" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT

# keep_going COMMAND ...: runs the command and ends the job as the run says.
keep_going() {
  # status.json of an earlier start is no word of this one. Its time is compared with its own, not with a node's clock.
  local status=$run_dir/status.json before word='' code=0
  before=$(mktemp)
  touch -r "$status" "$before" 2>/dev/null || rm "$before"

  run "$@" || code=$?

  if [[ $status -nt $before ]]; then word=$(sed -n 's/.*"status": "\([a-z]*\)".*/\1/p' "$status"); fi
  rm -f "$before"
  case $word:$code in
    complete:* | :0) exit 0 ;;
    again:* | :85)
      rm -f "$run_dir/failed_starts"
      if grep -qs '"reason": "the file STOP"' "$status"; then exit 0; fi
      queue_again "saved and stopped on request" 85
      ;;
    failed:*) # torchrun turns 2 into 1
      if grep -q '"exit_code": 2' "$status"; then exit 2; fi
      after_failure "$code" "failed with exit code $code"
      ;;
    *:2) exit 2 ;;
    *) after_failure "$code" "failed with exit code $code" ;;
  esac
}

# run COMMAND ...: its exit code. Slurm signals the tasks itself; USR1 to the shell (`--signal=B:USR1@300`, `scancel
# --full`) is passed on by srun. TERM comes to the shell when the job is to end within seconds (KillWait in slurm.conf),
# and srun takes longer than that.
run() {
  local interrupted=1 code=0 running
  "$@" &
  running=$!
  trap 'interrupted=1; kill -s USR1 "$running" 2>/dev/null || true' USR1
  trap 'interrupted=1; if [[ $(job_field Reason) == TimeLimit ]]; then after_failure 143 "out of time"; fi' TERM
  while [[ $interrupted -eq 1 ]]; do
    interrupted=0
    code=0
    wait "$running" || code=$?
  done
  return "$code"
}

# after_failure CODE WHY: queues the job again, unless it keeps failing.
after_failure() {
  local record=$run_dir/failed_starts line failures
  line="job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}: $2, after $SECONDS s"
  if [[ $SECONDS -ge ${LONG_SECONDS:-3600} ]]; then rm -f "$record"; fi
  # what cannot be counted is not repeated
  mkdir -p -- "$run_dir" && echo "$line" >>"$record" || exit "$1"
  failures=$(grep -c "^job $SLURM_JOB_ID," "$record")
  if [[ $failures -ge ${MAX_FAILURES:-5} ]]; then
    echo "clipx: $line: $failures failed starts in a row, and MAX_FAILURES=${MAX_FAILURES:-5}; the job ends" >&2
    exit "$1"
  fi
  queue_again "$2" "$1"
}

# queue_again WHY CODE: the same job, in the same log; ends with CODE where that cannot be.
queue_again() {
  case $(job_field JobState):$(job_field Reason) in
    *:TimeLimit) ;; # Slurm ends it, and leaves it at that
    COMPLETING:* | CANCELLED:*) exit "$2" ;; # by a person
    PENDING:* | REQUEUE*:* | PREEMPTED:* | NODE_FAIL:*) exit "$2" ;; # Slurm queues it again itself
  esac
  echo "clipx: $1; job $SLURM_JOB_ID is queued again" >&2
  scontrol requeue "$SLURM_JOB_ID" || exit "$2"
  exit 0
}

# job_field NAME: what Slurm says of this job.
job_field() {
  scontrol --oneliner show job "$SLURM_JOB_ID" | sed -n "s/.* $1=\([^ ]*\).*/\1/p"
}
