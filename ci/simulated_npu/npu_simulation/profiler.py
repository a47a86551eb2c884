"""torch_npu.profiler: torch's profiler of the CPU under the plugin's names, without what the plugin's has not.

Like the plugin's it raises no error: it prints one, and goes on without a profile.
"""

import enum
import functools
import os
import socket
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import torch

STARTS = True  # False: as on a machine without CANN's libmsprofiler.so
RAW_FOLDER = "export_only_prof_dir"  # in the current folder; what is recorded lies there until it is exported

ProfilerActivity = enum.Enum("ProfilerActivity", "CPU NPU")
ProfilerLevel = enum.Enum("ProfilerLevel", "Level_none Level0 Level1 Level2")
AiCMetrics = enum.Enum("AiCMetrics", "AiCoreNone PipeUtilization ArithmeticUtilization Memory")
ExportType = enum.Enum("ExportType", "Text Db")
tensorboard_trace_handler = torch.profiler.tensorboard_trace_handler


def _say(kind: str, text: str) -> None:
    print(f"[{datetime.now():%Y-%m-%d %H:%M:%S}] [{kind}] [{os.getpid()}] profiler.py: {text}", flush=True)


def _raises_nothing(method: Callable) -> Callable:
    @functools.wraps(method)
    def call(*arguments, **options):
        try:
            return method(*arguments, **options)
        except Exception as error:
            _say("ERROR", f"Call {method.__name__} failed. Exception: {error}")

    return call


def schedule(*, wait: int, active: int, warmup: int = 0, repeat: int = 0, skip_first: int = 0) -> Callable:
    if warmup == 0:
        _say("WARNING", "Profiler won't be using warmup, this can skew profiler results")
    return torch.profiler.schedule(wait=wait, warmup=warmup, active=active, repeat=repeat, skip_first=skip_first)


class _ExperimentalConfig:
    def __init__(
        self,
        profiler_level=ProfilerLevel.Level0,
        aic_metrics=AiCMetrics.PipeUtilization,
        l2_cache: bool = False,
        data_simplification: bool = True,
        export_type=ExportType.Text,
    ):
        if aic_metrics != AiCMetrics.AiCoreNone and profiler_level not in (ProfilerLevel.Level1, ProfilerLevel.Level2):
            _say(
                "WARNING", "Please use level1 or level2 if you want to collect aic metrics, reset aic metrics to None!"
            )


class profile:  # noqa: N801  the plugin's name
    """A context that profiles; it has no table of operators (key_averages).

    Without a schedule it is never at the end of what it was to record, and says so when it is stopped.
    """

    def __init__(
        self,
        *,
        activities=None,
        schedule=None,
        on_trace_ready=None,
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
        with_modules: bool = False,
        with_flops: bool = False,
        experimental_config: _ExperimentalConfig | None = None,
    ):
        for activity in activities or ():
            if not isinstance(activity, ProfilerActivity):
                raise TypeError(f"{activity} is none of torch_npu.profiler.ProfilerActivity")
        experimental_config or _ExperimentalConfig()
        self._schedule, self._steps = schedule, 0
        self._started = self._recorded = False
        self._profile = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU],
            on_trace_ready=on_trace_ready,
            record_shapes=record_shapes,
            profile_memory=profile_memory,
            with_stack=with_stack,
        )

    def __enter__(self) -> "profile":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @_raises_nothing
    def start(self) -> None:
        now = datetime.now()
        self._raw = Path.cwd() / RAW_FOLDER / f"{socket.gethostname()}_{os.getpid()}_{now:%Y%m%d%H%M%S%f}_ascend_pt"
        self._raw.mkdir(parents=True)
        if not STARTS:
            raise OSError("libmsprofiler.so: cannot open shared object file: No such file or directory")
        self._profile.start()
        self._started = True

    @_raises_nothing
    def stop(self) -> None:
        (self._raw / "profiler_info.json").touch()
        if not self._started:
            return
        if self._records():
            _say("WARNING", "Incorrect schedule: Stop profiler while current state is RECORD which may result in "
                            "incomplete parsed data.")  # fmt: skip
        self._end()

    @_raises_nothing
    def step(self) -> None:
        recorded = self._records()
        self._steps += 1
        if self._started and recorded and not self._records():
            self._end()

    def _records(self) -> bool:
        """Whether the present step is one that is to be recorded."""
        return self._schedule is None or self._schedule(self._steps) != torch.profiler.ProfilerAction.NONE

    def _end(self) -> None:
        self._profile.stop()
        self._started, self._recorded = False, True

    @_raises_nothing
    def export_chrome_trace(self, output_path: str) -> None:
        if self._recorded:
            self._profile.export_chrome_trace(output_path)
