#!/usr/bin/env bash
# Sets up Python and runs everything that must hold: lint, unit tests, and a user's walk through every folder.
set -euo pipefail
cd "$(dirname "$0")/.."
source ci/environment.sh
mapfile -t packages < <(grep -v '^#' common/requirements.txt)
use_environment "${packages[@]}" "pytest>=8" "ruff>=0.9"

"$python" -m ruff check .
"$python" -m ruff format --check .
for folder in */train.py; do
    "$python" ci/smoke.py "$(dirname "$folder")"
done
"$python" -m pytest "$@"
