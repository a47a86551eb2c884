"""A model folder in small, as one module: presets, data sets, a network, `build` and `main`; to test `common.run`."""

from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ci.tests.folders import command_line
from common.args import parse_args
from common.data.pictures import DatasetInfo, Datasets, LabelledPictures, Source
from common.flags import RUN
from common.run import Run

NETWORK = "Small"
REPORTED_SCORES = {"Train Accuracy": "miou"}
CLASSES = 3
IMAGE_SIZE = (4, 6)
SMALL = {
    **RUN,
    "device": "cpu",
    "workers": 0,
    "check_data": False,
    "pretrained": "none",
    "backbone": "small",
    "epochs": 2,
    "total_steps": None,
    "device_batch_size": 2,
    "total_batch_size": None,
    "eval_batch_size": 2,
    "save_every_epochs": 0,
    "log_every_steps": 1,
    "optimizer": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.0,
}
PRESETS = {"default": SMALL, "in_steps": {**SMALL, "epochs": None, "total_steps": 5}}
ALIASES: dict[str, str] = {}


class Pictures(LabelledPictures):
    """Pictures of noise that are in no files; `checked`: how often, and how thoroughly, they were looked at."""

    def __init__(self, length: int):
        info = DatasetInfo(tuple("abc"), ((0, 0, 0), (9, 9, 9), (99, 99, 99)))
        super().__init__(Source(range(length), None, info))
        self.checked: list[bool] = []

    def __getitem__(self, key) -> tuple[Tensor, Tensor, Tensor]:
        index = key[1] if isinstance(key, tuple) else key
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (*IMAGE_SIZE, 3), dtype=torch.uint8, generator=generator)
        return image, torch.randint(0, CLASSES, IMAGE_SIZE, dtype=torch.uint8, generator=generator), torch.empty(0)

    def finish(self, images: Tensor, draws: Tensor) -> Tensor:
        return images.float() / 255

    def name_of(self, index: int) -> str:
        return f"noise_{index}"

    file_of = name_of

    def check(self, decode_images: bool, most_bad: int = 0) -> None:
        self.checked.append(decode_images)


class Network(nn.Module):
    """Convolution, batch norm, convolution; `shapes`: those that it was asked about."""

    def __init__(self):
        super().__init__()
        self.options, self.shapes = {}, []
        self.first, self.norm, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, CLASSES, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        logits = self.last(self.norm(self.first(images)).relu())
        return (logits, logits[..., ::2, ::2]) if self.training else logits.float()

    def check_shape(self, shape: tuple[int, ...]) -> None:
        self.shapes.append(shape)


def from_reference(state: dict) -> dict:
    return state


def training_loss(outputs: tuple[Tensor, Tensor], target: Tensor) -> dict[str, Tensor]:
    main, half = outputs
    return {
        "main": F.cross_entropy(main.float(), target),
        "aux0": 0.5 * F.cross_entropy(half.float(), target[:, ::2, ::2]),
    }


def build(args: Namespace, run: Run) -> tuple[Datasets, Network]:
    """Eight pictures to train on and three to validate."""
    data = Datasets(None if args.evaluate else Pictures(8), Pictures(3) if args.evaluate or args.validate else None)
    if args.evaluate:
        return data, run.trained(Network, from_reference)
    run.plan(data.train, IMAGE_SIZE)
    model = Network()
    run.load(model, from_reference)
    return data, model


def main(args: Namespace, run: Run, data: Datasets, model: Network) -> dict:
    """Evaluated every third step."""
    if args.evaluate:
        return run.evaluate_checkpoint(model, data.val)
    run.prepare(model)
    run.optimizer(model.parameters())
    for step, images, target in run.steps(data.train):
        with run.autocast():
            losses = training_loss(run.network(images), target)
        run.step(losses)
        if run.due(step, 3):
            run.evaluate(data.val)
    return run.finish()


def arguments(output_dir: str | Path, **flags) -> Namespace:
    """The flags of a run."""
    import ci.tests.small_folder as presets

    return parse_args(presets, command_line(**flags, output_dir=output_dir))
