"""The machinery that every model folder shares: flat modules of one concern each."""

import os

# torch loads an installed Ascend plugin as soon as it is imported (since 2.5), and fails when CANN is not on
# the library path. The plugin is imported where an NPU is asked for or looked for: common/device.py.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

IGNORE_INDEX = 255  # the label of pixels that count neither in a loss nor in a score, in every folder
