"""Learning-rate schedules: pure functions from a step to a factor of the initial learning rate."""

import math
from collections.abc import Callable

from torch.optim import Optimizer

Schedule = Callable[[float], float]


def poly(
    total_steps: int,
    power: float = 0.9,
    min_factor: float = 0.0,
    warmup_steps: int = 0,
    warmup_factor: float = 0.0,
) -> Schedule:
    """factor(k) = (1 - k / total_steps) ** power * (1 - min_factor) + min_factor  (arXiv:1606.00915, 3.1).

    During the first `warmup_steps` the result is multiplied by a line that rises from `warmup_factor` to 1.
    Some implementations advance the schedule before the first step: they call the factor with k = step + 1.
    """

    def factor(k: float) -> float:
        decayed = (1 - min(k, total_steps) / total_steps) ** power * (1 - min_factor) + min_factor
        if k < warmup_steps:
            decayed *= 1 - (1 - k / warmup_steps) * (1 - warmup_factor)
        return decayed

    return factor


def cosine_epochs(epochs: int, steps_per_epoch: int, warmup_epochs: int = 0) -> Schedule:
    """Constant within an epoch e: (e + 1) / (warmup_epochs + 1) at first, then 0.5 (1 + cos(pi (e - W) / (E - W))).

    E is `epochs`, W is `warmup_epochs`; the half cosine is that of SGDR (arXiv:1608.03983, formula 5).
    """

    def factor(step: float) -> float:
        epoch = step // steps_per_epoch
        if epoch < warmup_epochs:
            return (epoch + 1) / (warmup_epochs + 1)
        return 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / max(1, epochs - warmup_epochs)))

    return factor


def linear_tail(epochs: int, steps_per_epoch: int, decay_epochs: int) -> Schedule:
    """1 at first; falls by 1 / decay_epochs after each of the last `decay_epochs` epochs, constant within an epoch."""

    def factor(step: float) -> float:
        lowered = max(0, step // steps_per_epoch - (epochs - decay_epochs))
        return max(0.0, 1 - lowered / decay_epochs) if decay_epochs else 1.0

    return factor


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Set every parameter group to `factor` times its own initial learning rate.

    The initial rate is kept in the group, as torch's schedulers do.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor
