"""The doctor's look at the devices: which there are, what they compute like, and a training step on one."""

import shutil
from collections import Counter
from typing import TYPE_CHECKING

from common.tools.doctor_report import Report, reason, size_text

if TYPE_CHECKING:  # torch takes seconds to import, and may be what is broken: each function imports what it needs
    from common.device.world import World

# device type -> what to do when it does not calculate, or wrongly
REMEDIES = {
    "npu": "check that the driver, CANN, its operators for this chip and torch_npu pair; or try --fused_optimizer off",
    "cuda": "check that the driver fits the CUDA that torch is built for (nvidia-smi)",
    "cpu": "install torch again: pip install --force-reinstall torch torchvision",
}


def devices(report: Report, kind: str) -> str | None:
    """List the devices; the type of the one that --device `kind` means, None when there is none that works."""
    import torch

    from common.device import cuda, npu
    from common.device.world import device_count, device_name, find_device_type
    from common.errors import InputError

    report.section("devices")
    usable = {"npu": npu.installed() and npu.problem() is None, "cuda": cuda.problem() is None}
    for name, there in usable.items():
        asked = there and kind in ("auto", name)  # a card that is not wanted, and hangs, is not to be asked
        report.row(name, _names(name, device_count(name)) if asked else "not asked" if there else "none")
    report.row("cpu", device_name(torch.device("cpu")))
    if shutil.which("nvidia-smi") and not usable["cuda"]:
        report.missing.append(f"CUDA: there is nvidia-smi, and {cuda.problem()}; also look at CUDA_VISIBLE_DEVICES")
    try:
        chosen = find_device_type(kind)
    except InputError as error:
        report.row("chosen", f"none (--device {kind})")
        report.problems.append(str(error))
        return None
    report.row("chosen", f"{chosen} (--device {kind})")
    if npu.installed() and not usable["npu"]:
        report.missing.append(f"NPU: {npu.problem()}")
    return chosen


def _names(kind: str, count: int) -> str:
    """'8: Ascend910B3, 64.0 GiB'."""
    import torch

    device = getattr(torch, kind)
    # to ask an NPU is to start it, and a process is to start one alone
    asked = [device.get_device_properties(index) for index in (range(count) if kind == "cuda" else range(1))]
    names = Counter(f"{each.name}, {size_text(each.total_memory)}" for each in asked)
    return f"{count}: " + "; ".join(f"{n} x {name}" if len(names) > 1 else name for name, n in names.items())


def numerics(report: Report, world: "World") -> None:
    """What the device computes like, as a run finds it."""
    import torch

    from common.device.world import has_bfloat16, saturates

    report.section(f"arithmetic of {world.device}")
    if world.device.type == "cpu":
        report.row("vector units", torch.backends.cpu.get_cpu_capability())
        report.row("threads", torch.get_num_threads())
    report.row("bfloat16", "yes" if has_bfloat16(world) else "no: --amp_dtype bf16 is refused")
    report.row("overflow", "the largest number, and a flag" if saturates(world) else "inf and nan")
    if world.device.type == "npu":
        device = torch.get_device_module(world.device)
        off = device.is_jit_compile_false()
        report.row("jit_compile", "off: ready-made kernels" if off else "on: each new shape is compiled")
        short, flags = "HF32", (device.conv.allow_hf32, device.matmul.allow_hf32)
    else:
        short, flags = "TF32", (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    if world.device.type != "cpu":
        convolutions, matrices = ("on" if flag else "off" for flag in flags)
        report.row(short, f"convolutions {convolutions}, matrix products {matrices}; --no_hf32 turns both off")


def training_step(report: Report, kind: str) -> None:
    """Take the step on the device in float32 and in mixed precision where runs use it, and compare its numbers."""
    import torch

    from common.device.world import Modes, card_of_environment, has_bfloat16, setup
    from common.tools.trial_step import check_step, expected_step

    try:
        card = card_of_environment(kind)
        world = setup(kind, card)
        numerics(report, world)
        world = setup(kind, card, modes=Modes(hf32=False))
    except Exception as error:  # of a driver, of CANN, or of the plugin
        report.problems.append(f"{kind} cannot be set up ({reason(error)}); {REMEDIES[kind]}")
        return
    report.section(f"one training step on {world.device}, beside the CPU in float64")
    problems_before = len(report.problems)
    for optimizer in (torch.optim.SGD, torch.optim.Adam):
        if len(report.problems) > problems_before:
            break  # Adam's step would say the same once more
        expected = expected_step(optimizer)
        for precision in ("float32", "fp16", "bf16"):
            if precision != "float32" and (kind == "cpu" or optimizer is torch.optim.Adam):
                continue  # mixed precision is off on the CPU; Adam's arithmetic is that of float32 everywhere
            if precision == "bf16" and not has_bfloat16(world):
                continue
            try:
                text, right = check_step(world, precision, expected, optimizer)
            except Exception as error:  # of a driver, of CANN, or of the plugin
                text, right = f"FAILS: {reason(error)}", False
            report.row(f"{precision}, Adam" if optimizer is torch.optim.Adam else precision, text)
            if not right:
                _blame(report, kind, precision, text)


def _blame(report: Report, kind: str, precision: str, text: str) -> None:
    what = f"the training step on {kind} in {precision}: {text}"
    if precision == "float32":
        report.problems.append(f"{what}; {REMEDIES[kind]}")
    elif precision == "fp16":
        report.problems.append(f"{what}; train with --no_amp, or {REMEDIES[kind]}")
    else:
        report.missing.append(f"{what}; do not use --amp_dtype bf16")
