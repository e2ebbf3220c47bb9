#!/usr/bin/env bash
#SBATCH --job-name=latentune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
# One search on Slurm, from a folder that all nodes share and in which .venv has latentune:
#
#   sbatch docs/cluster/slurm.sh conv_autoencoder --dataset fashion-mnist --name far --trials 100
#
# Three minutes before the time is over the search is told to end, as Ctrl-C does; the same sbatch again continues it.
set -euo pipefail
source .venv/bin/activate
export LATENTUNE_RUNS_DIR=${LATENTUNE_RUNS_DIR:-$PWD/runs} RAY_USAGE_STATS_ENABLED=0

# A token of this job's own, in a file that this user alone can read; srun passes the variables on to the nodes.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$PWD/.ray-token-$SLURM_JOB_ID
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH")

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 10000)) # several jobs may share a node
size=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_PER_TASK:-0}" --block)

srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" \
    ray start --head --node-ip-address="$address" --port="$port" --include-dashboard=false "${size[@]}" &
if ((${#nodes[@]} > 1)); then
    rest=$(IFS=,; echo "${nodes[*]:1}")
    sleep 15 # the workers try for longer than the head takes
    srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --nodelist="$rest" \
        ray start --address="$address:$port" "${size[@]}" &
fi

until ray status --address="$address:$port" > /dev/null 2>&1; do sleep 2; done
latentune search "$@" --address "$address:$port" --quiet &
search=$!
trap 'kill -TERM $search; wait $search; rm -f "$RAY_AUTH_TOKEN_PATH"' TERM
wait $search
ended=$?
rm -f "$RAY_AUTH_TOKEN_PATH"
exit $ended # Slurm ends the two `ray start` with the job
