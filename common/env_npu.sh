# Ascend environment for the bash that sources this file: source common/env_npu.sh
# It finds CANN and sets what helps today, and only what is unset. Without CANN it says so in one line, sets nothing and
# returns 1; a script with `set -e` that goes on without an NPU adds `|| true`, as launch.sh does.

# Run by `bash`, as the installing env_set.sh of an original was, it would set what ends with that bash.
if [[ "${BASH_SOURCE[-1]}" == "$0" && "${0##*/}" == env_*.sh ]]; then
    echo "${0##*/}: source me in the shell that trains: source ${0##*/}; to install the packages: python3 -m pip install" \
        "-r requirements.txt" >&2
    exit 2
fi

# Prints where CANN's set_env.sh is, newest layout first: CANN 8.5 and newer have cann/, older ones ascend-toolkit/;
# nnae/ is the package for running only. The path that CANN's installer has written down goes before the usual ones.
_find_cann() {
    local told="" root name chosen="${ASCEND_HOME_PATH:-${ASCEND_TOOLKIT_HOME:-}}"
    if [[ -n "$chosen" ]]; then
        for root in "$chosen" "${chosen%/*}"; do # before CANN 8.5 the script lies beside the home
            if [[ -r "$root/set_env.sh" ]]; then
                echo "$root/set_env.sh"
                return
            fi
        done
        return
    fi
    if [[ -r /etc/Ascend/ascend_cann_install.info ]]; then
        told=$(sed -n '/^Install_Path=/{s///p;q}' /etc/Ascend/ascend_cann_install.info)
    fi
    for root in ${told:+"$told"} /usr/local/Ascend "${HOME:-}/Ascend"; do
        for name in cann ascend-toolkit nnae; do
            if [[ -r "$root/$name/set_env.sh" ]]; then
                echo "$root/$name/set_env.sh"
                return
            fi
        done
        if [[ "$root" == "$told" && -r "$told/set_env.sh" ]]; then # that path may be the folder of CANN itself
            echo "$told/set_env.sh"
            return
        fi
    done
}

# Prints what torch_npu looks for when it is imported, and does not find; common/device/npu.py has the same.
_cann_lacks() {
    local lacking="" home="${ASCEND_HOME_PATH:-${ASCEND_TOOLKIT_HOME:-}}" name
    if [[ -z "${ASCEND_OPP_PATH:-}" ]]; then
        lacking=", ASCEND_OPP_PATH (not set)"
    elif [[ ! -d "$ASCEND_OPP_PATH" ]]; then
        lacking=", ASCEND_OPP_PATH=$ASCEND_OPP_PATH (no such folder)"
    fi
    for name in runtime compiler; do
        [[ -d "$home/$name" ]] || lacking+=", $home/$name (no such folder)"
    done
    echo "${lacking#, }"
}

_cann_problem=""
if [[ -z "${ASCEND_HOME_PATH:-}${ASCEND_TOOLKIT_HOME:-}" || -z "${ASCEND_OPP_PATH:-}" ]]; then # else it has been sourced
    _cann_options=$(set +o)
    [[ $- != *e* ]] || _cann_options+=$'\nset -e' # which $( ) turns off, so that the line above does not see it
    set +eu                                       # CANN's script reads unset variables, and steps of it may fail
    _cann=$(_find_cann)
    # tried in a shell of its own first: of some versions of CANN the script ends the shell when a step fails
    _cann_found=$(
        source "${_cann:-/dev/null}" >/dev/null 2>&1
        [[ -z "${ASCEND_HOME_PATH:-}${ASCEND_TOOLKIT_HOME:-}" ]] || echo "home: $(_cann_lacks)"
    )
    _cann_lacking="${_cann_found#home: }"
    if [[ -z "$_cann$_cann_found" ]]; then
        _cann_problem="no CANN under /usr/local/Ascend or ~/Ascend; install CANN, or source its set_env.sh before"
    elif [[ -z "$_cann_found" ]]; then
        _cann_problem="$_cann does not set ASCEND_HOME_PATH; source it in a shell to see why, or install CANN anew"
    elif [[ -z "$_cann_lacking" ]]; then
        source "$_cann"
    fi
    eval "$_cann_options" # the options of the shell as they were
else
    _cann_lacking=$(_cann_lacks)
fi
if [[ -n "$_cann_lacking" ]]; then
    _cann_problem="torch_npu does not find what it needs of CANN: $_cann_lacking; "
    [[ -n "${_cann:-}" ]] || _cann_problem+="source its set_env.sh in this shell, or "
    _cann_problem+="install CANN's toolkit and the operators of the chip (ops, kernels) anew"
fi
unset -f _find_cann _cann_lacks
unset _cann _cann_found _cann_lacking _cann_options
if [[ -n "$_cann_problem" ]]; then
    echo "env_npu.sh: $_cann_problem" >&2
    unset _cann_problem
    return 1
fi
unset _cann_problem

export TASK_QUEUE_ENABLE="${TASK_QUEUE_ENABLE:-2}"                     # two threads of the host prepare operators
export HCCL_CONNECT_TIMEOUT="${HCCL_CONNECT_TIMEOUT:-1200}"            # seconds; by itself 120, little for slow disks
export ASCEND_GLOBAL_LOG_LEVEL="${ASCEND_GLOBAL_LOG_LEVEL:-3}"         # errors only: more slows every operator down
export ASCEND_SLOG_PRINT_TO_STDOUT="${ASCEND_SLOG_PRINT_TO_STDOUT:-0}" # CANN's log stays out of the training log
