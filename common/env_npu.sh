# Ascend environment for the shell that sources this file: source common/env_npu.sh
# It finds CANN, sets only what helps and only what is unset, and never ends the caller's shell.

_find_cann() {
    local install_path="" folder name
    if [[ -r /etc/Ascend/ascend_cann_install.info ]]; then
        install_path=$(sed -n 's/^Install_Path=//p' /etc/Ascend/ascend_cann_install.info | head -n 1)
    fi
    # newest layout first: CANN 9 has cann/, up to 8 ascend-toolkit/; nnae/ is the package for running only
    for folder in ${install_path:+"$install_path"} /usr/local/Ascend "${HOME:-}/Ascend"; do
        for name in cann ascend-toolkit nnae; do
            if [[ -r "$folder/$name/set_env.sh" ]]; then
                echo "$folder/$name/set_env.sh"
                return 0
            fi
        done
    done
    return 1
}

if [[ -n "${ASCEND_HOME_PATH:-}${ASCEND_TOOLKIT_HOME:-}" ]]; then
    : # CANN's set_env.sh has been sourced in this shell already
elif _cann=$(_find_cann); then
    _options=$-
    set +eu # CANN's script reads unset variables and may end in a non-zero state
    source "$_cann"
    [[ "$_options" != *e* ]] || set -e
    [[ "$_options" != *u* ]] || set -u
else
    echo "env_npu.sh: no CANN set_env.sh under /usr/local/Ascend or ~/Ascend; install CANN or source it yourself" >&2
fi
unset -f _find_cann
unset _cann _options

export TASK_QUEUE_ENABLE="${TASK_QUEUE_ENABLE:-2}"                       # two-level task queue: less work for the host
export HCCL_CONNECT_TIMEOUT="${HCCL_CONNECT_TIMEOUT:-1200}"              # seconds: ranks start unevenly on slow disks
export ASCEND_GLOBAL_LOG_LEVEL="${ASCEND_GLOBAL_LOG_LEVEL:-3}"           # errors only: more slows every operator down
export ASCEND_SLOG_PRINT_TO_STDOUT="${ASCEND_SLOG_PRINT_TO_STDOUT:-0}"   # CANN's log stays out of the training log
