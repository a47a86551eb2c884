"""What each of two processes of gloo does and sees; tests start `evaluate_in_one_of_two_processes` by its name."""

import math
import os
from argparse import Namespace
from pathlib import Path

import torch
from torch import nn

from ci.tests.common_workers import CLASSES, Keyed, Scenes, seeded_model
from common.data.loading import batches
from common.data.order import StepRange
from common.device.world import World, check_same, setup
from common.errors import Diverged, InputError
from common.record.course import Course
from common.record.log import RunLog
from common.record.report import Title
from common.scores.evaluate import Evaluation, evaluate
from common.scores.metrics import ConfusionMatrix
from common.step.norm import synchronize_batch_norm


def samples_of_steps(world: World, device_batch_size: int) -> list[tuple[int, list[int], list[int]]]:
    """(step, epochs, indices) of this process's batches: three epochs of 11 images in steps of four, from step 1 on."""
    stream = batches(Keyed(11), StepRange(device_batch_size, seed=3, first_step=1, total_steps=6), world, workers=1)
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


def evaluate_in_one_of_two_processes(rank: int, folder: Path) -> None:
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
    matrix = evaluate(model, Scenes(7), ConfusionMatrix(CLASSES), Evaluation(world, batch_size=2))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    course = Course(total_steps=4, steps_per_epoch=4, images_per_step=2)
    log = RunLog(folder / "run", world, course, {"log_every_steps": 4}, Title("net"))
    stopped = ""
    try:
        for step in range(4):
            bad = (rank, step) == (1, 2)
            log.train(step, {"main": torch.tensor(math.nan if bad else 1.0), "aux0": torch.tensor(0.5)}, optimizer)
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
