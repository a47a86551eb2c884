"""Data sets, a network and functions for other processes: tests of common/ import them by name."""

import math
import os
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from common.data import batches
from common.device import World, check_same, setup
from common.errors import Diverged, InputError
from common.evaluate import evaluate
from common.metrics import ConfusionMatrix
from common.norm import synchronize_batch_norm
from common.runlog import RunLog

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


def samples_of_steps(world: World, device_batch_size: int) -> list[tuple[int, list[int], list[int]]]:
    """(step, epochs, indices) of this process's batches: three epochs of 11 images in steps of four, from step 1 on."""
    stream = batches(Keyed(11), device_batch_size, world, seed=3, workers=1, first_step=1, total_steps=6)
    samples = []
    for step, images, target in stream:
        samples.append((step, target[:, 0, 0].tolist(), (images[:, 0, 0, 0] / 1.5).int().tolist()))
    return samples


def synchronized_step(world: World, share: slice) -> dict[str, torch.Tensor]:
    """Outputs, gradients and statistics of one step with batch norm over all images, from a share of five of them."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4))).double()
    images, weights = torch.randn(5, 3, 6, 7).double(), torch.randn(5, 4, 4, 5).double()
    synchronize_batch_norm(model, world)
    outputs = model(images[share])
    (outputs * weights[share]).sum().backward()  # of each process; their sum is that of one process with all images
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
    return {"outputs": outputs.detach(), **gradients, **model.state_dict()}


def score_in_one_of_two_processes(rank: int, folder: Path) -> None:
    """Read training batches, evaluate, then let rank 1 alone have a loss that is nan.

    What each process saw goes to a file.
    """
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": (folder / "port").read_text()}
    torch.set_num_threads(1)
    world = setup("cpu")
    samples = samples_of_steps(world, device_batch_size=2)
    model = seeded_model()
    if rank == 1:
        model.norm.running_mean.fill_(9.0)  # statistics of its own, which must not decide
        model.norm.num_batches_tracked.fill_(77)
    matrix = evaluate(model, Scenes(7), ConfusionMatrix(CLASSES), 2, world, 0)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    log = RunLog(folder / "run", world, 4, 4, 2, {}, "case", "net", log_every_steps=4)
    stopped = ""
    try:
        for step in range(4):
            log.train(step, torch.tensor(math.nan if (rank, step) == (1, 2) else 1.0), optimizer)
    except Diverged as error:
        stopped = str(error)
    seen = {
        "world": (world.rank, world.size),
        "differences": differences(rank, world),
        "counts": matrix.counts,
        "running_mean": model.norm.running_mean,
        "tracked": model.norm.num_batches_tracked,
        "stopped": stopped,
        "samples": samples,
        "synchronized": synchronized_step(world, slice(0, 2) if rank == 0 else slice(2, 5)),
    }
    torch.save(seen, folder / f"seen_by_{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # as `launch` ends a process of gloo


def differences(rank: int, world: World) -> list[str]:
    """What `check_same` says when both processes are alike, and when process 1 alone has one thing of its own."""
    alike = {"lr": 0.1, "log_every_steps": 10, "output_dir": "a", "workers": 2, "node_rank": 0, "given": []}
    others = [
        ({"output_dir": "b", "workers": 7, "node_rank": 1, "given": ["lr"]}, 3, 7),  # as on another machine
        ({"lr": 0.2}, 3, 7),
        ({"log_every_steps": 5}, 3, 7),
        ({}, 0, 7),
        ({}, 3, 6),
    ]
    said = []
    for flags, first_step, length in others:
        args, step, images = (alike | flags, first_step, length) if rank == 1 else (alike, 3, 7)
        try:
            check_same(world, Namespace(**args), step, Scenes(images), None)
            said.append("")
        except InputError as error:
            said.append(str(error))
    return said


def world(rank: int = 0, size: int = 1) -> World:
    """One of `size` processes on the CPU, without the others."""
    return World(torch.device("cpu"), rank, size)
