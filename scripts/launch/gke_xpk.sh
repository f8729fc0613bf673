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
name=${1:?the first argument is a name for the job}
accelerator=${2:?the second argument is a slice type, such as v5p-128}
slices=${3:?the third argument is the number of slices}
config=${4:?the fourth argument is a config}
workdir=${5:?the fifth argument is the workdir, in a mounted bucket}
shift 5
: "${PROJECT:?}" "${ZONE:?}" "${CLUSTER:?}" "${IMAGE:?}"

# GKE sets TPU_WORKER_HOSTNAMES and, for several slices, MEGASCALE_*; jax finds the other processes by them. Status 75 (saved after SIGTERM)
# and a dead host both mean "start again"; a mistake in the call (2) must not, so it is turned into success after its message.
xpk workload create --project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER" --workload="$name" \
  --tpu-type="$accelerator" --num-slices="$slices" --docker-image="$IMAGE" --max-restarts=100 --priority=high \
  --env=JAX_NUM_PROCESSES=auto --env=JAX_COMPILATION_CACHE_DIR=/tmp/jax_cache \
  --command="python train.py --config=$config --workdir=$workdir $*; status=\$?; \
    [ \$status -eq 0 ] || echo \"host \$HOSTNAME ended with status \$status\" >&2; \
    [ \$status -ne 2 ] || exit 0; exit \$status"
echo "logs: xpk inspector --project=$PROJECT --zone=$ZONE --cluster=$CLUSTER --workload=$name"
