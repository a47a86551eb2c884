#!/usr/bin/env bash
# Sets up Python and runs everything that must hold: lint, unit tests, and a user's walk through every folder.
# bash ci/test.sh [--npu] [words for pytest]; --npu: demand the check of our names in the real torch_npu, and download it
set -euo pipefail
if [[ ${1:-} == --npu ]]; then
    export TORCH_NPU_NAMES=demanded
    shift
fi
cd "$(dirname "$0")/.."
source ci/environment.sh
mapfile -t packages < <(grep -hv '^#' common/requirements.txt common/requirements-export.txt \
    common/requirements-report.txt)
use_environment "${packages[@]}" "pytest>=8" "pytest-xdist>=3.7" "ruff>=0.9"

"$python" -m ruff check .
"$python" -m ruff format --check .

# Each of these keeps one core busy: a file of tests stays in one process, and the walks run beside them. Long files
# come first (ci/tests/conftest.py).
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
walk_log=$(mktemp)
folders=(*/train.py)
"$python" ci/smoke.py "${folders[@]%/train.py}" >"$walk_log" 2>&1 &
walk=$!
trap 'pkill -P "$walk" || true; kill "$walk" 2>/dev/null || true; rm -f "$walk_log"' EXIT
status=0
"$python" -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@" || status=$?
wait "$walk" || status=$?
cat "$walk_log"
exit "$status"
