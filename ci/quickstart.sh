#!/usr/bin/env bash
# From a fresh machine to a trained network: sets up Python, draws the embedded sample, trains, evaluates, draws pictures.
#   bash ci/quickstart.sh [MODEL] [flags of train.py]
set -euo pipefail
cd "$(dirname "$0")/.."
source ci/environment.sh
mapfile -t packages < <(grep -v '^#' common/requirements.txt)
use_environment "${packages[@]}"
if [[ $python == "$PWD/.venv/bin/python" ]]; then # made for this repository, and so given what report.html needs
    mapfile -t report < <(grep -v '^#' common/requirements-report.txt)
    use_environment "${packages[@]}" "${report[@]}" || true # the run says how to get it
fi
exec "$python" ci/quickstart.py "$@"
