"""A profile of a few training steps (--prof, --prof_test): where their time goes, as a trace and as a short table."""

import itertools
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import record_function

from common.device import World, synchronize

STEPS_BEFORE = {"prof": 20, "prof_test": 5}  # as many as the originals let pass: kernels are chosen, workers started
ROWS = 15  # operators in the table
WAITING = "waiting for data"  # the name of these times in the trace and in the table
# How torch's profiler calls the parts of a step
BACKWARD, OPTIMIZER = "autograd::engine::evaluate_function:", "Optimizer.step#"


def profiled(
    stream: Iterable, prof: bool, prof_test: bool, prof_steps: int, output_dir: str | Path, world: World
) -> Iterator:
    """The items of `stream`: all of them or, with `prof` or `prof_test`, those up to the last step that is profiled.

    The main process writes <output_dir>/output.prof, a trace of `prof_steps` steps for ui.perfetto.dev or
    chrome://tracing, and prints how their time is shared out and which operators take longest. The wait for a step's
    batch is part of the step.
    """
    if not (prof or prof_test):
        yield from stream
        return
    steps_before = STEPS_BEFORE["prof" if prof else "prof_test"]
    iterator = iter(stream)
    yield from itertools.islice(iterator, steps_before)
    synchronize(world)
    steps, waited_seconds = 0, 0.0
    with _profiler(world) if world.is_main else nullcontext() as profiler:
        started = time.perf_counter()  # from here on: to start the profiler of a GPU takes longer than a step
        for _ in range(prof_steps):
            asked = time.perf_counter()
            with record_function(WAITING):
                item = next(iterator, None)
            if item is None:
                break
            waited_seconds += time.perf_counter() - asked
            yield item
            steps += 1
        synchronize(world)
        seconds = time.perf_counter() - started
    if world.is_main and steps:
        profiler.export_chrome_trace(str(Path(output_dir) / "output.prof"))
        print("\n".join(_lines(profiler, steps, waited_seconds, seconds, world)), flush=True)
        print(f"profile of {_count(steps)}: {Path(output_dir) / 'output.prof'}", flush=True)
    elif world.is_main:
        print(f"nothing is profiled: the run ended after {steps_before} steps or less", flush=True)


def _lines(profiler, steps: int, waited_seconds: float, seconds: float, world: World) -> list[str]:
    """The shares of the step's parts, and the operators that take longest."""
    waited = f"{_count(steps)} in {1000 * seconds:.1f} ms, {waited_seconds / seconds:.0%} of them {WAITING}"
    if world.device.type == "npu":  # torch_npu's profiler has no table
        return [waited]
    rows = [row for row in profiler.key_averages() if row.device_type == DeviceType.CPU]
    if world.device.type == "cpu":
        total = 1e6 * seconds
        own_times = [(row, row.self_cpu_time_total) for row in rows]
        parts = _parts([(row.key, row.cpu_time_total) for row in rows], total - 1e6 * waited_seconds)
        of_what = "of them all"
    else:  # operators that were launched by the host, with the time of their kernels
        total = sum(row.self_device_time_total for row in rows)
        own_times = [(row, row.self_device_time_total) for row in rows]
        parts = _parts([(row.key, row.device_time_total) for row in rows], total)
        of_what = f"of the device's {total / 1000:.1f} ms of work"
    shares = ", ".join(f"{name} {part / max(total, 1):.0%}" for name, part in parts.items())
    lines = [f"{waited}; {of_what}: {shares}", f"{'own time':>12}{'share':>8}{'calls':>8}  operator"]
    for row, own_time in sorted(own_times, key=lambda pair: -pair[1])[:ROWS]:
        lines.append(f"{own_time / 1000:>9.2f} ms{own_time / max(total, 1):>8.1%}{row.count:>8}  {row.key}")
    return lines


def _parts(times: list[tuple[str, float]], total: float) -> dict[str, float]:
    """Backward pass and optimizer from (name, time) of all that ran; the forward pass is what is left of the total."""
    backward = sum(spent for name, spent in times if name.startswith(BACKWARD))
    optimizer = sum(spent for name, spent in times if name.startswith(OPTIMIZER))
    return {
        "forward and the rest": max(0.0, total - backward - optimizer),
        "backward": backward,
        "optimizer": optimizer,
    }


def _count(steps: int) -> str:
    return f"{steps} step{'s' if steps > 1 else ''}"


def _profiler(world: World):
    """torch's profiler, or torch_npu's, over the host and the device."""
    if world.device.type == "npu":
        import torch_npu

        activities = torch_npu.profiler.ProfilerActivity
        return torch_npu.profiler.profile(activities=[activities.CPU, activities.NPU])
    activities = [torch.profiler.ProfilerActivity.CPU]
    if world.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities)
