"""Which steps a run does."""

from typing import NamedTuple


class Course(NamedTuple):
    """Which steps a run does: 0-based from `first_step` to `total_steps`; none for an evaluation."""

    first_step: int = 0
    total_steps: int = 0
    steps_per_epoch: int = 1
    images_per_step: int = 1  # of all devices
    best: float | None = None  # score of the steps before, where this continues a run
    continues: bool = False  # in the folder of the run that did the steps before
    started: float | None = None  # when the process began, in seconds of the clock; None: now
    evaluations_since_best: int = 0  # of the steps before
