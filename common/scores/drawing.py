"""Class ids as people look at them: colours, overlays on the picture, and a legend of what the colours mean."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common import IGNORE_INDEX

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255

VOID_COLOURS = ((224, 224, 192), (255, 0, 255), (0, 255, 255))  # the first is PASCAL VOC's, for the border of objects
LEGEND_ROW, LEGEND_COLUMN = 16, 200  # pixels of one entry
CARD = 1024  # pixels of the widest part of a panel in a card
SEEN_SHARE = 0.0005  # of the pixels, below which a class is not in a legend: 0.1 % would be rounded up


def void_colour(palette: Sequence[Colour]) -> Colour:
    """The colour of ignored pixels: one that no class has, so that they are not taken for the background."""
    taken = {tuple(each) for each in palette}
    return next((each for each in VOID_COLOURS if each not in taken), VOID_COLOURS[0])


def _table(palette: Sequence[Colour]) -> np.ndarray:
    """[256, 3] uint8: the colour of each class id, and of all others that of ignored pixels."""
    table = np.full((256, 3), void_colour(palette), np.uint8)
    table[: len(palette)] = palette
    table[IGNORE_INDEX] = void_colour(palette)
    return table


def colour(class_ids: np.ndarray, palette: Sequence[Colour]) -> np.ndarray:
    """[H, W] class ids -> [H, W, 3] uint8 in the data set's colours; ignored pixels have one of their own."""
    return _table(palette)[class_ids.astype(np.uint8)]


def palette_picture(class_ids: np.ndarray, palette: Sequence[Colour]) -> Image.Image:
    """[H, W] uint8 -> a picture of mode P: its values are the ids, and it is seen in the data set's colours."""
    picture = Image.fromarray(class_ids)
    picture.putpalette(_table(palette).tobytes())
    return picture


def overlay(image: np.ndarray, colours: np.ndarray, strength: float = 0.55) -> np.ndarray:
    """The colours laid over the picture, both [H, W, 3] uint8."""
    return (image * (1 - strength) + colours * strength).round().astype(np.uint8)


def panel(image: np.ndarray, target: np.ndarray, prediction: np.ndarray, palette: Sequence[Colour]) -> np.ndarray:
    """Image, truth and prediction side by side: [H, 3 W, 3] uint8."""
    return np.concatenate([image, colour(target, palette), colour(prediction, palette)], axis=1)


def for_cards(panel: np.ndarray) -> np.ndarray:
    """A `panel` for the narrow cards of TensorBoard: what is wider than high comes below each other.

    panel: [H, 3 W, 3] uint8. Returns [3 h, w, 3] or [h, 3 w, 3]; parts wider than CARD pixels are made smaller.
    """
    height, width = panel.shape[0], panel.shape[1] // 3
    parts = np.split(panel, 3, axis=1)
    if (factor := -(-width // CARD)) > 1:
        parts = [np.asarray(Image.fromarray(part).reduce(factor)) for part in parts]
    return np.concatenate(parts, axis=0 if width > height else 1)


def shares(class_ids: np.ndarray) -> dict[int, float]:
    """class id -> its share of all pixels, the largest first. class_ids: [..., H, W] uint8."""
    rows = class_ids.reshape(-1, class_ids.shape[-1])
    counts = np.array(Image.fromarray(rows).histogram())  # NumPy would make eight bytes of each pixel
    order = np.argsort(-counts, kind="stable")
    return {int(number): float(counts[number] / class_ids.size) for number in order if counts[number]}


def name_of(class_id: int, class_names: Sequence[str]) -> str:
    """What a class is called, for people."""
    if class_id == IGNORE_INDEX:
        return "ignored"
    return class_names[class_id] if class_id < len(class_names) else f"class {class_id}"


def plain_text(text: str) -> str:
    """The text in letters that the font of older versions of Pillow has."""
    return text.encode("latin-1", "replace").decode("latin-1")


def with_legend(
    image: np.ndarray, found: dict[int, float], class_names: Sequence[str], palette: Sequence[Colour]
) -> np.ndarray:
    """[H, W, 3] uint8 -> the same, with a strip below it that says which colour is which class.

    found: class id -> share of the pixels, as `shares` gives it. A strip that needs more room than a small picture has
    is cut off at its right, and the picture is not made wider.
    """
    entries = [(number, share) for number, share in found.items() if share >= SEEN_SHARE]
    columns = max(1, image.shape[1] // LEGEND_COLUMN)
    rows = max(1, -(-len(entries) // columns))
    strip = Image.new("RGB", (image.shape[1], rows * LEGEND_ROW), (255, 255, 255))
    draw, font, table = ImageDraw.Draw(strip), ImageFont.load_default(), _table(palette)
    for place, (number, share) in enumerate(entries):
        left, top = place % columns * LEGEND_COLUMN + 2, place // columns * LEGEND_ROW + 2
        square = (left, top, left + LEGEND_ROW - 5, top + LEGEND_ROW - 5)
        draw.rectangle(square, fill=tuple(table[number].tolist()), outline=(0, 0, 0))
        text = f"{name_of(number, class_names)} {share:.1%}"
        draw.text((left + LEGEND_ROW, top), plain_text(text), (0, 0, 0), font)
    return np.concatenate([image, np.asarray(strip)])
