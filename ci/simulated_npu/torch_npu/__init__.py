"""Stand-in for Ascend's plugin of this name, on the simulated device of `npu_simulation`."""

import sys

import torch
from npu_simulation import device, optim, profiler

__version__ = "2.13.0"
device.register()
npu = torch.npu
sys.modules |= {
    "torch_npu.npu": npu,
    "torch_npu.npu.amp": npu.amp,
    "torch_npu.optim": optim,
    "torch_npu.profiler": profiler,
}


def _autoload() -> None:
    """torch calls this when it is imported; importing this module was all there is to do."""
