"""Parameters and operations of the networks.

    python3 -m common.tools.complexity [MODEL ...]

Operations are those of one image of the training size through the network as it predicts (no auxiliary heads), counted
by torch.utils.flop_counter: two for each multiplication with addition, in convolutions and matrix products alone.
"""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.version import answer_version

if __name__ == "__main__":  # before torch is imported
    answer_version()

import importlib
import inspect
import itertools

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from common.args import Parser
from common.device.exits import exit_codes

ROOT = Path(__file__).resolve().parents[2]


def complexity(build_model, options: dict, size: tuple[int, int]) -> tuple[int, int]:
    """(parameters, operations for one image of `size` (height, width)) of build_model(**options)."""
    with torch.device("meta"):
        model = build_model(**options)
    return parameters(model), operations(model, size)


def parameters(model: nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(parameter.numel() for parameter in model.parameters())


def operations(model: nn.Module, size: tuple[int, int], training: bool = False) -> int:
    """Operations for one image of `size` (height, width): a prediction; in training, forward with auxiliary heads and
    backward.

    Nothing is computed, and the network stays as it is: tensors of the meta device stand in for its own.
    """
    images = 2 if training else 1  # batch norm over one value alone is refused
    own = itertools.chain(model.named_parameters(), model.named_buffers())
    tensors = {name: tensor.detach().to("meta").requires_grad_(tensor.requires_grad) for name, tensor in own}
    was_training = model.training
    model.train(training)
    try:
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
            outputs = functional_call(model, tensors, torch.zeros(images, 3, *size, device="meta"))
            if training:
                sum(output.sum() for output in outputs).backward()
    finally:
        model.train(was_training)
    return counter.get_total_flops() // images


def complexity_of(name: str) -> tuple[tuple[int, int], int, int]:
    """(training size, parameters, operations) of a model folder's network as its script for eight devices trains it."""
    build_model = importlib.import_module(f"{name}.model").build_model
    values = importlib.import_module(f"{name}.presets").PRESETS["full_8p"]
    size = values["crop_size"] if "crop_size" in values else (values["image_size"],) * 2
    known = inspect.signature(build_model).parameters
    return size, *complexity(build_model, {name: value for name, value in values.items() if name in known}, size)


def main(argv: list[str] | None = None) -> None:
    """Print the table of the models that are asked for."""
    models = sorted(path.parent.name for path in ROOT.glob("*/train.py"))
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"some of {', '.join(models)}; default: all")
    chosen = parser.parse_args(argv).models or models
    unknown = sorted(set(chosen) - set(models))
    if unknown:
        parser.error(f"no model {unknown[0]}; there are {', '.join(models)}")
    with exit_codes():
        print(f"{'model':<16}{'parameters':>14}{'training size':>16}{'GFLOPs':>10}")
        for name in chosen:
            (height, width), parameters, operations = complexity_of(name)
            print(f"{name:<16}{parameters:>14,}{f'{height} x {width}':>16}{operations / 1e9:>10,.1f}")


if __name__ == "__main__":
    main()
