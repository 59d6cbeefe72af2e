#!/usr/bin/env bash
# For those who have an NVIDIA GPU and ten minutes: whether xpnet computes rightly there, and how fast. In a checkout:
#
#     pip install -e '.[cuda13,sklearn,plots]' && pip install --group test      (cuda12 for drivers older than 580)
#     scripts/gpu_check.sh [REPORT.txt]                          PYTHON=.venv/bin/python chooses the Python
#
# What fails is written down and the rest still runs; the exit status is 0 if all passed. Send the report either way.
set -uo pipefail

case ${1:-} in -h | --help)
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
    exit
    ;;
esac
report=$(realpath -m "${1:-gpu_check.txt}")
python=${PYTHON:-python3}
if [[ $python == */* ]]; then python=$(realpath -ms "$python"); fi
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
: > "$report" || exit 2
kernels_from_scratch=$(mktemp -d)
trap 'rm -rf "$kernels_from_scratch"' EXIT
export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1}
outcomes=() failed=0

say() { printf "%s\n" "$@" | tee -a "$report"; }

part() { # part NAME SECONDS COMMAND...: run it for that long at most, and write down what it says and how it ended
    local name=$1 limit=$2 began=$SECONDS outcome=passed status
    shift 2
    say "" "== $name: $*"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee -a "$report"
    status=${PIPESTATUS[0]}
    if ((status == 124 || status == 137)); then
        outcome="FAILED: not done after $limit s"
    elif ((status != 0)); then
        outcome="FAILED with status $status"
    fi
    [[ $outcome == passed ]] || failed=$((failed + 1))
    outcomes+=("$(printf '%-24s %4d s  %s' "$name" $((SECONDS - began)) "$outcome")")
}

leave_out() { # leave_out NAME REASON
    say "" "== $1: left out, $2"
    outcomes+=("$(printf '%-24s         left out: %s' "$1" "$2")")
}

say "xpnet $(git describe --always --dirty 2> /dev/null || echo 'not from git') on a GPU, $(date -u +%Y-%m-%dT%H:%MZ)"
part driver 30 nvidia-smi
part device 120 "$python" scripts/gpu_check.py device
part kernels 300 "$python" -m pytest --backend=cupy -q -p no:cacheprovider tests/kernels/cuda

digits=("$python" scripts/train_digits.py --backend)
part "digits, cold" 300 env CUPY_CACHE_DIR="$kernels_from_scratch" "${digits[@]}" cupy
part "digits, warm" 120 env CUPY_CACHE_DIR="$kernels_from_scratch" "${digits[@]}" cupy
part "digits, NumPy" 120 "${digits[@]}" numpy

part waits 120 "$python" scripts/gpu_check.py waits
part bandwidth 120 "$python" scripts/gpu_check.py bandwidth

for tool in memcheck racecheck; do
    if command -v compute-sanitizer > /dev/null; then
        part $tool 300 compute-sanitizer --tool $tool --error-exitcode 1 "$python" scripts/gpu_check.py fit
    else
        leave_out $tool "compute-sanitizer, of the CUDA toolkit, is not here"
    fi
done

contestants=(xpnet-cupy products-cupy)
if "$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' 2> /dev/null; then
    contestants+=(torch-cuda)
else
    leave_out "PyTorch's times" "PyTorch with CUDA is not here"
fi
for case in seed mini large cnn28 gpt; do
    part "benchmark $case" 180 "$python" scripts/benchmark.py $case --turns 3 --contestants "${contestants[@]}"
done

part "rest of the suite" 900 "$python" -m pytest --backend=cupy -q -p no:cacheprovider --durations=10 \
    --ignore=tests/kernels/cuda

say "" "== outcomes" "${outcomes[@]}" "" "$failed failed; the report is in $report"
exit $((failed > 0))
