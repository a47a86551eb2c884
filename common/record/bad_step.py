"""bad_step.json: what is known of the last steps of a training that ended because numbers were not finite."""

import math
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from common.data.order import StepRange, StepSampler
from common.device.world import World
from common.errors import Diverged
from common.record.files import write_json
from common.step.amp import Amp


class Step(NamedTuple):
    """A training step of this process; tensors are on the device."""

    number: int  # from 1 on
    losses: list[Tensor]  # the sum and its terms
    rates: list[float]  # of the optimizer's groups
    scale: Tensor | float | None  # of the loss; None where nobody watches
    ranges: list[Tensor]  # least and largest logit of each output, one after the other, in each part of the step


class Recent:
    """Keeps what may explain a bad end: the steps since the last line of the log.

    For each output of the network two reductions are launched in each step, `amin` and `amax`, and with a dynamic loss
    scale the copy of one number. Nothing is fetched from the device before the run ends badly. The names of the
    samples cost nothing: they follow from the seed and the number of the step.
    """

    def __init__(self):
        self._steps: list[Step] = []
        self._is_told = False  # a line of the log has told of them
        self._amp: Amp | None = None
        self._scale: Tensor | float | None = None  # of the present step
        self._ranges: list[Tensor] = []
        self._samples: Callable[[int], list[str]] = lambda step: []

    def watch(self, network: nn.Module, amp: Amp, samples: Callable[[int], list[str]]) -> None:
        """Look at the outputs of the network that trains, compiled, recorded or shared as it may be.

        samples: number of a step, from 1 on -> the files of its batch in this process.
        """
        self._amp, self._samples = amp, samples
        network.register_forward_hook(self._look)

    def _look(self, network: nn.Module, _inputs: tuple, outputs: tuple[Tensor, ...]) -> None:
        if not network.training:  # an evaluation of the same network
            return
        self._scale = self._amp.scale_of_step()
        self._ranges += [reduce(output.detach()) for output in outputs for reduce in (torch.amin, torch.amax)]

    def note(self, number: int, losses: list[Tensor], optimizer: Optimizer) -> None:
        """A step is done. losses: the sum and its terms, on the device."""
        if self._is_told:
            self._steps, self._is_told = [], False
        rates = [group["lr"] for group in optimizer.param_groups]
        self._steps.append(Step(number, losses, rates, self._scale, self._ranges))
        self._scale, self._ranges = None, []

    def told(self) -> None:
        """A line of the log has told of the steps so far: they are kept until the next one is noted."""
        self._is_told = True

    def write(self, output_dir: Path, error: Diverged, term_names: list[str], world: World) -> str:
        """Write the steps (waits for the device); returns in words where they are.

        The main process writes bad_step.json, and another one bad_step-RANK.json if a number of its own is not finite:
        each knows its own samples alone, and to ask the others might be to wait for one that is gone. A file that
        cannot be written changes nothing about the end of the run.
        """
        steps = [self._told_of(step, term_names) for step in self._steps]
        if not world.is_main and not any(map(_is_bad, steps)):
            return ""
        path = output_dir / ("bad_step.json" if world.is_main else f"bad_step-{world.rank}.json")
        content = {
            "reason": str(error),
            "step": error.step,
            "not_finite": error.not_finite,
            "process": world.rank,
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "steps": steps,
        }
        if self._amp:
            content |= {"loss_scale": self._amp.loss_scale(), "skipped_steps": self._amp.skipped_steps.item()}
        try:
            write_json(path, content)
        except OSError as failure:
            return f"{path.name} cannot be written ({failure.strerror or failure})"
        others = ", and bad_step-RANK.json of each process that saw it," if world.size > 1 else ""
        return f"{path}{others} {'tell' if others else 'tells'} of the steps since the last line"

    def _told_of(self, step: Step, term_names: list[str]) -> dict:
        loss, *terms = (number.item() for number in step.losses)
        ranges = [number.item() for number in step.ranges]
        scale = step.scale.item() if isinstance(step.scale, Tensor) else step.scale
        return {
            "step": step.number,
            "loss": _in_json(loss),
            "terms": {name: _in_json(term) for name, term in zip(term_names, terms, strict=True)},
            "lr": step.rates,
            "loss_scale": scale,
            "logits": [
                [_in_json(least), _in_json(most)] for least, most in zip(ranges[::2], ranges[1::2], strict=True)
            ],
            "samples": self._samples(step.number),
        }


def samples_of(dataset: Dataset, steps: StepRange, world: World) -> Callable[[int], list[str]]:
    """Number of a step, from 1 on -> the images of its batch in this process."""

    def names(number: int) -> list[str]:
        one_step = steps._replace(first_step=number - 1, total_steps=number)
        sampler = StepSampler(len(dataset), one_step, world)
        if len(dataset) < sampler.images_per_step:  # somebody measures a training with batches of another kind
            return []
        return [dataset.file_of(index) for keys in sampler for _, index in keys]

    return names


def _in_json(number: float) -> float | str:
    """JSON has no nan and no inf: their names."""
    return number if math.isfinite(number) else str(number)


def _is_bad(step: dict) -> bool:
    """Whether a number of it is not finite."""
    numbers = [step["loss"], *step["terms"].values(), *(number for pair in step["logits"] for number in pair)]
    return any(isinstance(number, str) for number in numbers)
