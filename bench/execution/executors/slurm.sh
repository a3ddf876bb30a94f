#!/bin/bash
# Template of a SLURM batch script: a Dask scheduler and the command of a grid on the first node, and
# by srun a worker for each task of the allocation, each with a GPU of its own. Copy and edit it,
# then submit it in a folder that all nodes see, with the arguments of bench.run:
#
#   sbatch slurm.sh priors --tracking-uri http://10.0.0.1:5000
#
# The address is that of an `mlflow server`; on one node it can be left out. Two minutes before the
# time is over the grid saves its state: submitted again, the same script continues from there.
#
# sbatch: https://slurm.schedmd.com/sbatch.html
# Dask: https://docs.dask.org/en/stable/deploying-hpc.html
#
#SBATCH --job-name=flowvae
#SBATCH --nodes=2
#SBATCH --ntasks=8              # workers in all
#SBATCH --gpus-per-task=1       # on CPUs: delete this line, and --resources GPU=1 below
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120     # s before the end
#SBATCH --open-mode=append
##SBATCH --partition=gpu        # further options: remove one #
set -uo pipefail
# source venv/bin/activate      # the environment in which flowvae is installed

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:?submit this script with sbatch}
file=$PWD/scheduler-${SLURM_JOB_ID:?}.json
dask scheduler --port 0 --scheduler-file "$file" --no-dashboard &
scheduler=$!
trap 'kill $scheduler; rm -f "$file"' EXIT
until [ -s "$file" ]; do
    kill -0 $scheduler || exit 1
    sleep 1
done
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" dask worker --scheduler-file "$file" --nthreads 1 \
    --memory-limit 0 --no-dashboard --local-directory "${TMPDIR:-/tmp}" --death-timeout 120 \
    --resources GPU=1 &

python -m bench.run "$@" --executor dask --workers "${SLURM_NTASKS:?}" --scheduler-file "$file" &
run=$!
trap 'kill -USR1 $run' USR1
trap 'kill -TERM $run' TERM
wait $run; status=$?
while kill -0 $run 2>/dev/null; do  # a signal ended the wait, not the grid
    wait $run; status=$?
done
exit $status
