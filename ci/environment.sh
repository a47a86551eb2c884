# Sourced by quickstart.sh and test.sh: leaves in $python a Python that has every package named as an argument.
# The active environment is used when it has them; otherwise .venv is made in the repository and filled by pip.

use_environment() {
    local root missing
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "error: '$python' is missing or older than 3.10; install Python >= 3.10, or name one: PYTHON=python3.12" >&2
        exit 2
    fi
    missing=$(_missing "$python" "$@")
    if [[ -z "$missing" ]]; then
        return
    fi
    if [[ ! -x "$root/.venv/bin/python" ]]; then
        _make_venv "$root/.venv"
    fi
    python=$root/.venv/bin/python
    missing=$(_missing "$python" "$@")
    if [[ -n "$missing" ]]; then
        _check_room "$root" "$missing"
        echo "installing into .venv: $missing (a few minutes and some GB the first time)"
        # shellcheck disable=SC2086  the list is of separate words
        "$python" -m pip install --quiet --disable-pip-version-check $missing
    fi
}

# Prints the requirements that the Python $1 does not meet.
_missing() {
    local interpreter=$1
    shift
    "$interpreter" - "$@" <<'PYTHON'
import re
import sys
from importlib.metadata import PackageNotFoundError, version


def numbers(text):
    return [int(part) for part in re.findall(r"\d+", text)[:2]]


for requirement in sys.argv[1:]:
    name, _, least = requirement.partition(">=")
    try:
        installed = version(name)
        met = not least or numbers(installed) >= numbers(least)
    except PackageNotFoundError:
        met = False
    if not met:
        print(requirement, end=" ")
PYTHON
}

# torch with the libraries of CUDA is 6 GB once it is installed, and pip keeps the packages beside it meanwhile.
_check_room() {
    local free_kib
    [[ " $2" == *" torch"[\>\ ]* ]] || return 0
    free_kib=$(df -Pk "$1" | awk 'NR == 2 {print $4}')
    if ((free_kib < 10 << 20)); then
        echo "error: $((free_kib >> 20)) GiB free in $1; installing torch with CUDA needs 10: free some, or install" \
            "torch and torchvision for the CPU alone yourself, which are small, and start this again" >&2
        exit 2
    fi
}

# A torch that is there already is kept, with the plugin that belongs to it: the new environment sees it.
_make_venv() {
    echo "making the environment $1"
    local options=()
    if [[ -z $(_missing "$python" torch) ]]; then
        options=(--system-site-packages)
    fi
    if "$python" -m venv "${options[@]}" "$1" 2>/dev/null; then
        return
    fi
    rm -rf "$1"
    if [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null; then
        echo "Debian keeps venv in a package of its own: installing python3-venv"
        apt-get update -qq >/dev/null && apt-get install -y -qq python3-venv >/dev/null &&
            "$python" -m venv "${options[@]}" "$1" && return
    fi
    echo "error: '$python -m venv' does not work; install it first, on Debian: sudo apt-get install python3-venv" >&2
    exit 2
}
