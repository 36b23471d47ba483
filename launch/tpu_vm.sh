#!/usr/bin/env bash
# Trains on all workers of a TPU VM slice: the same command on every host, again after a preemption. Run it where gcloud
# is logged in; all arguments after the slice's name go to `var-jax train`.
#   ZONE=us-west4-a bash launch/tpu_vm.sh my-v5e-16 --config configs/imagenet256.py:d16 --workdir gs://bucket/d16
# Compiled programs are kept in WORKDIR/xla, which a bucket shares between all hosts and keeps when the slice is gone,
# unless JAX_COMPILATION_CACHE_DIR names another place.
# DIRECTORY (default var_jax) is where the repository and its .venv lie on every worker. A slice that is gone is made
# anew where CREATE holds what `gcloud compute tpus tpu-vm create` needs, and SETUP the command that installs:
#   CREATE="--accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot" SETUP="git clone ... && ..."
# Exit code: that of `var-jax train`, which is never 75 here.
set -uo pipefail
if [ $# -lt 3 ] || [ -z "${ZONE:-}" ]; then
  echo "usage: ZONE=Z [DIRECTORY=D] [CREATE=... SETUP=...] launch/tpu_vm.sh SLICE --config F --workdir D ..." >&2
  exit 2
fi
name=$1
shift
tpu() { gcloud compute tpus tpu-vm "$1" "$name" --zone="$ZONE" "${@:2}"; }
on_all_workers() { tpu ssh --worker=all --command="$1"; }
state() {
  local now
  if now=$(tpu describe --format='value(state)' 2>/dev/null); then echo "$now"; else echo GONE; fi
}

printf -v arguments ' %q' "$@"
workdir=
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    --workdir=*) workdir=${!i#*=} ;;
    --workdir)
      next=$((i + 1))
      workdir=${!next:-}
      ;;
  esac
done
printf -v programs '%q' "${JAX_COMPILATION_CACHE_DIR:-${workdir%/}/xla}"
# A worker whose connection broke may still be at it: the lock lets one start at a time on a host, and a run that lost
# its terminal ends with the next line that it prints.
train="cd ${DIRECTORY:-var_jax} && . .venv/bin/activate && flock --wait 600 --conflict-exit-code 1 /tmp/var-jax.lock"
train+=" env JAX_COMPILATION_CACHE_DIR=$programs python -m var_jax train$arguments"
while true; do
  now=$(state)
  case $now in
    READY) ;;
    CREATING | STARTING | RESTARTING | REPAIRING | REIMAGING)
      sleep "${POLL:-30}"
      continue
      ;;
    GONE | PREEMPTED | TERMINATED | STOPPED | FAILED)
      if [ -z "${CREATE:-}" ]; then
        echo "$name is $now; CREATE tells how to make it anew" >&2
        exit 1
      fi
      if [ "$now" != GONE ]; then tpu delete --quiet; fi
      read -ra create <<<"$CREATE"
      # No capacity for a spot slice is nothing unusual.
      if tpu create "${create[@]}" && [ -n "${SETUP:-}" ]; then on_all_workers "$SETUP" || exit 1; fi
      sleep "${POLL:-30}"
      continue
      ;;
    *)
      echo "$name is $now, which no start can follow" >&2
      exit 1
      ;;
  esac
  on_all_workers "$train"
  code=$?
  if [ "$code" -ne 0 ] && [ "$(state)" != READY ]; then
    echo "$name is gone; the run goes on where it was saved" >&2
  elif [ "$code" -ne 75 ]; then
    exit "$code"
  fi
  sleep "${POLL:-30}"
done
