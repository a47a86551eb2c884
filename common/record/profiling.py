"""A profile of a few training steps (--prof, --prof_test): where their time goes, as a trace and as a short table."""

import itertools
import os
import shutil
import time
from argparse import Namespace
from collections.abc import Generator, Iterable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import record_function

from common.device.world import World, synchronize

STEPS_BEFORE = {"prof": 20, "prof_test": 5}  # as many as the originals let pass: kernels are chosen, workers started
ROWS = 15  # operators in the table
WAITING = "waiting for data"  # the name of these times in the trace and in the table
# How torch's profiler calls the parts of a step
BACKWARD, OPTIMIZER = "autograd::engine::evaluate_function:", "Optimizer.step#"


def profiled(stream: Iterable, args: Namespace, world: World) -> Iterator:
    """The items of `stream`: all of them or, with --prof or --prof_test, those up to the last step that is profiled.

    With --accumulate the parts of a step count here as steps.

    The main process writes output.prof into --output_dir, a trace of --prof_steps steps for ui.perfetto.dev or
    chrome://tracing, and prints how their time is shared out and which operators take longest. The wait for a step's
    batch is part of the step. Where a profiler fails without an error, as torch_npu's does, a line says so.
    """
    if not (args.prof or args.prof_test):
        yield from stream
        return
    steps_before = STEPS_BEFORE["prof" if args.prof else "prof_test"]
    iterator = iter(stream)
    yield from itertools.islice(iterator, steps_before)
    synchronize(world)
    try:
        steps = yield from _profiled_steps(iterator, args, world)
    finally:
        if world.device.type == "npu":
            _remove_records()
    if world.is_main and not steps:
        print(f"nothing was profiled: the run ended after {steps_before} steps or less", flush=True)


def _profiled_steps(iterator: Iterator, args: Namespace, world: World) -> Generator[object, None, int]:
    """The items of the steps that are profiled; returns how many there were."""
    trace = Path(args.output_dir) / "output.prof"
    if world.is_main:
        trace.unlink(missing_ok=True)  # of an earlier part of the run
    steps, waited_seconds = 0, 0.0
    with _profiler(world, args.prof_steps) if world.is_main else nullcontext() as profiler:
        started = time.perf_counter()  # from here on: to start the profiler of a GPU takes longer than a step
        for _ in range(args.prof_steps):
            if steps and world.is_main:
                profiler.step()
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
        if world.is_main:
            profiler.step()  # the last one, with which torch_npu's has what it was told to record
    if world.is_main and steps:
        profiler.export_chrome_trace(str(trace))
        print("\n".join(_lines(profiler, steps, waited_seconds, seconds, world)), flush=True)
        print(f"profile of {_count(steps)}: {trace}" if trace.is_file() else _why_there_is_none(), flush=True)
    return steps


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


def _profiler(world: World, steps: int):
    """torch's profiler, or torch_npu's, over the host and the device; for so many calls of its `step`."""
    if world.device.type == "npu":
        return _torch_npu_profiler(steps)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if world.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities)


def _torch_npu_profiler(steps: int):
    import torch_npu

    profiler = torch_npu.profiler
    return profiler.profile(
        activities=[profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.NPU],
        schedule=profiler.schedule(wait=0, warmup=0, active=steps, repeat=1),
        # the default asks for counters of the AI cores, which this level has not
        experimental_config=profiler._ExperimentalConfig(aic_metrics=profiler.AiCMetrics.AiCoreNone),
    )


def _remove_records() -> None:
    """Delete what torch_npu's profiler leaves in the current folder: what it recorded, or as much as it came to."""
    folder = Path("export_only_prof_dir")
    for records in folder.glob(f"*_{os.getpid()}_*_ascend_pt"):
        shutil.rmtree(records, ignore_errors=True)
    with suppress(OSError):  # there is none, or another process has records in it
        folder.rmdir()


def _why_there_is_none() -> str:
    """torch_npu's profiler prints its errors and raises none."""
    remedy = "check that CANN's toolkit is complete (python3 -m common.tools.doctor)"
    if "ASCEND_RT_VISIBLE_DEVICES" in os.environ:
        remedy = "unset ASCEND_RT_VISIBLE_DEVICES, and choose cards with --device_list"
    return f"no profile was written; the profiler says above why; {remedy}"
