"""Data sets and a network for the tests of common/, in their own process and in others."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from common.device.world import World
from common.errors import InputError

CLASSES = 4


class Keyed(Dataset):
    """Training items that tell their key: the image holds the index, the target the epoch."""

    def __init__(self, length: int, broken: tuple[int, ...] = ()):
        self.length, self.broken = length, broken

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key):
        epoch, index = key
        if index in self.broken:
            raise InputError(f"image {index}.png cannot be read; copy it again")
        image, target = torch.full((2, 2, 3), index, dtype=torch.uint8), torch.full((2, 2), epoch, dtype=torch.uint8)
        return image, target, torch.tensor([index / 2])

    def finish(self, images, draws):
        """The bytes as they are, and half of them once more: what is drawn for each image goes with it."""
        return images.float() + draws.view(-1, 1, 1, 1).to(images.device)


class Scenes(Dataset):
    """Validation images of three sizes in turn, with some ignored pixels."""

    sizes = ((6, 9), (6, 5), (4, 5))

    def __init__(self, length: int, broken: tuple[int, ...] = ()):
        self.length, self.broken = length, broken

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        if index in self.broken:
            raise InputError(f"label {index}.png holds 77")
        rng = np.random.default_rng(index)
        size = self.sizes[index % 3]
        target = rng.integers(0, CLASSES, size)
        target[rng.random(size) < 0.2] = 255
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        return torch.from_numpy(image), torch.from_numpy(target.astype(np.uint8)), torch.empty(0)

    def finish(self, images, draws):
        return images.float() / 255


class Normalised(nn.Module):
    """A classifier of pixels, with batch norm: in eval mode each pixel's class depends on that pixel alone."""

    options = {"width": 3}

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Conv2d(3, CLASSES, 1)

    def forward(self, images):
        return self.head(self.norm(images))


def seeded_model() -> Normalised:
    torch.manual_seed(5)
    return Normalised()


def world(rank: int = 0, size: int = 1) -> World:
    """One of `size` processes on the CPU, without the others."""
    return World(torch.device("cpu"), rank, size)
