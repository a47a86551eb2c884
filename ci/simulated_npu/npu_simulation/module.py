"""The module torch.npu."""

import contextlib
import os
import types

import torch

from npu_simulation import amp, kernels, rules, streams
from npu_simulation.memory import ACCOUNT

MEMORY_BYTES = 64 << 30
# SoC -> number in the plugin's list
SOC_VERSIONS = {
    "Ascend910A": 102, "Ascend910ProB": 103, "Ascend910B": 104, "Ascend310P3": 202, "Ascend910B1": 220,
    "Ascend910B3": 223, "Ascend910_9391": 250,
}  # fmt: skip


class _Settings:
    """What a program has asked for."""

    device, compile_mode, options = 0, {}, {}


def _index(device) -> int:
    if device is None:
        return _Settings.device
    index = device if isinstance(device, int) else torch.device(device).index
    return _Settings.device if index is None else index


class device(contextlib.ContextDecorator):  # noqa: N801  torch.npu.device
    """Context in which another device is the current one."""

    def __init__(self, device):
        self.index = _index(device)

    def __enter__(self):
        self._outer, _Settings.device = _Settings.device, self.index

    def __exit__(self, *_):
        _Settings.device = self._outer


def device_count() -> int:
    devices = int(os.environ.get("SIMULATED_NPU_DEVICES", "8"))
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    return devices if visible is None else min(devices, len(visible.split(",")))


def is_available() -> bool:
    return device_count() > 0


def set_device(device) -> None:
    index = _index(device)
    if not 0 <= index < device_count():
        raise RuntimeError(f"Invalid device ID {index}: there are {device_count()} devices (ERR00001)")
    kernels.touch()
    _Settings.device = index


def get_device_properties(device=None) -> types.SimpleNamespace:
    return types.SimpleNamespace(name=rules.SOC, total_memory=MEMORY_BYTES, cube_core_num=20, vector_core_num=40)


class _WriteOnly:
    """torch.npu.config: allow_internal_format can be set and not be read."""

    _allow_internal_format = True

    def _set(self, value: bool) -> None:
        _WriteOnly._allow_internal_format = bool(value)

    allow_internal_format = property(None, _set)


def set_compile_mode(**modes) -> None:
    if unknown := modes.keys() - {"jit_compile"}:
        raise ValueError(f"no compile mode {sorted(unknown)}")
    _Settings.compile_mode = modes


def make() -> types.ModuleType:
    """The module, with everything that a program may call."""
    module = types.ModuleType("torch.npu")
    contents = {
        "is_available": is_available,
        "is_initialized": lambda: kernels.Device.used,
        "init": kernels.touch,
        "_lazy_init": kernels.touch,
        "_is_in_bad_fork": lambda: kernels.Device.forked,
        "device_count": device_count,
        "current_device": lambda: _Settings.device,
        "set_device": set_device,
        "device": device,
        "get_device_name": lambda device=None: rules.SOC,
        "get_device_properties": get_device_properties,
        "get_device_capability": lambda device=None: None,
        "get_soc_version": lambda: SOC_VERSIONS[rules.SOC],
        "is_bf16_supported": lambda: rules.BFLOAT16,
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16, torch.float32],
        # streams
        "Stream": streams.Stream,
        "Event": streams.Event,
        "stream": streams.stream,
        "current_stream": streams.current_stream,
        "default_stream": streams.default_stream,
        "set_stream": streams.set_stream,
        "synchronize": streams.synchronize,
        # generators: the CPU's
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state_all": lambda states: torch.set_rng_state(states[0]),
        # memory
        "memory_allocated": lambda device=None: ACCOUNT.now,
        "max_memory_allocated": lambda device=None: ACCOUNT.most,
        "memory_reserved": lambda device=None: ACCOUNT.most,
        "max_memory_reserved": lambda device=None: ACCOUNT.most,
        "reset_peak_memory_stats": ACCOUNT.reset,
        "memory_stats": lambda device=None: {
            "allocated_bytes.all.current": ACCOUNT.now,
            "allocated_bytes.all.peak": ACCOUNT.most,
        },
        "mem_get_info": lambda device=None: (MEMORY_BYTES - ACCOUNT.now, MEMORY_BYTES),
        "empty_cache": lambda: None,
        # settings
        "set_compile_mode": set_compile_mode,
        "is_jit_compile_false": lambda: _Settings.compile_mode.get("jit_compile") is False,
        "set_option": _Settings.options.update,
        "config": _WriteOnly(),
        "matmul": types.SimpleNamespace(allow_hf32=False),
        "conv": types.SimpleNamespace(allow_hf32=True),
        # mixed precision
        "amp": _module("torch.npu.amp", amp, ("GradScaler", "autocast", "custom_fwd", "custom_bwd")),
        "utils": types.SimpleNamespace(is_support_inf_nan=lambda: rules.INF_NAN),
        "clear_npu_overflow_flag": rules.clear_overflow,
        "get_npu_overflow_flag": rules.get_overflow,
    }
    for name, value in contents.items():
        setattr(module, name, value)
    return module


def _module(name: str, source, names) -> types.ModuleType:
    module = types.ModuleType(name)
    for each in names:
        setattr(module, each, getattr(source, each))
    return module
