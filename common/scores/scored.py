"""A network on a data set, as a run asks for it: scores, the protocol that they come from, and what memory allows."""

import gc
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from common import IGNORE_INDEX
from common.data.pictures import LabelledPictures
from common.errors import Failed
from common.record.log import RunLog
from common.scores.classes import absent, class_table, never_predicted
from common.scores.evaluate import Evaluation, OutOfMemory, evaluate, example_panels
from common.scores.gallery import EXAMPLES as FOLDER
from common.scores.gallery import MATRIX, write_gallery
from common.scores.images import ImageScores
from common.scores.metrics import EVAL_LOSS, Metric
from common.scores.views import Size

EXAMPLES = 3  # pictures kept of every evaluation of a training
ABSENT_RULE = "a class that is neither in the truth nor in the prediction is in no mean"


class Scored(NamedTuple):
    """What a network scores on a data set; a `Metric` for whoever reads it. metric: None for one without labels."""

    metric: Metric | None
    images: ImageScores
    protocol: dict

    def scores(self) -> dict[str, float]:
        """Those of the metric, and the validation loss; the first one chooses the best checkpoint."""
        return {**self.metric.scores(), EVAL_LOSS: self.images.loss()}

    def class_scores(self) -> dict[str, float]:
        """IoU by class name."""
        return self.metric.class_scores()

    def pixels(self) -> int:
        """How many pixels are counted."""
        return self.metric.pixels()

    def details(self) -> dict:
        """For result.json: the protocol, and what is counted of each class."""
        if self.metric is None:
            return {"protocol": self.protocol}
        table = class_table(self.metric.confusion(), list(self.class_scores()))
        return {
            "protocol": self.protocol,
            "classes": table,
            "absent_classes": absent(table),
            "never_predicted": never_predicted(table),
        }


class Evaluator:
    """Scores networks for a run.

    trained: (size, images of a device at a time) of its training steps, None for an evaluation alone. A device has
    memory for these: where it has none for an evaluation, that one is done again by windows of that size, in all
    processes, and so is every later one.
    """

    def __init__(self, how: Evaluation, trained: tuple[Size, int] | None):
        self.how, self.trained, self.note = how, trained, ""

    def score(
        self, model: nn.Module, dataset: LabelledPictures, say: Callable[[str], None], keep: Callable | None = None
    ) -> Scored:
        """The scores of a network. keep: as `evaluate` has it. say: for notes.

        Raises Stopped as `evaluate` does, and Failed, with what to do, where memory does not even do for windows.
        """
        while True:
            # of pictures without labels there is nothing to count
            metric = dataset.metric(self.how.world) if dataset.has_labels else None
            images = ImageScores(len(dataset), self.how.world)
            try:
                evaluate(model, dataset, metric, self.how, images, keep)
            except OutOfMemory as error:
                said, shape = str(error), error.shape
            else:
                return Scored(metric, images, self._protocol(dataset))
            self._make_room(said, shape)
            say(self.note)

    def examples(self, model: nn.Module, dataset: LabelledPictures) -> list[np.ndarray]:
        """The first pictures of a data set, on the main process: see `example_panels`."""
        return example_panels(model, dataset, range(min(EXAMPLES, len(dataset))), self.how)

    def show(self, log: RunLog, model: nn.Module, dataset: LabelledPictures, scored: Scored) -> None:
        """Leave pictures of an evaluation in the folder of the run: see `write_gallery`."""
        try:
            write_gallery(log.output_dir, model, dataset, scored.metric, scored.images.scores(), self.how)
        except OSError as error:
            log.say(f"{MATRIX} and {FOLDER} are not written ({error.strerror or error})")

    def _make_room(self, said: str, shape: tuple[int, ...] | None) -> None:
        """Take windows from now on; Failed where they would need no less."""
        smaller = self.how
        if self.trained:
            (height, width), batch = self.trained
            views = self.how.views
            window = tuple(map(min, views.window or (height, width), (height, width)))
            views = views if window == views.window else views._replace(window=window, stride=None)
            smaller = self.how._replace(batch_size=min(batch, self.how.batch_size), views=views)
        if smaller == self.how:
            raise Failed(f"the evaluation ran {said[:160]}; {_advice(self.how, shape)}")
        self.how = smaller
        height, width = smaller.views.window
        self.note = (
            f"the evaluation ran out of memory: it is done again by windows of {height}x{width}, "
            f"{smaller.batch_size} images at a time, and so are those to come"
        )
        gc.collect()
        if self.how.world.device.type != "cpu":
            getattr(torch, self.how.world.device.type).empty_cache()

    def _protocol(self, dataset: LabelledPictures) -> dict:
        note = {"note": self.note} if self.note else {}
        return {
            "split": dataset.split,
            "labelled": dataset.has_labels,
            "images": len(dataset),
            "sizes": dataset.scored_at,
            **self.how.views.described(),
            "ignore_index": IGNORE_INDEX,
            "absent_classes": ABSENT_RULE,
            **note,
        }


def _advice(how: Evaluation, shape: tuple[int, ...] | None) -> str:
    """What to do about an evaluation that does not fit into memory."""
    if shape is None:  # the process that ran out of memory knows more
        return "lower --eval_batch_size, or give a smaller --window"
    batch, _, *size = shape
    size = how.views.window or [math.ceil(side * max(how.views.scales)) for side in size]
    height, width = (-(-side // 64) * 32 for side in size)  # half of it, in multiples of 32
    lower = f"give --eval_batch_size {batch // 2}, or " if batch > 1 else "give "
    return f"{batch} images of {shape[2]} x {shape[3]} at a time are too much: {lower}--window {height}x{width}"
