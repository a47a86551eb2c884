"""From pictures to coloured masks, with the weights of any of our checkpoints or of the reference's."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from common import IGNORE_INDEX
from common.args import Parser
from common.data.decode import IMAGE_SUFFIXES, open_image
from common.errors import InputError

PARTLY_DONE = 4  # exit code: some of the pictures could not be predicted, and all others were


def parse_predict_args(options: dict[str, list[str] | str | int], description: str, argv: list[str] | None = None):
    """Flags of a predict.py. options: name -> what `build_model` takes: choices, default first, or the default alone.

    Files of our own training say themselves how their model is built; the options are for files of the reference.
    """
    parser = Parser(description=description)
    parser.add_argument("--checkpoint", required=True, help="weights: checkpoints/best.pt, or a file of the reference")
    parser.add_argument("--input", required=True, nargs="+", help="images, or folders that are searched for images")
    parser.add_argument("--output", default="predictions", help="folder for the pictures; default: predictions")
    parser.add_argument("--device", choices=("auto", "npu", "cuda", "gpu", "cpu"), default="auto")
    for name, values in options.items():
        choices, default = (values, values[0]) if isinstance(values, list) else (None, values)
        parser.add_argument(
            f"--{name}", type=type(default), choices=choices, default=default,
            help=f"for files of the reference; default: {default}",
        )  # fmt: skip
    args = parser.parse_args(argv)
    args.options = {name: getattr(args, name) for name in options}
    return args


def colour(class_ids: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """[H, W] class ids -> [H, W, 3] uint8 in the data set's colours; ignored pixels are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[IGNORE_INDEX] = 0
    return table[class_ids.astype(np.uint8)]


def overlay(image: np.ndarray, colours: np.ndarray, strength: float = 0.55) -> np.ndarray:
    """The colours laid over the picture, both [H, W, 3] uint8."""
    return (image * (1 - strength) + colours * strength).round().astype(np.uint8)


def panel(image: np.ndarray, target: np.ndarray, prediction: np.ndarray, palette) -> np.ndarray:
    """Image, truth and prediction side by side: [H, 3 W, 3] uint8."""
    return np.concatenate([image, colour(target, palette), colour(prediction, palette)], axis=1)


def find_images(source: str | Path) -> list[tuple[Path, Path]]:
    """The image, or every image below a folder, sorted, each with the folder that its results' names begin in.

    Of a folder, files and folders whose names begin with a dot are left out: ._photo.jpg holds notes of macOS, and
    .thumbnails small copies. Links to folders are followed. What else is no image by its name is counted, in a line.
    Raises InputError when there is none.
    """
    source = Path(source)
    if source.is_file():
        return [(source, source.parent)]
    if not source.is_dir():
        raise InputError(f"--input {source}: no such file or folder; give an image or a folder of images")
    files = sorted(_files_below(source))
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    kinds = Counter(path.suffix.lower() or "no suffix" for path in files if path.suffix.lower() not in IMAGE_SUFFIXES)
    others = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common(5))
    if not images:
        there = f"; it holds {others}" if others else ""
        raise InputError(f"--input {source} holds no image ({', '.join(IMAGE_SUFFIXES)}){there}; give another folder")
    if others:
        print(f"note: {kinds.total()} files in {shown(source)} are no images by their names: {others}", flush=True)
    return [(path, source) for path in images]


def _files_below(source: Path) -> Iterator[Path]:
    """Every file below a folder that is not hidden; a folder that links lead to from several places comes once."""
    root, seen = source.resolve(), set()
    for folder, names, files in os.walk(source, followlinks=True):
        names[:] = sorted(
            name for name in names if not name.startswith(".") and _is_new(Path(folder, name), root, seen)
        )
        yield from (path for name in files if not name.startswith(".") and (path := Path(folder, name)).is_file())


def _is_new(folder: Path, root: Path, seen: set[Path]) -> bool:
    """Whether the folder is no link to one that is found without it, below `root`, or by another link."""
    if not folder.is_symlink():
        return True
    target = folder.resolve()
    if target in seen or target == root or root in target.parents or target in root.parents:
        return False
    seen.add(target)
    return True


def result_names(images: dict[Path, Path]) -> dict[Path, Path]:
    """What the results of each image begin with, below the output folder: its name without the suffix.

    images: each with the folder that its name begins in. Where that would be the name of two, both keep the suffix.
    Raises InputError for images of one name in two folders.
    """
    names = {path: path.relative_to(root).with_suffix("") for path, root in images.items()}
    while shared := {name for name, count in Counter(names.values()).items() if count > 1}:
        keeping = {path: path.relative_to(root) for path, root in images.items() if names[path] in shared}
        if all(names[path] == name for path, name in keeping.items()):
            collision = min(keeping.values())
            raise InputError(f"two images of --input would be written as {collision}; predict them in two runs")
        names |= keeping
    return names


def shown(path: Path) -> str:
    """A path for people; other systems leave names behind that are no UTF-8, and cannot be printed."""
    return os.fsencode(path).decode("utf-8", "replace")


