"""The plain form of a training step, against which the benchmark and the tests compare ours.

Plain is what one writes first: eager, float32, contiguous tensors, an optimizer that updates one tensor after another,
losses that hold every full-size tensor at once, an enlargement before the convolution that reads it, products with
padding and, where a network has `compute_like_the_reference`, what its reference computes without using the result. It
computes the same loss and, up to rounding, the same gradients.
"""

import contextlib
import copy
import inspect
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import IGNORE_INDEX
from common.nets.atrous import AtrousConv2d
from common.nets.upsampling import UpsampledConv2d
from common.step.optimizer import OPTIMIZERS, optimizer_options


def plain_training(
    model: nn.Module, training_loss: Callable, args: Namespace, dtype: torch.dtype | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """One whole training step of a deep copy of `model`: forward, loss, backward, optimizer.

    dtype: float16 or bfloat16 for autocast in it, with a loss scale for float16; without it all is float32.

    model: not wrapped. training_loss: (outputs, target) -> the terms of the folder's loss by name. args: the values of
    one of its presets (learning rate, momentum or betas, weight decay). The step takes images [B, 3, H, W] float32 and
    target [B, H, W] on the device of the model, and returns the loss, a detached scalar on that device.
    """
    module = plain_network(model)
    optimizer = plain_optimizer(module, args)
    device_type = next(module.parameters()).device.type
    scaler = torch.amp.GradScaler(device_type, enabled=dtype == torch.float16)

    def step(images: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(device_type, dtype, enabled=dtype is not None):
            outputs = module(images.contiguous())
            with plain_losses(training_loss):
                loss = sum(training_loss(outputs, target).values())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.detach()

    return step


def plain_network(model: nn.Module) -> nn.Module:
    """A deep copy of a network in training mode, contiguous, without what ours leaves out or computes otherwise."""
    module = copy.deepcopy(model).to(memory_format=torch.contiguous_format).train()
    for layer in module.modules():
        if isinstance(layer, UpsampledConv2d):
            layer.forward = partial(_enlarge_then_convolve, layer)
        elif isinstance(layer, AtrousConv2d):
            layer.forward = partial(nn.Conv2d.forward, layer)
    if hasattr(module, "compute_like_the_reference"):
        module.compute_like_the_reference()
    return module


def _enlarge_then_convolve(layer: UpsampledConv2d, x: Tensor, size: Sequence[int]) -> Tensor:
    return nn.Conv2d.forward(layer, F.interpolate(x, size=tuple(size), mode="nearest"))


def plain_optimizer(model: nn.Module, args: Namespace) -> torch.optim.Optimizer:
    """That of --optimizer, one tensor at a time."""
    kind, options = OPTIMIZERS[args.optimizer], optimizer_options(args)
    return kind(model.parameters(), **options, foreach=False, fused=False)


@contextlib.contextmanager
def plain_losses(training_loss: Callable) -> Iterator[None]:
    """Within it a folder's loss enlarges all its logits first, and holds every intermediate result at full size."""
    names = inspect.unwrap(getattr(training_loss, "func", training_loss)).__globals__  # of the folder's model.py
    ours = names.get("upsampled_cross_entropy")
    if ours:
        names["upsampled_cross_entropy"] = plain_upsampled_cross_entropy
    try:
        yield
    finally:
        if ours:
            names["upsampled_cross_entropy"] = ours


def plain_upsampled_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX, over_all_pixels: bool = False
) -> Tensor:
    """What `common.step.losses.upsampled_cross_entropy` computes, as a graph of torch's operators."""
    large = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    losses = F.cross_entropy(large, labels, ignore_index=ignore_index, reduction="none")
    return losses.mean() if over_all_pixels else losses.sum() / (labels != ignore_index).sum().clamp(min=1)
