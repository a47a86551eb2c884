"""The networks of the fingerprints: every tensor is drawn from the name that the reference gives it.

Of a network filled like this, the reference's outputs are known by a few numbers: mean, standard deviation and three
elements, with seven digits. Images are drawn from the seed 0.
"""

import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn


def approx(expected):
    """Equal to the seven digits that were recorded, in float32."""
    return pytest.approx(expected, rel=3e-6, abs=3e-6)


def filled(model: nn.Module, reference_name: Callable[[str], str], from_reference: Callable) -> nn.Module:
    """A model on the meta device (no time is spent on initial values), filled, in eval mode."""
    state = {}
    for name, meta in model.state_dict().items():
        leaf = name.rpartition(".")[2]
        theirs = reference_name(name)
        random = np.random.RandomState(zlib.crc32(theirs.encode()))
        if leaf == "num_batches_tracked":
            value = np.zeros(meta.shape, np.int64)
        elif leaf == "running_var":
            value = 1 + random.random_sample(meta.shape)
        else:
            value = random.standard_normal(meta.shape)
            if meta.dim() >= 2:
                value *= np.sqrt(1 / np.prod(meta.shape[1:]))
            else:
                value = 0.1 * value + (leaf == "weight")
        state[theirs] = torch.from_numpy(np.asarray(value, np.int64 if leaf == "num_batches_tracked" else np.float32))
    model.load_state_dict(from_reference(state), strict=True, assign=True)
    return model.eval()


def image(height: int, width: int, batch_size: int = 1) -> Tensor:
    """[B, 3, H, W] float32."""
    random = np.random.RandomState(0)
    return torch.from_numpy(random.standard_normal((batch_size, 3, height, width)).astype(np.float32))


def labels(classes: int, height: int, width: int, ignore_index: int) -> Tensor:
    """[1, H, W] int64, one pixel in ten ignored."""
    random = np.random.RandomState(1)
    target = random.randint(0, classes, (1, height, width))
    target[random.random_sample(target.shape) < 0.1] = ignore_index
    return torch.from_numpy(target).long()


def numbers(logits: Tensor) -> list[float]:
    """Mean, standard deviation, first element, [0, C // 2, H // 2, W // 2] and last element."""
    _, channels, height, width = logits.shape
    middle = logits[0, channels // 2, height // 2, width // 2]
    found = (logits.mean(), logits.std(unbiased=False), logits[0, 0, 0, 0], middle, logits[0, -1, -1, -1])
    return [number.item() for number in found]
