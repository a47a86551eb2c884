"""Lays out the embedded sample: a small data set of drawn pictures, for whoever has none.

Every picture has its own random generator, keyed by (seed, split, index): a sample is a function of its arguments.
"""

import errno
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from common.cityscapes import TRAIN_ID_OF_LABEL_ID
from common.errors import InputError
from common.street import draw_scene

VERSION = 2  # raise it whenever the pictures change, so that old samples are drawn anew
STAMP = "sample.json"  # in the root of a sample: the arguments it was drawn with
CITIES = {"train": ("ahornau", "erlenthal", "fichtenried", "weidenfurt"), "val": ("lindenmark", "ulmenhain")}
FRAME = 19  # the annotated frame of each snippet of real Cityscapes


def cityscapes_sample() -> Path:
    """The embedded sample in the layout of Cityscapes, drawn into data/sample/ of the repository unless it is there."""
    return draw_cityscapes(Path(__file__).resolve().parents[1] / "data" / "sample" / "cityscapes")


def draw_cityscapes(
    root: str | Path, train_images: int = 160, val_images: int = 32, size: tuple[int, int] = (256, 512), seed: int = 0
) -> Path:
    """Draw street scenes of `size` (height, width) into `root`, in the layout of Cityscapes, and return `root`.

    A sample drawn with the same arguments is left as it is; one drawn with others is replaced. The folder appears in
    one piece, so any number of processes may ask for it at once. Raises InputError when `root` holds anything else.
    """
    root = Path(root)
    counts = {"train": train_images, "val": val_images}
    stamp = {"layout": "cityscapes", "version": VERSION, **counts, "size": list(size), "seed": seed}
    names = [name for split in counts for i in range(counts[split]) for name in _cityscapes_names(split, i)]

    def write(folder: Path) -> None:
        for split, count in counts.items():
            for index in range(count):
                _write_cityscapes(folder, split, index, size, seed)

    return _publish(root, stamp, names, write)


def _cityscapes_names(split: str, index: int) -> tuple[str, str, str]:
    """The files of one picture below the root: picture, label ids, train ids."""
    turn, city = divmod(index, len(CITIES[split]))
    city = CITIES[split][city]
    stem = f"{split}/{city}/{city}_{turn:06d}_{FRAME:06d}"
    labels = f"gtFine/{stem}_gtFine_label"
    return f"leftImg8bit/{stem}_leftImg8bit.png", f"{labels}Ids.png", f"{labels}TrainIds.png"


def _write_cityscapes(folder: Path, split: str, index: int, size: tuple[int, int], seed: int) -> None:
    rng = np.random.Generator(np.random.PCG64([seed, list(CITIES).index(split), index]))
    picture, label_ids = draw_scene(size, rng, index)
    files = zip(_cityscapes_names(split, index), (picture, label_ids, TRAIN_ID_OF_LABEL_ID[label_ids]), strict=True)
    for name, pixels in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, compress_level=1)  # noise does not compress; 1 is four times as fast as 6


def _publish(root: Path, stamp: dict, names: list[str], write: Callable[[Path], None]) -> Path:
    """Let `write` fill a folder beside `root`, then rename it into place; of several processes the last one discards.

    Killed half-way, it leaves a hidden folder beside `root` and nothing in it; the next call starts anew.
    """
    if _is_drawn(root, stamp, names):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent, ignore_cleanup_errors=True) as workshop:
        fresh, old = Path(workshop, "fresh"), Path(workshop, "old")
        fresh.mkdir()
        old.mkdir()
        write(fresh)
        (fresh / STAMP).write_text(json.dumps(stamp) + "\n")
        while True:
            try:
                fresh.rename(root)
                return root
            except OSError as error:  # a folder is there: only an empty one can be renamed over
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            if _is_drawn(root, stamp, names):
                return root
            with suppress(FileNotFoundError):  # another process may have moved it away just now
                root.rename(old / str(len(os.listdir(old))))


def _is_drawn(root: Path, stamp: dict, names: list[str]) -> bool:
    """Whether `root` holds the sample of this stamp, whole; InputError when it holds something that is no sample."""
    while True:
        try:
            entries = os.listdir(root)
            if not entries:
                return False
            if STAMP not in entries:
                break
            found = json.loads((root / STAMP).read_text())
        except NotADirectoryError:
            break
        except FileNotFoundError:
            if not root.exists():
                return False
            continue  # another process has put its own in place between the two looks
        except ValueError:
            break
        return found == stamp and all((root / name).is_file() for name in names)
    raise InputError(
        f"{root} holds no sample drawn here (no {STAMP} of ours in it), and is not touched; "
        "name a folder that does not exist yet"
    )
