"""Lays out the embedded sample: small data sets of drawn pictures, for whoever has none.

Every picture has its own random generator, keyed by (seed, split, index): a sample is a function of its arguments.
"""

import errno
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from common.data.cityscapes import TRAIN_ID_OF_LABEL_ID
from common.errors import InputError
from common.samples.lesion import draw_lesion
from common.samples.objects import draw_objects
from common.samples.street import draw_scene
from common.terminal import progress

TRAIN_IMAGES = 160  # where nothing else is said
# As many as VOC 2012 itself has: twenty kinds of things are not learned from eight pictures of each.
VOC_TRAIN_IMAGES = 1464
STAMP = "sample.json"  # in the root of a sample: the arguments it was drawn with
CITIES = {"train": ("ahornau", "erlenthal", "fichtenried", "weidenfurt"), "val": ("lindenmark", "ulmenhain")}
FRAME = 19  # the annotated frame of each snippet of real Cityscapes
VOC_YEARS = {"train": 2007, "val": 2008}  # in front of the numbers of the pictures
ISIC_SPLITS = ("train", "valid", "test")


class Layout(NamedTuple):
    """How one data set lies on the disk, and who draws its pictures."""

    name: str
    version: int  # raise it whenever the pictures change, so that old samples are drawn anew
    names: Callable[[str, int], tuple[str, ...]]  # (split, index) -> the files of one picture below the root
    draw: Callable[[tuple[int, int], np.random.Generator, int], tuple[Image.Image, ...]]  # -> their contents
    lists: Callable[[dict[str, int]], dict[str, str]]  # images per split -> text files below the root


# ---- the layouts -----------------------------------------------------------------------------------------------------


def _cityscapes_names(split: str, index: int) -> tuple[str, str, str]:
    """Picture, label ids, train ids."""
    turn, city = divmod(index, len(CITIES[split]))
    city = CITIES[split][city]
    stem = f"{split}/{city}/{city}_{turn:06d}_{FRAME:06d}"
    labels = f"gtFine/{stem}_gtFine_label"
    return f"leftImg8bit/{stem}_leftImg8bit.png", f"{labels}Ids.png", f"{labels}TrainIds.png"


def _cityscapes_images(size: tuple[int, int], rng: np.random.Generator, index: int) -> tuple[Image.Image, ...]:
    picture, label_ids = draw_scene(size, rng, index)
    return tuple(Image.fromarray(pixels) for pixels in (picture, label_ids, TRAIN_ID_OF_LABEL_ID[label_ids]))


def _voc_names(split: str, index: int) -> tuple[str, str]:
    """Picture, class ids."""
    stem = _voc_stem(split, index)
    return f"VOC2012/JPEGImages/{stem}.jpg", f"VOC2012/SegmentationClass/{stem}.png"


def _voc_stem(split: str, index: int) -> str:
    return f"{VOC_YEARS[split]}_{index + 1:06d}"


def _voc_images(size: tuple[int, int], rng: np.random.Generator, index: int) -> tuple[Image.Image, ...]:
    """About every fourth picture is in portrait format."""
    picture, class_ids = draw_objects(size if rng.random() < 0.75 else size[::-1], rng, index)
    labels = Image.fromarray(class_ids)
    labels.putpalette(voc_palette())  # turns mode L into P; the indices stay
    return Image.fromarray(picture), labels


def voc_palette() -> list[int]:
    """Red, green and blue of the 256 indices in turn: the bits of an index, lowest first, fill them from the top."""
    return [
        sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))
        for index in range(256)
        for channel in range(3)
    ]


def _voc_lists(counts: dict[str, int]) -> dict[str, str]:
    stems = {split: [_voc_stem(split, index) for index in range(count)] for split, count in counts.items()}
    stems["trainval"] = stems["train"] + stems["val"]
    return {
        f"VOC2012/ImageSets/Segmentation/{name}.txt": "".join(f"{stem}\n" for stem in stems[name]) for name in stems
    }


def _isic_names(split: str, index: int) -> tuple[str, str]:
    """Picture, mask. The numbers go round the splits, as those of a data set that was split at random."""
    stem = f"ISIC_{index * len(ISIC_SPLITS) + ISIC_SPLITS.index(split):07d}"
    return f"{split}/{stem}.jpg", f"{split}_GT/{stem}_segmentation.png"


def _isic_images(size: tuple[int, int], rng: np.random.Generator, index: int) -> tuple[Image.Image, ...]:
    return tuple(Image.fromarray(pixels) for pixels in draw_lesion(size, rng, index))


