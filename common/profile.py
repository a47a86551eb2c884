"""A profile of one training step (--prof, --prof_test): where its time goes, as a trace and as a short table."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch

from common.device import World, synchronize

STEPS_BEFORE = {"prof": 20, "prof_test": 5}  # as many as the originals let pass: kernels are chosen, workers started
ROWS = 15  # operators in the table


def profiled(stream: Iterable, prof: bool, prof_test: bool, output_dir: str | Path, world: World) -> Iterator:
    """The items of `stream`: all of them or, with `prof` or `prof_test`, those up to the step that is profiled.

    The main process writes <output_dir>/output.prof, a trace for ui.perfetto.dev or chrome://tracing, and prints the
    operators that take longest.
    """
    if not (prof or prof_test):
        yield from stream
        return
    steps_before = STEPS_BEFORE["prof" if prof else "prof_test"]
    for count, item in enumerate(stream):
        if count < steps_before:
            yield item
            continue
        synchronize(world)
        with _profiler(world) if world.is_main else nullcontext() as profiler:
            yield item
            synchronize(world)
        if world.is_main:
            _report(profiler, Path(output_dir) / "output.prof", world)
        return


def _report(profiler, path: Path, world: World) -> None:
    profiler.export_chrome_trace(str(path))
    if world.device.type != "npu":  # torch_npu's profiler has no table
        by = "self_cpu_time_total" if world.device.type == "cpu" else "self_device_time_total"
        print(profiler.key_averages().table(sort_by=by, row_limit=ROWS), flush=True)
    print(f"profile of one step: {path}", flush=True)


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
