"""--best_by and --stop_after: which evaluation of a run is the best one, and when there has been none for long."""

import math
from argparse import Namespace
from collections.abc import Mapping

import torch

from common.data.pictures import LabelledPictures
from common.device.world import World
from common.errors import InputError
from common.scores.metrics import EVAL_LOSS

LOWER_IS_BETTER = {EVAL_LOSS}


class Choice:
    """The best score of a run so far.

    name: of the score or class that decides; '': the first score. best: of the evaluations before, None where none was
    scored. evaluations_since: how many came after that one.
    """

    def __init__(self, name: str = "", best: float | None = None, evaluations_since: int = 0):
        self.name, self.best, self.evaluations_since = name, best, evaluations_since

    def takes(self, scores: Mapping[str, float], class_scores: Mapping[str, float]) -> bool:
        """Note one more evaluation; whether it is the best so far. What is not a number never is."""
        value = {**class_scores, **scores}[self.name or next(iter(scores))]
        sign = -1 if self.name in LOWER_IS_BETTER else 1
        is_best = not math.isnan(value) and (self.best is None or sign * value > sign * self.best)
        self.evaluations_since = 0 if is_best else self.evaluations_since + 1
        if is_best:
            self.best = value
        return is_best

    def is_enough(self, stop_after: int) -> bool:
        """Whether as many evaluations as --stop_after says (0: never) were no better."""
        return 0 < stop_after <= self.evaluations_since


def check_choice(args: Namespace, val_set: LabelledPictures | None) -> None:
    """Raise InputError for flags that ask for what no evaluation says, before anything is trained."""
    for flag in ("best_by", "stop_after"):
        if getattr(args, flag) and val_set is None:
            raise InputError(f"--{flag} needs evaluations, and this run has none; leave it out, or --no_validate")
    if args.best_by:
        metric = val_set.metric(World(torch.device("cpu")))
        known = [*metric.scores(), EVAL_LOSS, *metric.class_scores()]
        if args.best_by not in known:
            raise InputError(f"--best_by {args.best_by}: give one of {', '.join(known)}")
