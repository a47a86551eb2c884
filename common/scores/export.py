"""From a checkpoint to an ONNX file, or on to an OM file for Ascend; what is written was compared with the network."""

import json
import shutil
import subprocess
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.args import Parser, parse_with_network
from common.errors import ExitCode, Failed, InputError
from common.record.files import has_text_name, writable_file
from common.terminal import progress
from common.values import path as path_of_user
from common.values import size as height_and_width

LARGEST_RELATIVE_ERROR = 1e-3  # of the logits, against the largest one
LEAST_AGREEMENT = 0.999  # share of the pixels whose class is the same
OPSETS = {"onnx": 17, "om": 13}  # of operators; ATC of older CANN releases knows none above 13
STRIDE = 32  # by multiples of which the size of a file with --dynamic size may differ
INPUT, OUTPUT = "images", {False: "logits", True: "class_ids"}


class Check(NamedTuple):
    """How far the file is from the network on one batch."""

    shape: tuple[int, ...]
    absolute: float  # largest error of a logit; 0 for class ids
    relative: float  # the same, against the largest logit
    agreement: float  # share of the pixels of equal class


def parse_export_args(options: dict, size: str, description: str, argv: list[str] | None = None) -> Namespace:
    """Flags of an export.py. options: see `parse_with_network`. size: the default of --size."""
    parser = Parser(description=description)
    parser.add_argument("--output", type=path_of_user, required=True, help="the file to write")
    parser.add_argument("--format", choices=tuple(OPSETS), default="onnx", help="om: for Ascend, by CANN's atc")
    parser.add_argument("--size", type=height_and_width, default=height_and_width(size), help=f"HxW; default: {size}")
    parser.add_argument("--batch", type=int, default=1, help="images at a time; default: 1")
    parser.add_argument(
        "--dynamic", choices=("none", "batch", "size"), default="none",
        help=f"what may differ from call to call: size is batch and size, in multiples of {STRIDE}; default: none",
    )  # fmt: skip
    parser.add_argument("--opset", type=int, help=f"default: {OPSETS['onnx']}, for om {OPSETS['om']}")
    parser.add_argument("--uint8_input", action="store_true", help="take RGB bytes; normalisation is in the file")
    parser.add_argument("--class_ids", action="store_true", help="give class ids [B, H, W] uint8 instead of logits")
    parser.add_argument("--soc_version", default="Ascend310P3", help="om: the chip, as npu-smi info names it")
    return parse_with_network(parser, options, argv)


def export(args: Namespace, build_model: Callable, from_reference: Callable, info) -> None:
    """Write the network of --checkpoint; print how far the file is from it.

    The file is read back by onnxruntime and run on random images of every shape that --dynamic allows to differ.
    Raises InputError for what cannot be exported, and Failed, leaving no file, where file and network differ.
    """
    _check(args)
    from common.record.checkpoint import load_model

    model = load_model(args.checkpoint, build_model, from_reference, args.options).eval()
    model.check_shape((args.batch, 3, *args.size))
    info = info.of_network(model)
    output = Path(args.output)
    path = output.with_suffix(".onnx")
    scratch = path.with_name(f".{path.name}.tmp")
    started = time.perf_counter()
    try:
        network = _deployed(model, info, args)
        steps = _steps(network, scratch, info, args)
        checks = [check for check in progress(steps, "exporting", 2 + len(_shapes(args)), "step") if check]
        for check in checks:
            _judge(check, args)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, opset {_opset(args)}, {time.perf_counter() - started:.0f} s")
    for check in checks:
        logits = "" if args.class_ids else f"logits off by {check.absolute:.1e} ({check.relative:.1e} of the largest), "
        print(f"  {'x'.join(map(str, check.shape))}: {logits}{check.agreement:.3%} of the pixels of equal class")
    if args.format == "om":
        _to_om(path, output, args)


def _check(args: Namespace) -> None:
    """Raise InputError for what can be known to be wrong before the network is built."""
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise InputError(f"export needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    if args.batch < 1:
        raise InputError(f"--batch {args.batch}: give at least 1")
    if args.dynamic == "size" and any(side % STRIDE for side in args.size):
        raise InputError(f"--size {args.size[0]}x{args.size[1]}: with --dynamic size give multiples of {STRIDE}")
    if args.format == "om" and args.dynamic != "none":
        raise InputError("--format om is for one shape: leave --dynamic out, and export a file for each shape")
    output = Path(args.output).absolute()
    if not output.parent.is_dir():
        raise InputError(f"--output {args.output}: there is no folder {output.parent}; make it, or name another")
    if not has_text_name(args.output):
        raise InputError(f"--output {args.output}: the name is no UTF-8, which ONNX needs; give another one")
    for file in (args.output, output.with_suffix(".onnx")):
        writable_file(file, "--output")


def _opset(args: Namespace) -> int:
    return args.opset or OPSETS[args.format]


def _deployed(model, info, args: Namespace):
    """The network with what the flags put before and behind it, as one module in evaluation mode."""
    import torch
    from torch import nn

    from common.scores.metrics import class_ids

    class Deployed(nn.Module):
        """images [B, 3, H, W], normalised float32 or RGB bytes -> logits [B, C, H, W] or class ids [B, H, W] uint8."""

        def __init__(self):
            super().__init__()
            self.model = model
            mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (info.mean, info.std))
            self.register_buffer("scale", 1 / (255 * std))
            self.register_buffer("offset", mean / std)

        def forward(self, images):
            if args.uint8_input:
                images = images.float() * self.scale - self.offset
            logits = self.model(images)
            return class_ids(logits).to(torch.uint8) if args.class_ids else logits

    return Deployed().eval()


