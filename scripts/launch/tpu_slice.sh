#!/usr/bin/env bash
# Creates a TPU slice (a queued resource), trains on all its hosts, and deletes it when the run is finished.
#
#   PROJECT=my-project ZONE=us-east5-a BUCKET=gs://my-bucket \
#     scripts/launch/tpu_slice.sh xlstm-1 v5p-128 configs/xlstm_1.3b.py xlstm_1.3b [--config.mesh.fsdp=64 ...]
#
# The workdir is BUCKET mounted by gcsfuse under /mnt/runs on every host. Needs gcloud, logged in, and a quota for the slice.
set -euo pipefail
missing() { echo "error: $1; the top of ${BASH_SOURCE[0]} shows a call" >&2; exit 2; }
name=${1:-}; [ -n "$name" ] || missing "the first argument is a name for the slice"
accelerator=${2:-}; [ -n "$accelerator" ] || missing "the second argument is a slice type, such as v5p-128 or v5litepod-64"
config=${3:-}; [ -n "$config" ] || missing "the third argument is a config"
run=${4:-}; [ -n "$run" ] || missing "the fourth argument is the name of the run, a folder in the bucket"
shift 4
for variable in PROJECT ZONE BUCKET; do
  [ -n "${!variable:-}" ] || missing "$variable is not set"
done
case $accelerator in
  v5p-*) version=v2-alpha-tpuv5 ;;
  v5litepod-*) version=v2-alpha-tpuv5-lite ;;
  v6e-*) version=v2-alpha-tpuv6e ;;
  *) echo "unknown slice type $accelerator" >&2; exit 2 ;;
esac
at=(--project="$PROJECT" --zone="$ZONE")

on_all_hosts() { gcloud compute tpus tpu-vm ssh "$name" "${at[@]}" --worker=all --command="$1"; }

create() {
  gcloud compute tpus queued-resources create "$name" "${at[@]}" --node-id="$name" --accelerator-type="$accelerator" \
    --runtime-version="$version" --spot
  until gcloud compute tpus queued-resources describe "$name" "${at[@]}" --format='value(state.state)' | grep -q ACTIVE; do sleep 30; done
  tar czf /tmp/source.tgz --exclude=.git --exclude='.venv*' --exclude=runs .
  gcloud compute tpus tpu-vm scp /tmp/source.tgz "$name": "${at[@]}" --worker=all
  on_all_hosts "mkdir -p xlstm && tar xzf source.tgz -C xlstm && python3 -m venv .venv && .venv/bin/pip install -q './xlstm[tpu]'
    sudo mkdir -p /mnt/runs && sudo chown \$USER /mnt/runs && gcsfuse --implicit-dirs ${BUCKET#gs://} /mnt/runs"
}

# JAX_NUM_PROCESSES=auto: jax asks the machine's metadata for the other hosts. The first failure ends the loop below on all hosts.
train="cd xlstm && JAX_NUM_PROCESSES=auto JAX_COMPILATION_CACHE_DIR=/tmp/jax_cache ../.venv/bin/python train.py \
  --config=$config --workdir=/mnt/runs/$run $*"

while true; do
  gcloud compute tpus tpu-vm describe "$name" "${at[@]}" >/dev/null 2>&1 || create
  status=0
  on_all_hosts "$train" || status=$?
  case $status in
    0) break ;;
    2) echo "a mistake in the call or in the data, see above" >&2; exit 2 ;;
    130) echo "interrupted; not started again, and the slice is still there" >&2; exit 130 ;;
    75) echo "preempted and saved; waiting for another slice" >&2 ;;
    *) echo "ended with status $status (gcloud names the worker above); starting again from the newest checkpoint" >&2 ;;
  esac
  gcloud compute tpus queued-resources delete "$name" "${at[@]}" --force --quiet || true
  sleep 60
done
gcloud compute tpus queued-resources delete "$name" "${at[@]}" --force --quiet
