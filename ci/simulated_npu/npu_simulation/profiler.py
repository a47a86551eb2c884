"""torch_npu.profiler: torch's profiler of the CPU under the plugin's names, without what the plugin's has not."""

import enum

import torch

ProfilerActivity = enum.Enum("ProfilerActivity", "CPU NPU")
ProfilerLevel = enum.Enum("ProfilerLevel", "Level_none Level0 Level1 Level2")
AiCMetrics = enum.Enum("AiCMetrics", "AiCoreNone PipeUtilization ArithmeticUtilization Memory")
ExportType = enum.Enum("ExportType", "Text Db")
schedule = torch.profiler.schedule
tensorboard_trace_handler = torch.profiler.tensorboard_trace_handler


class _ExperimentalConfig:
    def __init__(
        self,
        profiler_level=ProfilerLevel.Level0,
        aic_metrics=AiCMetrics.AiCoreNone,
        l2_cache: bool = False,
        data_simplification: bool = True,
        export_type=ExportType.Text,
    ):
        if aic_metrics != AiCMetrics.AiCoreNone and profiler_level not in (ProfilerLevel.Level1, ProfilerLevel.Level2):
            raise ValueError("AI-core metrics need Level1 or Level2")


class profile:  # noqa: N801  the plugin's name
    """A context that profiles; it has no table of operators (key_averages)."""

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
        self._profile = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU],
            schedule=schedule,
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

    def start(self) -> None:
        self._profile.start()

    def stop(self) -> None:
        self._profile.stop()

    def step(self) -> None:
        self._profile.step()

    def export_chrome_trace(self, output_path: str) -> None:
        self._profile.export_chrome_trace(output_path)
