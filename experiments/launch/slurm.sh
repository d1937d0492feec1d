#!/usr/bin/env bash
# Runs one config on several nodes under SLURM, from a checkout: sbatch experiments/launch/slurm.sh
#
# The settings of the job; on the command line of sbatch they can be changed (--nodes=4). More than
# one GPU a node: as many tasks a node as GPUs, each takes the one of its number.
#SBATCH --job-name=kdjax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# SIGTERM to every task, two minutes before the time is up: the run saves and stops.
#SBATCH --signal=TERM@120
set -euo pipefail

CONFIG=${CONFIG:-configs/mnist/plackett_luce.py}
WORKDIR=${WORKDIR:-$SLURM_SUBMIT_DIR/runs/pl}      # on a file system that all nodes see
HEARTBEAT=${HEARTBEAT:-100}                        # seconds after which a silent task counts as lost

cd "$SLURM_SUBMIT_DIR"
# --kill-on-bad-exit: when one task fails, SLURM ends the job instead of waiting for the others.
exec srun --kill-on-bad-exit=1 .venv/bin/python -m experiments.run \
  --config="$CONFIG" --workdir="$WORKDIR" --coordinator=auto --heartbeat="$HEARTBEAT" "$@"
