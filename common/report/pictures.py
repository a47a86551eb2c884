"""Pictures of a run in a page: made smaller, and written into it."""

import base64
import io
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from common.errors import UNREADABLE
from common.record.first_batch import NAME
from common.scores.gallery import EXAMPLES, MATRIX

WIDEST = 1600  # pixels
JPEG_QUALITY = 85


class Picture(NamedTuple):
    """A picture of the page. uri: data:image/..., the picture itself."""

    title: str
    name: str  # of the file
    uri: str
    width: int
    height: int


def pictures(folder: Path) -> tuple[Picture | None, list[Picture], Picture | None]:
    """(The confusion matrix, examples from worst to best, the first batch) of a run; without what cannot be read."""
    examples = []
    for place in ("worst", "median", "best"):
        for path in sorted((folder / EXAMPLES).glob(f"{place}_*.png")):
            score = re.match(r"[a-z]+_([0-9.]+|nan)_", path.name)
            examples.append(_picture(path, f"{place}: IoU {score[1]}" if score else place, "JPEG"))
    matrix = _picture(folder / MATRIX, "confusion matrix", "PNG")
    return matrix, [each for each in examples if each], _picture(folder / NAME, "first batch", "JPEG")


def _picture(path: Path, title: str, kind: str) -> Picture | None:
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
    except UNREADABLE:  # missing, or cut off
        return None
    small.thumbnail((WIDEST, 4 * WIDEST))
    data = io.BytesIO()
    small.save(data, kind, quality=JPEG_QUALITY, optimize=True)
    uri = f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
    return Picture(title, path.name, uri, *small.size)
