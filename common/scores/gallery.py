"""What an evaluation leaves to look at: its worst, median and best pictures, and the confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from common.data.pictures import LabelledPictures
from common.record.files import write_atomically
from common.scores.drawing import plain_text
from common.scores.evaluate import Evaluation, example_panels
from common.scores.images import ranked
from common.scores.metrics import Metric

MATRIX, EXAMPLES = "confusion_matrix.png", "examples"  # in the folder of the run
WIDEST = 6144  # pixels of a picture with truth and prediction; a wider one is made smaller
CELL, SMALL_CELL = 30, 10  # pixels of a side; small ones, of more than MOST_CELLS classes, hold no numbers
MOST_CELLS = 40
WHITE, BLACK, FULL = (255, 255, 255), (0, 0, 0), (8, 48, 107)


def write_gallery(
    folder: Path, model: nn.Module, dataset: LabelledPictures, metric: Metric, scores: Sequence[float], how: Evaluation
) -> None:
    """Write MATRIX and EXAMPLES/{worst,median,best}_SCORE_NAME.png, by the main process.

    scores: of each picture, its mean IoU; nan without a label. An example shows picture, truth and prediction.
    Raises OSError where the disk cannot take more.
    """
    chosen = ranked(scores)
    panels = example_panels(model, dataset, chosen.values(), how)
    if not how.world.is_main:
        return
    _save(folder / MATRIX, draw_matrix(metric.confusion(), list(metric.class_scores())))
    (folder / EXAMPLES).mkdir(exist_ok=True)
    for (place, index), panel in zip(chosen.items(), panels, strict=False):  # less where files are gone
        picture = Image.fromarray(panel)
        if picture.width > WIDEST:
            picture = picture.reduce(-(-picture.width // WIDEST))
        _save(folder / EXAMPLES / f"{place}_{scores[index]:.4f}_{dataset.name_of(index)}.png", picture)


def draw_matrix(confusion: Tensor, names: Sequence[str]) -> Image.Image:
    """A row for each true class, a column for each predicted one: in percent of the true pixels of the row.

    confusion: [C, C] int64.
    """
    counts = confusion.double().numpy()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    font, cell = ImageFont.load_default(), CELL if len(names) <= MOST_CELLS else SMALL_CELL
    words = [plain_text(name) for name in names]
    margin = max((round(font.getlength(word)) for word in words), default=0) + 10
    side, title = margin + cell * len(names), 16
    picture = Image.new("RGB", (max(side + 6, 360), side + title + 6), WHITE)
    draw = ImageDraw.Draw(picture)
    draw.text((4, 2), "rows: truth, columns: prediction; % of the true pixels", BLACK, font)
    for number, word in enumerate(words):
        middle = margin + cell * number + cell // 2
        draw.text((margin - 5, title + middle), word, BLACK, font, anchor="rm")
        label = Image.new("RGB", (margin - 8, 12), WHITE)
        ImageDraw.Draw(label).text((0, 6), word, BLACK, font, anchor="lm")
        picture.paste(label.rotate(90, expand=True), (middle - 6, title + 4))
    for row, column in np.ndindex(shares.shape):
        left, top, share = margin + cell * column, title + margin + cell * row, shares[row, column]
        shade = tuple(round(255 + (full - 255) * share) for full in FULL)
        draw.rectangle((left, top, left + cell, top + cell), fill=shade, outline=(210, 210, 210))
        if cell == CELL and share >= 0.005:
            ink = WHITE if share > 0.5 else BLACK
            draw.text((left + cell // 2, top + cell // 2), f"{100 * share:.0f}", ink, font, anchor="mm")
    return picture


def _save(path: Path, picture: Image.Image) -> None:
    write_atomically(path, lambda file: picture.save(file, "PNG"))