def _example(shape: Sequence[int], seed: int, args: Namespace):
    import torch

    generator = torch.Generator().manual_seed(seed)
    if args.uint8_input:
        return torch.randint(256, tuple(shape), dtype=torch.uint8, generator=generator)
    return torch.randn(*shape, generator=generator)


def _steps(network, path: Path, info, args: Namespace) -> Iterator[Check | None]:
    """The steps of an export, each of which takes seconds: the file, what it says of itself, and each comparison."""
    yield _write(network, path, args)
    yield _describe(path, network.model, info, args)
    for number, shape in enumerate(_shapes(args)):
        yield _compare(network, path, shape, number, args)


def _write(network, path: Path, args: Namespace) -> None:
    import torch

    from common.device.exits import is_out_of_memory

    axes = {"none": {}, "batch": {0: "batch"}, "size": {0: "batch", 2: "height", 3: "width"}}[args.dynamic]
    of_output = {axis - (axis > 1 and args.class_ids): name for axis, name in axes.items()}
    names = INPUT, OUTPUT[args.class_ids]
    training = network.model.training
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of its tracer: what it says is looked at below
            torch.onnx.export(
                network, (_example((args.batch, 3, *args.size), 0, args),), str(path), dynamo=False,
                opset_version=_opset(args), input_names=[names[0]], output_names=[names[1]],
                dynamic_axes={names[0]: axes, names[1]: of_output} if axes else None,
            )  # fmt: skip
    except (RuntimeError, ValueError) as error:  # of an operator that this opset has not, for example
        if is_out_of_memory(error):
            raise
        raise InputError(f"cannot export with --opset {_opset(args)}: {' '.join(str(error).split())[:200]}") from error
    finally:
        network.train(training)


def _describe(path: Path, model, info, args: Namespace) -> None:
    """Say in the file what it is, and look whether it is well formed."""
    import onnx

    content = onnx.load(str(path))
    onnx.checker.check_model(content)
    facts = {
        "model_class": type(model).__name__,
        "options": json.dumps(model.options),
        "class_names": json.dumps(list(info.class_names)),
        "data": json.dumps(info.described()),
        "input": "RGB, 0 to 255" if args.uint8_input else f"RGB / 255, minus {info.mean}, divided by {info.std}",
    }
    onnx.helper.set_model_props(content, facts)
    onnx.save(content, str(path))


def _shapes(args: Namespace) -> list[tuple[int, ...]]:
    """Of the batches to compare: at least two, of the shapes that may differ."""
    batch, height, width = args.batch, *args.size
    more = {"none": (batch, height, width), "batch": (batch + 1, height, width),
            "size": (batch + 1, height + STRIDE, width + 2 * STRIDE)}[args.dynamic]  # fmt: skip
    return [(shape[0], 3, *shape[1:]) for shape in ((batch, height, width), more)]


def _compare(network, path: Path, shape: tuple[int, ...], seed: int, args: Namespace) -> Check:
    import onnxruntime
    import torch

    from common.scores.metrics import class_ids

    images = _example(shape, seed, args)
    with torch.no_grad():
        expected = network(images)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found = torch.from_numpy(np.asarray(session.run(None, {INPUT: images.numpy()})[0]))
    except Exception as error:  # onnxruntime's own classes, which have no common parent
        said = " ".join(str(error).split())[:200]
        raise Failed(_refusal(shape, f"onnxruntime cannot run it ({said})", args)) from error
    if found.shape != expected.shape:
        raise Failed(_refusal(shape, f"it gives {list(found.shape)} instead of {list(expected.shape)}", args))
    if args.class_ids:
        return Check(shape, 0.0, 0.0, (found == expected).float().mean().item())
    absolute = (found - expected).abs().max().item()
    same = (class_ids(found) == class_ids(expected)).float().mean().item()
    return Check(shape, absolute, absolute / expected.abs().max().clamp(min=1e-12).item(), same)


def _judge(check: Check, args: Namespace) -> None:
    if not (check.relative <= LARGEST_RELATIVE_ERROR and check.agreement >= LEAST_AGREEMENT):
        what = f"logits off by {check.relative:.1e} of the largest, {check.agreement:.2%} of the pixels of equal class"
        raise Failed(_refusal(check.shape, what, args))


def _refusal(shape: tuple[int, ...], what: str, args: Namespace) -> str:
    remedy = "another --opset may do"
    if args.dynamic != "none":
        remedy = f"give --dynamic {'batch' if args.dynamic == 'size' else 'none'}, and a file for each shape"
    return f"the file is not kept: for images {list(shape)} {what}; {remedy}"


def _to_om(path: Path, output: Path, args: Namespace) -> None:
    """Have atc make the OM file; where there is none, say how. The exit code is then ExitCode.OMISSIONS."""
    shape = ",".join(map(str, (args.batch, 3, *args.size)))
    command = [
        "atc", "--framework=5", f"--model={path}", f"--output={output.with_suffix('')}", "--input_format=NCHW",
        f"--input_shape={INPUT}:{shape}", f"--soc_version={args.soc_version}",
    ]  # fmt: skip
    if shutil.which("atc") is None:
        print(f"atc is not installed here; on a machine with CANN run: {' '.join(command)}", file=sys.stderr)
        sys.exit(ExitCode.OMISSIONS)
    if code := subprocess.run(command, check=False).returncode:
        raise Failed(f"atc ended with exit code {code}; {path} is written, and the command was {' '.join(command)}")
    print(f"{output.with_suffix('.om')}: for {args.soc_version}")
