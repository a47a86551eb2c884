"""first_batch.png: what a training is given, before its first step, for people to look at.

Most trainings that learn nothing are given masks that do not lie on their pictures, or that hold nothing at all. That
is seen at once in the augmented pictures with their masks over them.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from common import IGNORE_INDEX
from common.data.colours import denormalize
from common.data.pictures import DatasetInfo, LabelledPictures
from common.record.files import write_atomically
from common.scores.drawing import colour, overlay, shares, with_legend

if TYPE_CHECKING:
    from common.record.log import RunLog

NAME = "first_batch.png"  # in the folder of the run
MOST_PICTURES, COLUMNS = 8, 4


def shown_first(stream: Iterable, train_set: LabelledPictures, log: "RunLog") -> Iterator[tuple[int, Tensor, Tensor]]:
    """The batches of `stream`, after the first of a run that begins has been written to the folder of the run.

    stream: (step, images [B, 3, H, W] float32, target [B, H, W]). Later batches are passed on as they are: nothing
    waits for the device. Of a step in several parts the first is shown. Only the main process writes, and a run goes
    on where nothing can be written.
    """
    is_first = True
    for step, images, target in stream:
        if step == 0 and log.world.is_main and is_first:
            picture = Image.fromarray(draw_batch(images[:MOST_PICTURES], target[:MOST_PICTURES], train_set.info))
            try:
                write_atomically(Path(log.output_dir, NAME), lambda file, picture=picture: picture.save(file, "PNG"))
            except OSError as error:
                log.say(f"{NAME} cannot be written ({error.strerror})")
        is_first = False
        yield step, images, target


def draw_batch(images: Tensor, target: Tensor, info: DatasetInfo) -> np.ndarray:
    """[rows H + legend, columns W, 3] uint8: pictures with their masks over them, and what the colours mean.

    images: [B, 3, H, W], normalised. target: [B, H, W] class ids or, floating, the share of class 1 in a pixel; what is
    ignored is 255. The shares in the legend are those of these pictures.
    """
    values = target.detach().cpu().numpy()
    if target.is_floating_point():
        values = np.where(values == IGNORE_INDEX, IGNORE_INDEX, values > 0.5)
    ids = values.astype(np.uint8)
    pictures = [denormalize(image, info.mean, info.std) for image in images.detach()]
    tiles = [
        overlay(picture, colour(each, info.palette), strength=0.4) for picture, each in zip(pictures, ids, strict=True)
    ]
    columns = min(COLUMNS, len(tiles))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    return with_legend(np.concatenate(rows), shares(ids), info.class_names, info.palette)
