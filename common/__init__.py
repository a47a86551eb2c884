"""The machinery that every model folder shares: packages of modules of one concern each."""

import os
import sys
import time

if sys.version_info < (3, 10):  # noqa: UP036  in words, before an import fails on what an older Python cannot read
    print(
        f"error: this is Python {sys.version.split()[0]}, and Python 3.10 or newer is needed; "
        "install one, and start with it (the scripts in test/ take PYTHON=python3.12)",
        file=sys.stderr,
    )
    sys.exit(2)

# torch loads an installed Ascend plugin as soon as it is imported (since 2.5), and fails when CANN is not on
# the library path. The plugin is imported where an NPU is asked for or looked for: common/device/npu.py.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

STARTED = time.time()  # when this process began, all but the start of Python

IGNORE_INDEX = 255  # the label of pixels that count neither in a loss nor in a score, in every folder
