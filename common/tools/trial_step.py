"""One training step of a small network on a device, and how far its numbers are from those of the CPU in float64."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from common import IGNORE_INDEX
from common.device import npu
from common.device.placement import place
from common.device.world import World, saturates
from common.step.amp import Amp
from common.step.losses import at_least_float32
from common.step.optimizer import fused_optimizer

EPS = 0.01  # of Adam: a gradient that is rounded to the other side of 0 changes little
# Two images of 48 x 64 pixels, four classes.
BATCH, HEIGHT, WIDTH, CLASSES, SEED, LR = 2, 48, 64, 4, 0, 0.5
# precision -> relative error that is allowed in the loss, and in the change of any weight tensor
TOLERANCES = {"float32": (1e-4, 1e-3), "fp16": (1e-2, 5e-2), "bf16": (5e-2, 3e-1)}


class Step(NamedTuple):
    """A training step: the loss before and after it, and how each weight has changed (float64, on the CPU)."""

    losses: tuple[float, float]
    changes: dict[str, Tensor]


def _network() -> nn.Module:
    """[B, 3, H, W] -> logits [B, CLASSES, H / 4, W / 4]: the layers that the folders are made of, on the CPU."""
    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, CLASSES, 1),
    )


def _batch() -> tuple[Tensor, Tensor]:
    """(images [B, 3, H, W] float32, labels [B, H, W] int64, a part of them ignored)."""
    noise = torch.randn(BATCH, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(SEED))
    labels = torch.arange(WIDTH).mul(CLASSES).div(WIDTH, rounding_mode="floor").expand(BATCH, HEIGHT, WIDTH).clone()
    images = noise + labels[:, None]  # something to learn: gradients of noise alone are differences of large numbers
    labels[:, : HEIGHT // 8] = IGNORE_INDEX
    return images, labels


def _loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    logits = F.interpolate(at_least_float32(model(images)), size=labels.shape[-2:], mode="bilinear",
                           align_corners=False)  # fmt: skip
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX)


def expected_step(kind: type[Optimizer] = torch.optim.SGD) -> Step:
    """The step in float64 on the CPU, without anything of common's.

    The first step of SGD is the gradient times the rate; that of Adam has g / (|g| + eps) in the gradient's place.
    """
    model = _network().double()
    images, labels = _batch()
    loss = _loss(model, images.double(), labels)
    loss.backward()
    steps = {name: parameter.grad for name, parameter in model.named_parameters()}
    if kind is torch.optim.Adam:
        steps = {name: gradient / (gradient.abs() + EPS) for name, gradient in steps.items()}
    changes = {name: -LR * step for name, step in steps.items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += changes[name]
        after = _loss(model, images.double(), labels)
    return Step((loss.item(), after.item()), changes)


def device_step(world: World, precision: str, kind: type[Optimizer] = torch.optim.SGD) -> Step:
    """The step as a run takes it, with its placement, precision ("float32", "fp16" or "bf16") and optimizer."""
    model = place(_network(), world)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    options = {"eps": EPS} if kind is torch.optim.Adam else {"momentum": 0.9}  # which starts from 0
    optimizer = fused_optimizer(kind, model.parameters(), world, lr=LR, **options)
    mixed = precision != "float32"
    # a scale at which nothing of this small network overflows: the step is not skipped
    amp = Amp(model, optimizer, "O1" if mixed else "O0", "128", world, precision if mixed else "fp16")
    images, labels = (tensor.to(world.device) for tensor in _batch())
    images = images.contiguous(memory_format=world.memory_format)
    losses = []
    for finished in (False, True):
        with amp.autocast():
            loss = _loss(model, images, labels)
        losses.append(loss.item())
        if not finished:
            amp.step(loss)
    changes = {name: (weight.detach() - before[name]).cpu().double() for name, weight in model.named_parameters()}
    return Step(tuple(losses), changes)


def step_errors(found: Step, expected: Step) -> tuple[float, float]:
    """Relative errors: the larger one of the two losses, and that of the weight tensor whose change is farthest off."""
    losses = [abs(a - b) / abs(b) for a, b in zip(found.losses, expected.losses, strict=True)]
    changes = [
        ((found.changes[name] - change).norm() / change.norm()).item() for name, change in expected.changes.items()
    ]
    return tuple(max(errors, key=lambda error: (error != error, error)) for errors in (losses, changes))  # nan is worst


def check_step(
    world: World, precision: str, expected: Step, kind: type[Optimizer] = torch.optim.SGD
) -> tuple[str, bool]:
    """(what comes of the step in a few words, whether its numbers are right). Raises whatever the device does.

    An operator that a plugin takes to the host, as it says in a warning, is not right: each step would wait for it.
    """
    # the first generation of NPUs computes float32 convolutions in float16 by itself
    tolerance = "fp16" if precision == "float32" and saturates(world) else precision
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = device_step(world, precision, kind)
    on_the_host = sorted(filter(None, {npu.fallback_operator(str(warning.message)) for warning in said}))
    if on_the_host:
        return f"FAILS: {', '.join(on_the_host)} runs on the host, which every step would wait for", False
    errors, allowed = step_errors(found, expected), TOLERANCES[tolerance]
    right = all(error <= limit for error, limit in zip(errors, allowed, strict=True))
    parts = zip(("loss", "weight changes"), errors, allowed, strict=True)
    text = ", ".join(f"{name} off by {error:.1e} ({limit:.0e} allowed)" for name, error, limit in parts)
    return f"{'right' if right else 'WRONG'}: {text}", right