def predict(
    args, build_model: Callable, from_reference: Callable, info, to_input: Callable | None = None
) -> list[Path]:
    """Write for each image <name>_color.png, <name>_overlay.png and <name>_ids.png (class ids), all of its own size.

    build_model, from_reference: the folder's. info: the `DatasetInfo` of the published data, for checkpoints that do
    not say what they were trained on. to_input: (PIL picture in RGB, options of the network) -> what the network takes
    of it, [3, h, w], where that is not the picture itself;
    logits of another size than the picture are resized to it.
    Images of a folder keep their subfolders; see `result_names`. An output folder within the input is not searched for
    images. Returns the overlays. An image that cannot be predicted is listed at the end, and all others are done: then
    the program ends with PARTLY_DONE, or with InputError where none was done.
    """
    import torch

    from common.data.colours import picture_to_input
    from common.device.placement import place
    from common.device.world import card_of_environment, find_device_type, setup
    from common.record.checkpoint import load_model

    images = _without_output({path: root for source in args.input for path, root in find_images(source)}, args)
    names = result_names(images)
    model = load_model(args.checkpoint, build_model, from_reference, {"num_classes": info.num_classes, **args.options})
    if model.data_info:
        info = type(info).of_description(model.data_info)
    prepare = (
        partial(to_input, options=model.options)
        if to_input
        else partial(picture_to_input, mean=info.mean, std=info.std)
    )
    world = setup(args.device, card_of_environment(find_device_type(args.device)))
    torch.backends.cudnn.benchmark = False  # pictures have sizes of their own: the search would be paid for each
    output = _writable_folder(args.output)
    place(model, world).eval()

    written, failed = [], []
    for number, path in enumerate(images, start=1):
        try:
            image = open_image(path)
            ids = _ids_of(path, image, model, prepare, world)
        except InputError as error:
            failed.append(error)
            continue
        written.append(_write(output / names[path], image, ids, info.palette))
        print(f"[{number}/{len(images)}] {shown(path)} -> {shown(written[-1])}", flush=True)
    if failed and not written:
        raise failed[0] if len(failed) == 1 else InputError(f"none of {len(failed)} pictures can be used: {failed[0]}")
    if failed:
        lines = [f"{len(failed)} of {len(images)} pictures could not be predicted:", *map(str, failed)]
        print(*lines, sep="\n  ", file=sys.stderr)
        sys.exit(PARTLY_DONE)
    return written


def _ids_of(path: Path, image: Image.Image, model, prepare: Callable, world) -> np.ndarray:
    """`segment`; raises InputError, naming the file, for a size that the model or the memory does not take."""
    from common.device.exits import is_out_of_memory

    try:
        return segment(model, image, prepare, world)
    except ValueError as error:  # a size that the model does not take
        raise InputError(f"{path} cannot be predicted: {error}") from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"{path} ({image.width} x {image.height}) needs more memory than {world.device} has; make the picture "
            "smaller, or use --device cpu"
        ) from error


def _write(stem: Path, image: Image.Image, ids: np.ndarray, palette) -> Path:
    """Write the results of an image; returns the overlay."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    colours = colour(ids, palette)
    files = {
        "ids": Image.fromarray(ids),
        "color": Image.fromarray(colours),
        "overlay": Image.fromarray(overlay(np.asarray(image), colours)),
    }
    for kind, picture in files.items():
        picture.save(stem.with_name(f"{stem.name}_{kind}.png"))
    return stem.with_name(f"{stem.name}_overlay.png")


def segment(model, image: Image.Image, to_input: Callable, world) -> np.ndarray:
    """Class ids [H, W] uint8 of a picture in RGB, by a model in eval mode on the device of `world`.

    to_input: a PIL picture in RGB -> what the network takes of it, [3, h, w]. ValueError for a size that the
    model does not take.
    """
    import torch
    from torch.nn import functional as F

    from common.scores.metrics import class_ids
    from common.step.losses import at_least_float32

    with torch.no_grad():
        logits = model(to_input(image)[None].to(world.device, memory_format=world.memory_format))  # [1, C, h, w]
        size = (image.height, image.width)
        if logits.shape[-2:] != size:
            logits = F.interpolate(at_least_float32(logits), size=size, mode="bilinear", align_corners=False)
        return class_ids(logits)[0].to(torch.uint8).cpu().numpy()


def _without_output(images: dict[Path, Path], args) -> dict[Path, Path]:
    """Leave out what an earlier run wrote, where the output folder is in an input folder."""
    output = Path(args.output).resolve()
    named = set(map(Path, args.input))
    others = {path: root for path, root in images.items() if path in named or output not in path.resolve().parents}
    if not others:
        raise InputError(
            f"all images of --input {' '.join(args.input)} are in --output {args.output}, where results would be taken "
            "for images; give another output folder"
        )
    return others


def _writable_folder(path: str) -> Path:
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise InputError(f"--output {folder} cannot be written to ({reason}); give another folder") from error
    return folder
