"""Batch norm over the images of all processes, and batch norm that no training changes."""

import torch
from torch import Tensor, nn

from common.device.world import World, sum_over_ranks


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        return sum_over_ranks(tensor.clone())

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient.clone())


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """What torch's SyncBatchNorm does, which has kernels for accelerators alone, in plain operations.

    Mean and variance are those of the images of all processes, whatever their number on each
    ("Batch Normalization", arXiv:1502.03167, algorithm 1); the gradient flows through both sums. It is no subclass of
    torch's, as DistributedDataParallel refuses that on the CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> the same shape and dtype."""
        if not self.training:
            return super().forward(x)
        axes = [0, *range(2, x.dim())]
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums = _SumOverRanks.apply(torch.cat([values.sum(axes), count]))
        total = sums[-1]
        mean = sums[:-1] / total
        shape = [1, -1] + [1] * (x.dim() - 2)
        variance = _SumOverRanks.apply((values - mean.view(shape)).square().sum(axes)) / total
        with torch.no_grad():
            self.num_batches_tracked += 1
            factor = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean += factor * (mean - self.running_mean)
            self.running_var += factor * (variance * total / (total - 1).clamp(min=1) - self.running_var)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return ((values - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that stays in eval mode, whatever the mode of the network is."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)


def trains_on_one_image(model: nn.Module, images: int) -> bool:
    """Whether the batch norms of a model in training mode would see one image, of a batch of `images` per process.

    Where an image has shrunk to a pixel they then have a single value, whose variance is 0. Synchronised ones see the
    images of the other processes too, and frozen ones need none.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    alone = [norm for norm in norms if not isinstance(norm, CpuSyncBatchNorm | nn.SyncBatchNorm)]
    return images <= 1 and any(norm.training for norm in alone)


def synchronize_batch_norm(model: nn.Module, world: World) -> None:
    """Replace every batch norm of the model by one with the statistics of all processes; nothing to do for one process.

    Tensors and their names stay as they are. Call it before the optimizer is made.
    """
    if world.size == 1:
        return
    replace_batch_norms(model, CpuSyncBatchNorm if world.device.type == "cpu" else nn.SyncBatchNorm)


def replace_batch_norms(model: nn.Module, kind: type[nn.Module]) -> None:
    """Replace every plain batch norm of the model by one of another kind, with the same tensors by the same names."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                other = kind(child.num_features, child.eps, child.momentum)
                other.weight, other.bias = child.weight, child.bias
                for buffer in ("running_mean", "running_var", "num_batches_tracked"):
                    setattr(other, buffer, getattr(child, buffer))
                setattr(module, name, other)
