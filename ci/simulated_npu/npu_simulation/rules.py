"""What the hardware or its plugin refuses, does wrongly, or does in its own way."""

import functools
import os
from pathlib import Path

import torch
from torch import Tensor

from npu_simulation.counters import COUNTERS, torch_asks

# SoC -> (bfloat16, overflow gives inf and nan: else the largest number and 0)
SOCS = {
    "Ascend910A": (False, False),
    "Ascend910ProB": (False, False),
    "Ascend910B": (False, False),
    "Ascend310P3": (False, False),
    "Ascend910B1": (True, True),
    "Ascend910B3": (True, True),
    "Ascend910_9391": (True, True),
    "Ascend950": (True, True),
}
SOC = os.environ.get("SIMULATED_NPU_SOC", "Ascend910B3")
BFLOAT16, INF_NAN = SOCS[SOC]

# operators without an NPU kernel, in torch_npu 2.13.0: they would run on the CPU; forms with out= are left out
CPU_OPERATORS = frozenset(Path(__file__).with_name("cpu_operators.txt").read_text(encoding="utf-8").split())
# the shape of their result depends on values: the host waits for them
_SHAPE_DEPENDS_ON_VALUES = ("bincount", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave", "equal")
_BOOLEAN_INDEX = ("nonzero", "masked_select")
_NO_DTYPES = (torch.float64, torch.complex128)


class State:
    """overflow: the flag that saturating hardware raises, until it is cleared."""

    overflow = False


def clear_overflow() -> None:
    State.overflow = False


def get_overflow() -> bool:
    """Whether a number was too large; RuntimeError on hardware that has inf."""
    if INF_NAN:
        raise RuntimeError(f"{SOC} has inf and nan, and no overflow flag")
    return State.overflow


def refuse(name: str, base: str, arguments: dict) -> None:
    """Raise for an operator call that does not work on the device; count one that makes the host wait.

    name: with its overload ("add.Tensor"); base: without; arguments: by the names of the schema, those given.
    """
    if name in CPU_OPERATORS or (base in CPU_OPERATORS and "out" in arguments):
        raise RuntimeError(
            f"The operator 'aten::{name}' is not currently supported on the NPU backend and will fall back to run on "
            "the CPU. This may have performance implications."
        )
    if base.startswith("upsample_") and any(
        value is not None and key.startswith("scale") for key, value in arguments.items()
    ):
        raise RuntimeError(f"{name} is given a scale factor; on an NPU, interpolate needs size=")
    if "pool2d" in base and any(step != 1 for step in arguments.get("dilation", ())):
        raise RuntimeError(f"{name}: the dilation of a pooling can only be 1")
    indices = arguments.get("indices")
    boolean = isinstance(indices, list | tuple) and any(i is not None and i.dtype == torch.bool for i in indices)
    if (base in _BOOLEAN_INDEX or boolean) and not torch_asks():
        raise RuntimeError(f"{name}: a boolean index has a shape that depends on values; use where() or arithmetic")
    if base in _SHAPE_DEPENDS_ON_VALUES + _BOOLEAN_INDEX:
        COUNTERS.wait(base)


def refuse_memory_format(memory_format: torch.memory_format | None) -> None:
    if memory_format not in (None, torch.contiguous_format, torch.preserve_format):
        raise RuntimeError("Only contiguous_format or preserve_format is supported.")


def finish(name: str, result: Tensor, arithmetic: bool) -> Tensor:
    """A result (on the CPU) as the device would give it; RuntimeError for a dtype that it does not have."""
    if result.dtype in _NO_DTYPES and not torch_asks():
        raise RuntimeError(f"{name} makes {result.dtype}, which an NPU does not calculate in; use float32")
    if result.dtype == torch.bfloat16 and not BFLOAT16:
        raise RuntimeError(f"{name} makes bfloat16, which {SOC} does not have")
    if arithmetic and not INF_NAN and result.is_floating_point():
        largest = torch.finfo(result.dtype).max
        if not torch.isfinite(result).all():
            State.overflow = True
            result.nan_to_num_(nan=0.0, posinf=largest, neginf=-largest)
    return result


def spoil_labels(arguments: dict) -> bool:
    """Whether an nll_loss has labels that are no class: they give a wrong number and no error.

    The CPU's kernel, which would raise, gets other labels instead.
    """
    labels, logits = arguments["target"], arguments["self"]
    wrong = ((labels < 0) | (labels >= logits.shape[min(1, logits.dim() - 1)])) & (labels != arguments["ignore_index"])
    arguments["target"] = labels.where(~wrong, 0)
    return bool(wrong.any())


@functools.lru_cache(None)
def is_arithmetic(base: str) -> bool:
    """Whether an operator calculates; filling and copying keep an inf that the program gives."""
    return not base.startswith(("empty", "new_empty", "fill", "full", "zero", "ones", "copy", "_copy", "scalar_tensor"))
