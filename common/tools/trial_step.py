"""One training step of a small network on a device, and how far its numbers are from those of the CPU in float64."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import IGNORE_INDEX
from common.amp import Amp
from common.device import World, place, saturates
from common.losses import at_least_float32
from common.optimizer import fused_optimizer

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


def expected_step() -> Step:
    """The step in float64 on the CPU, without anything of common's."""
    model = _network().double()
    images, labels = _batch()
    loss = _loss(model, images.double(), labels)
    loss.backward()
    changes = {name: -LR * parameter.grad for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += changes[name]
        after = _loss(model, images.double(), labels)
    return Step((loss.item(), after.item()), changes)


def device_step(world: World, precision: str) -> Step:
    """The step as a run takes it, with its placement, precision ("float32", "fp16" or "bf16") and optimizer."""
    model = place(_network(), world)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = fused_optimizer(torch.optim.SGD, model.parameters(), world, lr=LR, momentum=0.9)  # it starts from 0
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


def check_step(world: World, precision: str, expected: Step) -> tuple[str, bool]:
    """(what comes of the step in a few words, whether its numbers are right). Raises whatever the device does."""
    # the first generation of NPUs computes float32 convolutions in float16 by itself
    tolerance = "fp16" if precision == "float32" and saturates(world) else precision
    errors, allowed = step_errors(device_step(world, precision), expected), TOLERANCES[tolerance]
    right = all(error <= limit for error, limit in zip(errors, allowed, strict=True))
    parts = zip(("loss", "weight changes"), errors, allowed, strict=True)
    text = ", ".join(f"{name} off by {error:.1e} ({limit:.0e} allowed)" for name, error, limit in parts)
    return f"{'right' if right else 'WRONG'}: {text}", right
