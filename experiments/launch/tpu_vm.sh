#!/usr/bin/env bash
# Runs one config on all hosts of a Cloud TPU slice: experiments/launch/tpu_vm.sh
#
# Once before, on the machine you sit at: gcloud auth login, and a slice that exists, with the
# checkout and its .venv (`pip install -e '.[data]' 'jax[tpu]'`) in DIRECTORY on every host.
set -euo pipefail

NAME=${NAME:-kdjax}                                # of the slice
ZONE=${ZONE:-us-central2-b}
PROJECT=${PROJECT:-$(gcloud config get-value project)}
DIRECTORY=${DIRECTORY:-kdjax}                      # the checkout, on every host
CONFIG=${CONFIG:-configs/mnist/plackett_luce.py}
WORKDIR=${WORKDIR:-/mnt/shared/runs/pl}            # on a file system that all hosts see
HEARTBEAT=${HEARTBEAT:-100}                        # seconds after which a silent host counts as lost

# printf %q: each word reaches the shell on the hosts as it is here.
command=$(printf '%q ' .venv/bin/python -m experiments.run \
  --config="$CONFIG" --workdir="$WORKDIR" --coordinator=auto --heartbeat="$HEARTBEAT" "$@")
exec gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --project="$PROJECT" \
  --worker=all --command="cd $(printf '%q' "$DIRECTORY") && exec $command"
