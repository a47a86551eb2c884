source "$(dirname "${BASH_SOURCE[0]}")/../common/env_npu.sh"
