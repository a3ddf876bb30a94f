#!/usr/bin/env bash
# Reference comparison on one device: tests, benchmarks, experiments and audits, in one folder with
# one MLflow store, most telling first.
#
#   bash experiments/reference.sh [DEVICE [FOLDER [STAGE...]]]  # cuda, results/local/reference, all
#   TINY=1 bash experiments/reference.sh cpu /tmp/rehearsal     # rehearsal: every stage, tiny
#
# The same command continues after an interruption: grids and audits resume; tests, races and sweeps
# are repeated unless other stages are named. A stage that fails does not stop the following ones;
# the exit status is then 1. The output of each stage is also in FOLDER/logs.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
device=${1:-cuda} folder=${2:-results/local/reference} named=("${@:3}") summary=() failed=0
FLOWVAE_DATA=$(realpath -m "${FLOWVAE_DATA:-data}")  # stays the same folder after cd
export FLOWVAE_DATA PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
unset MLFLOW_TRACKING_URI
mkdir -p "$folder/logs" && cd "$folder" || exit 2

fast='gauss,diagonal,gmm,gmm[covariance=diagonal],vamp,vamp[start=images],exemplar,nice,realnvp'
fast+=',maf,iaf,nsf,nsf[coupling=true]'
slow='gauss,lars,sospf,bpf,naf,unaf,cnf'
scored=(--nll-precision tf32 --nll-samples 5000)
races='(training_race and (float32 or (gauss and tf32))) or (nll and float32 and gauss)'
races+=' or (elbo_step and z16)'  # the benchmarks of the speed table
processes=$(nproc --ignore=1)
processes=$((processes < 14 ? processes : 14))  # each keeps a context on the device

# Options of each kind of command. They come last, where TINY overrides what stands before.
tests=(--device "$device") bench=(--device "$device") sweep=(--device "$device")
grid=(--device "$device") audit=(--device "$device")
# One job computes while others read, write and draw; speeds measured so are marked as shared.
[[ $device == cuda* ]] && grid+=(--executor local --per-gpu 3)
if [[ -n ${TINY:-} ]]; then
    tests+=(-n 0 -k test_linear) bench+=(-k gauss-z2-forward)
    sweep+=(--net 'mlp[hidden=8]' --priors gauss --latents 2 --batches 16 --stacks 1)
    sweep+=(--seconds-per-point 0.01 --precision float32)
    grid+=(--dataset digits --nets 'mlp[hidden=8]' --priors 'gauss,maf[hidden=8]' --latents 2,16)
    grid+=(--seeds 0:2 --epochs 2 --warmup 0)
    grid+=(--nll-samples 20 --nll-images 100 --nll-precision float32)
    audit+=(--images 4 --chains 2 --temperatures 4 --leapfrogs 2 --samples 10)
fi

finish() {
    printf '\n'
    ((${#summary[@]})) && printf '%s\n' "${summary[@]}"
    exit "$1"
}
stage() {  # NAME COMMAND...: runs the command unless only other stages are named
    local name=$1 start=$SECONDS status
    shift
    ((${#named[@]} == 0)) || [[ " ${named[*]} " == *" $name "* ]] || return 0
    printf '\n== %s: %s\n' "$name" "$*"
    "$@" 2>&1 | tee -ai "logs/$name.txt"
    status=${PIPESTATUS[0]}
    ((status)) && failed=1
    summary+=("$name: exit status $status, $((SECONDS - start)) s")
    ((status == 130)) && finish 130  # Ctrl-C
    return 0
}
run() { python -m bench.run "$@" "${grid[@]}"; }
sweep() {  # PRECISION
    python -m bench.studies.step_time --latents 16 --batches 256 --stacks 1,2,4,8,16,32 --precision "$1" \
        --seconds-per-point 0.4 --out "results/local/sweep-$1" "${sweep[@]}"
}
races() {
    python -m pytest "$root"/bench/benchmarks/test_{elbo_step,evaluation}.py -p no:cacheprovider \
        --benchmark-enable --benchmark-json speed.json -k "$races" "${bench[@]}" &&
        python -m bench.benchmarks speed.json
}
audit() {  # EXPERIMENT CONDITION [OPTION...]: audits the complete trials that meet the condition
    local ids
    ids=$(python -c 'import sys, pandas
trials = pandas.read_csv(f"results/local/{sys.argv[1]}/trials.csv").query(sys.argv[2])
print(*trials.loc[trials["status"] == "complete", "run_id"])' "$1" "$2") || return 1
    [[ -n $ids ]] || { echo "no complete trial of $1 has $2"; return 1; }
    python -m bench.audit $ids "${@:3}" "${audit[@]}"
}

stage tests python -m pytest -vv -p no:cacheprovider -n "$processes" --maxprocesses "$processes" \
    "$root"/tests/library/{evaluation,models,nets,numerics,priors,training} \
    "$root"/tests/library/test_checkpoint.py "$root"/tests/harness/system/test_memory.py "${tests[@]}"
stage races races
stage sweep sweep float32
stage sweep-tf32 sweep tf32
stage tutorial run tutorial --seeds 0:5 --nll-samples 5000
stage latents run latents "${scored[@]}"  # up to D = 64
stage latents-exact audit latents 'latent == 2' --images 20  # also by quadrature
stage latents-audit audit latents 'latent == 16 and seed == 0'
stage priors run priors --priors "$fast" "${scored[@]}" --nll-images 1000
stage gated run gated --nll-precision tf32
stage priors-slow run priors --priors "$slow" "${scored[@]}" --nll-images 1000

((${#named[@]} == 0 || ${#summary[@]} == ${#named[@]})) || {
    echo "error: no such stage among: ${named[*]}" >&2
    finish 2
}
finish $failed