CITYSCAPES = Layout("cityscapes", 2, _cityscapes_names, _cityscapes_images, lambda counts: {})
VOC = Layout("voc", 1, _voc_names, _voc_images, _voc_lists)
ISIC = Layout("isic", 1, _isic_names, _isic_images, lambda counts: {})
LAYOUTS = tuple(layout.name for layout in (CITYSCAPES, VOC, ISIC))


# ---- drawing a sample ------------------------------------------------------------------------------------------------


def data_root(data_path: str | Path, layout: str) -> Path:
    """The folder of a data set; 'sample' is the embedded one of this layout, drawn where it is not there yet."""
    return embedded(layout) if str(data_path) == "sample" else Path(data_path)


def embedded(layout: str) -> Path:
    """The embedded sample in one of LAYOUTS, drawn into data/sample/ of the repository unless it is there."""
    return draw(layout, Path(__file__).resolve().parents[2] / "data" / "sample" / layout)


def draw(
    layout: str,
    root: str | Path,
    train_images: int | None = None,
    val_images: int = 32,
    size: tuple[int, int] | None = None,
    seed: int = 0,
) -> Path:
    """Draw a sample in one of LAYOUTS; `train_images` and `size` (height, width): None for those of the layout."""
    drawers = dict(zip(LAYOUTS, (draw_cityscapes, draw_voc, draw_isic), strict=True))
    if layout not in drawers:
        raise InputError(f"no sample has the layout '{layout}'; choose one of {', '.join(LAYOUTS)}")
    chosen = {"train_images": train_images, "size": size}
    given = {name: value for name, value in chosen.items() if value is not None}
    return drawers[layout](root, val_images=val_images, seed=seed, **given)


def draw_cityscapes(
    root: str | Path,
    train_images: int = TRAIN_IMAGES,
    val_images: int = 32,
    size: tuple[int, int] = (256, 512),
    seed: int = 0,
) -> Path:
    """Draw street scenes of `size` (height, width) into `root`, in the layout of Cityscapes, and return `root`.

    A sample drawn with the same arguments is left as it is; one drawn with others is replaced. The folder appears in
    one piece, so any number of processes may ask for it at once. Raises InputError when `root` holds anything else.
    """
    return _draw(CITYSCAPES, Path(root), {"train": train_images, "val": val_images}, size, seed)


def draw_voc(
    root: str | Path,
    train_images: int = VOC_TRAIN_IMAGES,
    val_images: int = 32,
    size: tuple[int, int] = (96, 128),
    seed: int = 0,
) -> Path:
    """Draw things of the 20 classes in the layout of PASCAL VOC 2012; `root` is the VOCdevkit folder.

    Some pictures have `size` (height, width) swapped. Labels are palette PNGs: 0..20, 255 along the outlines. Otherwise
    as `draw_cityscapes`.
    """
    return _draw(VOC, Path(root), {"train": train_images, "val": val_images}, size, seed)


def draw_isic(
    root: str | Path,
    train_images: int = TRAIN_IMAGES,
    val_images: int = 32,
    size: tuple[int, int] = (144, 192),
    seed: int = 0,
    test_images: int | None = None,
) -> Path:
    """Draw skin lesions in the layout of ISIC 2018, split into train, valid and test; masks are 0 and 255.

    Without `test_images` there are as many as in valid. Otherwise as `draw_cityscapes`.
    """
    counts = (train_images, val_images, val_images if test_images is None else test_images)
    return _draw(ISIC, Path(root), dict(zip(ISIC_SPLITS, counts, strict=True)), size, seed)


def _draw(layout: Layout, root: Path, counts: dict[str, int], size: tuple[int, int], seed: int) -> Path:
    """The sample with counts[split] pictures of each split; splits are numbered in the order of `counts`."""
    stamp = {"layout": layout.name, "version": layout.version, **counts, "size": list(size), "seed": seed}
    lists = layout.lists(counts)
    names = [name for split, count in counts.items() for i in range(count) for name in layout.names(split, i)]

    def write(folder: Path) -> None:
        drawn = [(number, split, index) for number, split in enumerate(counts) for index in range(counts[split])]
        for number, split, index in progress(drawn, "drawing the sample", len(drawn), "picture"):
            rng = np.random.Generator(np.random.PCG64([seed, number, index]))
            images = layout.draw(size, rng, index)
            for name, image in zip(layout.names(split, index), images, strict=True):
                _save(image, folder / name)
        for name, text in lists.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    return _publish(root, stamp, [*names, *lists], write)


def _save(image: Image.Image, path: Path) -> None:
    """As PNG or JPEG, as its name says; each format passes over the option of the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=92, compress_level=1)  # noise does not compress; level 1 is four times as fast as 6


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
