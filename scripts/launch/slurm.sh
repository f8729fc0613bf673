#!/usr/bin/env bash
#SBATCH --job-name=xlstm
#SBATCH --nodes=4
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8       # one process per GPU
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@300         # SIGTERM five minutes before the time is over: the run saves and ends with status 75
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
# Trains on several nodes with GPUs under SLURM, and goes on by itself when the time was too short or a node died.
#
#   sbatch --nodes=8 scripts/launch/slurm.sh configs/xlstm_1.3b.py /shared/runs/xlstm_1.3b [--config.mesh.fsdp=8 ...]
#
# The workdir must be on a file system that all nodes see. Processes find each other by SLURM's own variables.
set -euo pipefail
missing() { echo "error: $1; the top of ${BASH_SOURCE[0]} shows a call" >&2; exit 2; }
config=${1:-}; [ -n "$config" ] || missing "the first argument is a config, such as configs/xlstm_1.3b.py"
workdir=${2:-}; [ -n "$workdir" ] || missing "the second argument is the workdir, on a shared file system"
shift 2

export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}            # the rest is NCCL's
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_latency_hiding_scheduler=true"         # collectives beside products
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$(dirname "$workdir")/compilation_cache}

status=0
# shellcheck disable=SC2016  # the variables are those of each task
srun --kill-on-bad-exit=1 --label bash -c '
  status=0
  "${PYTHON:-python}" train.py "$@" || status=$?
  # 75 is a preemption, which all tasks share. Anything else names the task that died first; the runtime ends the others, mostly by SIGABRT.
  if [ "$status" -ne 0 ] && [ "$status" -ne 75 ]; then
    echo "task $SLURM_PROCID on $(hostname) ended with status $status at $(date -u +%H:%M:%S)" >&2
  fi
  exit "$status"' train --config="$config" --workdir="$workdir" "$@" || status=$?

case $status in
  0) echo "training is finished" ;;
  2) echo "a mistake in the call or in the data, see above; not started again" ;;
  130) echo "interrupted; not started again" ;;
  75) echo "preempted and saved; queued again"; scontrol requeue "$SLURM_JOB_ID" ;;
  *)
    # A machine failed. Three tries, so that a run that always dies at the same place doesn't go on for ever.
    if [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ]; then
      echo "ended with status $status; queued again from the newest checkpoint"
      scontrol requeue "$SLURM_JOB_ID"
    else
      echo "ended with status $status for the fourth time; not started again"
    fi ;;
esac
exit "$status"
