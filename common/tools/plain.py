"""The plain form of a training step, against which the benchmark and the tests compare ours.

Plain is what one writes first: eager, float32, contiguous tensors, an optimizer that updates one tensor after another,
losses that hold every full-size tensor at once, torch's own convolutions, an enlargement before the one that reads it,
and, in ICNet, the stages that its reference computes without using their result. It computes the same loss and, up to
rounding, the same gradients. What `common.device.setup` does to malloc is up to the caller.
"""

import copy
import importlib
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import IGNORE_INDEX
from common.upsampling import UpsampledConv2d
from common.winograd import WinogradConv2d


def plain_training(
    folder: str, model: nn.Module, args: Namespace, dtype: torch.dtype | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """One whole training step of a deep copy of `model`: forward, loss, backward, optimizer.

    dtype: float16 or bfloat16 for autocast in it, with a loss scale for float16; without it all is float32.

    folder: the name of the model's folder; `model`: its network, not wrapped. args: the values of one of its presets
    (learning rate, momentum or betas, weight decay, options of the loss). The step takes images [B, 3, H, W] float32
    and target [B, H, W] on the device of the model, and returns the loss, a detached scalar on that device.
    """
    module = plain_network(model)
    optimizer = plain_optimizer(module, args)
    device_type = next(module.parameters()).device.type
    scaler = torch.amp.GradScaler(device_type, enabled=dtype == torch.float16)

    def step(images: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(device_type, dtype, enabled=dtype is not None):
            loss = plain_loss(folder, module(images.contiguous()), target, args)
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
        elif isinstance(layer, WinogradConv2d):
            layer.forward = partial(nn.Conv2d.forward, layer)
    if type(module).__name__ == "ICNet":
        # the reference runs the half-size image through all four stages and uses the second one's output
        stages_of = module.backbone.forward
        module.backbone.forward = lambda images, stages=4: stages_of(images)[:stages]
        # and classifies the features after their enlargement
        module.last_classifier, module.classifier = module.classifier, nn.Identity()
        module.register_forward_hook(lambda net, _, outputs: (net.last_classifier(outputs[0]), *outputs[1:]))
    return module


def _enlarge_then_convolve(layer: UpsampledConv2d, x: Tensor, size: Sequence[int]) -> Tensor:
    return nn.Conv2d.forward(layer, F.interpolate(x, size=tuple(size), mode="nearest"))


def plain_optimizer(model: nn.Module, args: Namespace) -> torch.optim.Optimizer:
    """SGD with momentum, or Adam where `args` has its betas, one tensor at a time."""
    options = {"lr": args.lr, "weight_decay": args.weight_decay, "foreach": False, "fused": False}
    if hasattr(args, "beta1"):
        return torch.optim.Adam(model.parameters(), betas=(args.beta1, args.beta2), **options)
    return torch.optim.SGD(model.parameters(), momentum=args.momentum, **options)


def plain_loss(folder: str, outputs: tuple[Tensor, ...], target: Tensor, args: Namespace) -> Tensor:
    """The folder's training loss with every intermediate result at full size; a scalar in the dtype of the logits."""
    if folder == "AttentionUNet":
        counts = target != IGNORE_INDEX
        truth = torch.where(counts, target, 0).to(outputs[0].dtype)
        losses = F.binary_cross_entropy_with_logits(outputs[0][:, 0], truth, reduction="none")
        return (losses * counts).sum() / counts.sum().clamp(min=1)
    if folder == "DynamicUNet":
        return _cross_entropy(outputs[0], target, over_all_pixels=False)
    weights = importlib.import_module(f"{folder}.model").LOSS_WEIGHTS
    if folder == "ICNet":
        labels = [_labels_at(target, o.shape[-2:]) for o in outputs]
        terms = [_cross_entropy(o, truth, over_all_pixels=False) for o, truth in zip(outputs, labels, strict=True)]
    else:
        size = target.shape[-2:]
        logits = [F.interpolate(o, size=size, mode="bilinear", align_corners=False) for o in outputs]
        terms = [_cross_entropy(o, target, over_all_pixels=not args.avg_non_ignore) for o in logits]
    return sum(weight * term for weight, term in zip(weights, terms, strict=True))


def _labels_at(target: Tensor, size: Sequence[int]) -> Tensor:
    """The nearest labels [B, *size] with aligned corners, of target [B, H, W]."""
    lines = (torch.linspace(-1, 1, length, device=target.device) for length in size)
    rows, columns = torch.meshgrid(*lines, indexing="ij")
    places = torch.stack((columns, rows), dim=-1).expand(len(target), -1, -1, -1)
    return F.grid_sample(target[:, None].float(), places, mode="nearest", align_corners=True)[:, 0].long()


def _cross_entropy(logits: Tensor, labels: Tensor, over_all_pixels: bool) -> Tensor:
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
    return losses.mean() if over_all_pixels else losses.sum() / (labels != IGNORE_INDEX).sum().clamp(min=1)
