#!/usr/bin/env bash
# Start a folder's train.py with the preset that the calling script is named after:
# <folder>/test/train_full_8p.sh runs <folder>/train.py --preset full_8p. All flags go to train.py as they are.
set -euo pipefail

script=$1
shift
folder=$(CDPATH='' cd -- "$(dirname "$script")/.." && pwd)
preset=$(basename "$script" .sh)

if [[ -e /dev/davinci_manager || -n "${ASCEND_HOME_PATH:-}" || -d /usr/local/Ascend || -d "${HOME:-}/Ascend" ]]; then
    source "$folder/env_npu.sh" || true # without CANN there are still CUDA and the CPU
fi

python=${PYTHON:-python3}
missing='import importlib.util, sys; print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))'
lacking=$("$python" -c "$missing" torch torchvision numpy PIL scipy tensorboardX tqdm)
if [[ -n $lacking ]]; then
    python=$folder/../.venv/bin/python # what ci/quickstart.sh sets up
    if [[ ! -x $python ]]; then
        echo "error: '${PYTHON:-python3}' lacks $lacking; pip install -r requirements.txt, or run ci/quickstart.sh first" >&2
        exit 2
    fi
fi
exec "$python" "$folder/train.py" --preset "${preset#train_}" "$@"
