"""What the benchmarks have in common: the folder and its values, the clock, the facts beside a figure, the report."""

import importlib
import inspect
import os
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from common.args import format_value
from common.data.pictures import Datasets
from common.device.cuda import has_tf32
from common.device.memory import resident_bytes
from common.device.placement import place
from common.device.world import Modes, World, chosen_devices, device_name, setup, synchronize
from common.step.amp import effective_opt_level
from common.tools.peak import peak_tflops

PERCENTILES = (10, 90, 95, 99)


class Folder(NamedTuple):
    """A model folder, and the values that its train.py would run with."""

    name: str
    args: Namespace

    def module(self, name: str) -> ModuleType:
        return importlib.import_module(f"{self.name}.{name}")

    @property
    def presets(self) -> ModuleType:
        return self.module("presets")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a training image."""
        return self.args.crop_size if hasattr(self.args, "crop_size") else (self.args.image_size,) * 2

    def datasets(self, **changes: object) -> Datasets:
        """The data sets that the run uses; changes: of its values."""
        return self.module("data").build_datasets(Namespace(**{**vars(self.args), **changes}))

    def network_options(self) -> dict:
        """What `build_model` is called with."""
        options = self.taken_by(self.module("model").build_model)
        return {"num_classes": self.module("data").INFO.num_classes, **options}

    def taken_by(self, function: Callable) -> dict:
        """Those of the values that are called like a parameter of the function."""
        known = inspect.signature(function).parameters
        return {name: value for name, value in vars(self.args).items() if name in known}

    def network(self, world: World) -> nn.Module:
        """Of random weights, on the device."""
        return place(self.module("model").build_model(**self.network_options()), world)

    def opt_level(self, world: World) -> str:
        return effective_opt_level(self.args.amp, self.args.opt_level, world, self.args.precision_mode)

    def world(self) -> World:
        args = self.args
        return setup(args.device, chosen_devices(args), args.seed, args.deterministic, Modes.of(args))


# ---- the clock


def timed(action: Callable[[], object], world: World) -> float:
    """Seconds until the device has done what `action` asks of it."""
    synchronize(world)
    started = time.perf_counter()
    action()
    synchronize(world)
    return time.perf_counter() - started


def figure(seconds: list[float], images: int) -> dict:
    """Median and spread of repetitions of one thing, each of which deals with so many images."""
    percentiles = {f"p{share}_ms": 1000 * float(np.percentile(seconds, share)) for share in PERCENTILES}
    median = statistics.median(seconds)
    return {"median_ms": 1000 * median, **percentiles, "images_per_second": images / median}


def ratio(slower: list[float], faster: list[float]) -> dict:
    """How many times faster: the median and spread over pairs that ran one after the other."""
    ratios = [a / b for a, b in zip(slower, faster, strict=True)]
    return {
        "median": statistics.median(ratios),
        "p10": float(np.percentile(ratios, 10)),
        "p90": float(np.percentile(ratios, 90)),
    }


class Held(NamedTuple):
    """What this process holds of the system."""

    resident_gib: float
    open_files: int | None
    processes: int | None  # that it has started


def held() -> Held:
    """What this process holds now; None for what the system does not tell."""
    resident = resident_bytes() / 2**30
    try:
        children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
        return Held(resident, len(os.listdir("/proc/self/fd")), sum(map(len, children)))
    except OSError:
        return Held(resident, None, None)


# ---- facts and report


def facts(what: str, folder: Folder, world: World, images: int, size: tuple[int, int] | None = None) -> dict:
    """What a figure means nothing without."""
    return {
        "benchmark": what,
        "model": folder.name,
        "preset": folder.args.preset,
        "given": {name: getattr(folder.args, name) for name in folder.args.given},
        "device": device_name(world.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": _precision(folder, world),
        "memory_format": str(world.memory_format).removeprefix("torch."),
        "batch": images,
        "size": list(size or folder.size),
        "date": time.strftime("%Y-%m-%d"),
    }


def picture_size(path: str | Path) -> str:
    with Image.open(path) as image:  # reads the header alone
        return f"{image.height} x {image.width}"


def _precision(folder: Folder, world: World) -> str:
    """'fp16', 'bf16', 'fp32', or 'tf32' where CUDA computes the convolutions of float32 in it."""
    if folder.opt_level(world) != "O0":
        return folder.args.amp_dtype
    in_tf32 = world.device.type == "cuda" and torch.backends.cudnn.allow_tf32 and has_tf32(world.device)
    return "tf32" if in_tf32 else "fp32"


def utilisation(facts: dict, images_per_second: float, operations: float) -> dict:
    """Achieved TFLOP/s of the network's own operations, and their share of the device's peak where that is known."""
    achieved = images_per_second * operations / 1e12
    peak = peak_tflops(facts["device"], facts["precision"])
    return {"tflops": achieved} | ({"peak_tflops": peak, "utilisation": achieved / peak} if peak else {})


def lines(result: dict) -> list[str]:
    """The result for people."""
    shown = dict(result)
    figures, ratios = shown.pop("figures"), shown.pop("ratios", {})
    shown["size"] = " x ".join(map(str, shown["size"]))
    shown["given"] = " ".join(f"--{name}={format_value(value)}" for name, value in shown["given"].items()) or "nothing"
    text = [f"{name.replace('_', ' '):<24}{_shown(value)}" for name, value in shown.items()]
    width = max(map(len, figures))
    columns = "".join(f"{f'p{share}':>10}" for share in PERCENTILES)
    text += ["", f"{'':<{width}}{'median ms':>12}{columns}{'images/s':>12}"]
    for name, row in figures.items():
        times = "".join(f"{row[f'p{share}_ms']:>10.1f}" for share in PERCENTILES)
        text.append(f"{name:<{width}}{row['median_ms']:>12.1f}{times}{row['images_per_second']:>12.2f}")
    text += [f"{name}: {row['median']:.2f} ({row['p10']:.2f} to {row['p90']:.2f})" for name, row in ratios.items()]
    return text


def _shown(value) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {_shown(item)}" for name, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
