#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster through xpk, on several slices if asked; GKE starts it again after a preemption.
#
#   pip install xpk
#   PROJECT=my-project ZONE=us-east5-a CLUSTER=my-cluster IMAGE=us-docker.pkg.dev/my-project/xlstm/train:1 \
#     scripts/launch/gke_xpk.sh xlstm-1 v5p-128 2 configs/xlstm_1.3b.py /runs/xlstm_1.3b [--config.mesh.fsdp=64 ...]
#
# IMAGE holds this repository in its working directory and what `pip install '.[tpu]'` installs. /runs is a bucket that the cluster mounts
# (xpk storage attach). A new cluster: xpk cluster create --cluster=$CLUSTER --tpu-type=v5p-128 --num-slices=2 --spot
set -euo pipefail
missing() { echo "error: $1; the top of ${BASH_SOURCE[0]} shows a call" >&2; exit 2; }
name=${1:-}; [ -n "$name" ] || missing "the first argument is a name for the job"
accelerator=${2:-}; [ -n "$accelerator" ] || missing "the second argument is a slice type, such as v5p-128"
slices=${3:-}; [ -n "$slices" ] || missing "the third argument is the number of slices"
config=${4:-}; [ -n "$config" ] || missing "the fourth argument is a config"
workdir=${5:-}; [ -n "$workdir" ] || missing "the fifth argument is the workdir, in a mounted bucket"
shift 5
for variable in PROJECT ZONE CLUSTER IMAGE; do
  [ -n "${!variable:-}" ] || missing "$variable is not set"
done

# GKE sets TPU_WORKER_HOSTNAMES and, for several slices, MEGASCALE_*; jax finds the other processes by them. Status 75 (saved after SIGTERM)
# and a dead host both mean "start again"; a mistake in the call (2) and Ctrl-C (130) must not, so they are turned into success after their message.
xpk workload create --project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER" --workload="$name" \
  --tpu-type="$accelerator" --num-slices="$slices" --docker-image="$IMAGE" --max-restarts=100 --priority=high \
  --env=JAX_NUM_PROCESSES=auto --env=JAX_COMPILATION_CACHE_DIR=/tmp/jax_cache \
  --command="python train.py --config=$config --workdir=$workdir $*; status=\$?; \
    [ \$status -eq 0 ] || echo \"host \$HOSTNAME ended with status \$status\" >&2; \
    case \$status in 2|130) exit 0 ;; esac; exit \$status"
echo "logs: xpk inspector --project=$PROJECT --zone=$ZONE --cluster=$CLUSTER --workload=$name"
