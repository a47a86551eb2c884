# Sourced by quickstart.sh and test.sh: leaves in $python a Python that has every package named as an argument.
# The active environment is used when it has them; otherwise .venv is made in the repository and filled by pip.

use_environment() {
    local root venv missing
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
    venv=$root/.venv
    if [[ -n $(_missing "$venv/bin/python" "$@" 2>&1) ]] && ! _has_pip "$venv/bin/python"; then
        _make_venv "$venv" "$missing"
    fi
    python=$venv/bin/python
    missing=$(_missing "$python" "$@")
    if [[ -n "$missing" ]]; then
        _check_room "$root" "$missing"
        echo "installing into .venv: $missing (a few minutes and some GB the first time)"
        _install "$missing"
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

# Whether torch is among the requirements $1.
_names_torch() {
    [[ " $1 " == *" torch"[\>\ ]* ]]
}

# Whether the Python $1 has a whole pip: RECORD, which lists the files of a package, is the last that is written.
_has_pip() {
    "$1" -c 'import sys; from importlib.metadata import files; sys.exit(not files("pip"))' 2>/dev/null
}

# torch with the libraries of CUDA is 6 GB once it is installed, and pip keeps the packages beside it meanwhile.
_check_room() {
    local free_kib
    _names_torch "$2" || return 0
    free_kib=$(df -Pk "$1" | awk 'NR == 2 {print $4}')
    if ((free_kib < 10 << 20)); then
        echo "error: $((free_kib >> 20)) GiB free in $1; installing torch with CUDA needs 10: free some, or install" \
            "torch and torchvision for the CPU alone yourself, which are small, and start this again" >&2
        exit 2
    fi
}

# Installs the requirements $1. A torch that is there stays as it is: for the newest torchvision, pip would replace it,
# and the plugin that belongs to it would no longer run.
_install() {
    local kept=''
    if ! _names_torch "$1"; then
        kept=torch==$("$python" -c 'from importlib.metadata import version; print(version("torch"))')
    fi
    # shellcheck disable=SC2086  the list is of separate words
    "$python" -m pip install --quiet --disable-pip-version-check --constraint <(echo "$kept") $1
}

# Makes the environment $1 for a Python that lacks the requirements $2, in place of one that was left unfinished.
_make_venv() {
    if [[ -e $1 ]] && ! _is_unfinished "$1"; then
        echo "error: '$1' has no pip and is not one that was left unfinished; install pip into it, or remove it" >&2
        exit 2
    fi
    echo "making the environment $1"
    if ! "$python" -m venv --clear "$1" 2>/dev/null; then
        rm -rf "$1"
        if [[ $(id -u) -ne 0 ]] || ! command -v apt-get >/dev/null || ! _make_venv_of_debian "$1"; then
            echo "error: '$python -m venv' does not work; install it first," \
                "on Debian: sudo apt-get install python3-venv" >&2
            exit 2
        fi
    fi
    if ! _names_torch "$2"; then
        _share_packages "$1"
    fi
}

_make_venv_of_debian() {
    echo "Debian keeps venv in a package of its own: installing python3-venv"
    apt-get update -qq >/dev/null && apt-get install -y -qq python3-venv >/dev/null && "$python" -m venv "$1"
}

# Whether $1 is what a start leaves that was ended while it made an environment: no package but pip's own.
_is_unfinished() {
    if [[ -f $1/pyvenv.cfg ]]; then
        [[ -z $(find -H "$1" -maxdepth 4 -name '*.dist-info' ! -name 'pip-*' ! -name 'setuptools-*' -print -quit) ]]
    else
        [[ -z $(find -H "$1" -type f -print -quit) ]]
    fi
}

# Lets the environment $1 see what $python sees, which may be in an environment too: a torch that already exists is
# kept, with the plugin that belongs to it. --system-site-packages would show the packages of the machine instead.
_share_packages() {
    local packages
    packages=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$python" - >"$packages/active_environment.pth" <<'PYTHON'
import site

folders = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
for folder in folders + site.getsitepackages():
    print(f"import site; site.addsitedir({folder!r})")  # with the .pth files in it, as of packages installed with -e
PYTHON
}
