"""Draw docs/predictions.png, the picture at the top of README.md: python3 -m ci.predictions RUN [RUN ...]

Of each finished run the median picture of its last evaluation, beside truth and prediction; one run below the other.
"""

import sys
from pathlib import Path

from PIL import Image

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "predictions.png"
WIDTH, GAP = 900, 8  # pixels
COLOURS = 128  # of a palette: a third of the bytes, and nobody sees it


def median_example(run: Path) -> Image.Image:
    """What the last evaluation of a run left in examples/ (`common.scores.gallery`), scaled to WIDTH."""
    found = sorted(run.glob("examples/median_*.png"))
    if not found:
        sys.exit(f"{run} holds no examples/median_*.png; name a finished run, such as that of a quickstart")
    picture = Image.open(found[0]).convert("RGB")
    return picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)


def main(runs: list[str], path: Path = PICTURE) -> None:
    rows = [median_example(Path(run)) for run in runs]
    sheet = Image.new("RGB", (WIDTH, sum(row.height + GAP for row in rows) - GAP), (255, 255, 255))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + GAP
    sheet.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    main(sys.argv[1:])
