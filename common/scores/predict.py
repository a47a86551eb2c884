"""From pictures to coloured masks, with the weights of any of our checkpoints or of the reference's."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from common.args import Parser, parse_with_network
from common.data.decode import IMAGE_SUFFIXES, large_pictures, open_image
from common.errors import ExitCode, InputError
from common.record.files import writable_folder
from common.scores.drawing import colour, name_of, overlay, palette_picture, shares, with_legend
from common.scores.inputs import LIST_SUFFIX, listed, matching
from common.values import factors, positive, probability
from common.values import path as path_of_user

LEAST_WINDOW = 64  # pixels of a side
NEARLY_ALL = 0.99  # share of a picture from which on it is said that one class covers it
SHOWN_SHARES = 5  # classes in the line of a picture
OVERLAY_PIXELS = 1 << 25  # an overlay is for looking at: that of a larger picture is made smaller


def parse_predict_args(options: dict[str, list[str] | str | int], description: str, argv: list[str] | None = None):
    """Flags of a predict.py. options: see `parse_with_network`."""
    parser = Parser(description=description)
    parser.add_argument(
        "--input", type=path_of_user, required=True, nargs="+",
        help="images, folders that are searched for images, patterns such as 'shots/*.jpg', lists of images (.txt)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=path_of_user, default="predictions", help="folder for the pictures; default: predictions"
    )
    parser.add_argument("--device", choices=("auto", "npu", "cuda", "gpu", "cpu"), default="auto")
    parser.add_argument(
        "--batch_size", type=positive, default=1, metavar="N",
        help="images that go through the network together, where neighbours have one size; default: 1",
    )  # fmt: skip
    parser.add_argument(
        "--window", type=_window, default=None, metavar="N",
        help="pictures above 8 megapixels are predicted by overlapping windows of side N; default: 2048; 0: whole",
    )  # fmt: skip
    parser.add_argument(
        "--threshold", type=probability, default=None, metavar="P",
        help="of two classes: the probability from which on a pixel is of the second one; default: 0.5",
    )  # fmt: skip
    parser.add_argument(
        "--probabilities", action="store_true",
        help="of two classes: also write <name>_prob.png, the probability of the second one in 16 bits (65535 is 1)",
    )  # fmt: skip
    parser.add_argument(
        "--scales", type=factors, default=[1.0], metavar="LIST",
        help="see each picture at these sizes and average the probabilities, as in an evaluation: 0.75,1,1.25",
    )  # fmt: skip
    parser.add_argument("--flip", action="store_true", help="see each picture also mirrored, as in an evaluation")
    return parse_with_network(parser, options, argv)


def _window(text: str) -> int:
    if not text.isdecimal() or 0 < int(text) < LEAST_WINDOW:
        raise argparse.ArgumentTypeError(f"'{text}' is neither 0 nor a whole number of at least {LEAST_WINDOW}")
    return int(text)


def find_images(source: str | Path) -> list[tuple[Path, Path]]:
    """The image, or every image below a folder, sorted, each with the folder that its results' names begin in.

    Also those that a pattern matches, or a list of images (.txt) names, a path a line: see `common.scores.inputs`.
    Of a folder, files and folders whose names begin with a dot are left out: ._photo.jpg holds notes of macOS, and
    .thumbnails small copies. Links to folders are followed. What else is no image by its name is counted, in a line.
    Raises InputError when there is none.
    """
    source = Path(source)
    if source.is_file():
        return listed(source) if source.suffix.lower() == LIST_SUFFIX else [(source, source.parent)]
    if not source.is_dir() and (found := matching(str(source))):
        return found
    if not source.is_dir():
        raise InputError(f"--input {source}: no such file or folder; give an image, a folder, a pattern or a list")
    files = sorted(_files_below(source))
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    kinds = Counter(path.suffix.lower() or "no suffix" for path in files if path.suffix.lower() not in IMAGE_SUFFIXES)
    others = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common(5))
    if not images:
        there = f"; it holds {others}" if others else ""
        raise InputError(f"--input {source} holds no image ({', '.join(IMAGE_SUFFIXES)}){there}; give another folder")
    if others:
        print(
            f"note: {kinds.total()} files in {shown(source)} are not images, judging by their names: {others}",
            flush=True,
        )
    return [(path, source) for path in images]


def _files_below(source: Path) -> Iterator[Path]:
    """Every file below a folder that is not hidden; a folder that links lead to from several places comes once."""
    root, seen = source.resolve(), set()
    for folder, names, files in os.walk(source, followlinks=True):
        names[:] = sorted(
            name for name in names if not name.startswith(".") and _is_new(Path(folder, name), root, seen)
        )
        for path in (Path(folder, name) for name in files if not name.startswith(".")):
            # a link that leads nowhere is a picture that is missing: it is listed, and not passed over
            if path.is_file() or (os.path.islink(path) and not os.path.exists(path)):
                yield path


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
    """Write for each image <name>_color.png, <name>_overlay.png and <name>_ids.png (class ids, in a palette).

    build_model, from_reference, info, to_input: the folder's, as `common.scores.network.Code` has them.
    Images of a folder keep their subfolders; see `result_names`. An output folder within the input is not searched for
    images. Returns the overlays. An image that cannot be predicted is listed at the end, and all others are done: then
    the program ends with ExitCode.OMISSIONS, or with InputError where none was done.
    """
    import torch

    from common.device.world import card_of_environment, find_device_type, setup
    from common.scores.network import Code, open_network
    from common.scores.views import Views
    from common.scores.windows import WINDOW

    _check_two_classes(args, info)
    images = _without_output({path: root for source in args.input for path, root in find_images(source)}, args)
    names = result_names(images)
    code, options = Code(build_model, from_reference, info, to_input), {"num_classes": info.num_classes, **args.options}
    world = setup(args.device, card_of_environment(find_device_type(args.device)))
    network = open_network(
        args.checkpoint, code, options, world, window=WINDOW if args.window is None else args.window,
        threshold=args.threshold, probabilities=args.probabilities,
        views=Views(scales=tuple(args.scales), flip=args.flip),
    )  # fmt: skip
    info = network.info
    torch.backends.cudnn.benchmark = False  # pictures have sizes of their own: the search would be paid for each
    output = writable_folder(args.output, "--output")

    written, failed = [], []
    for number, (path, image, seen) in enumerate(_all_seen(images, network.segmenter, args.batch_size), start=1):
        if isinstance(seen, InputError):
            failed.append(seen)
            continue
        found = shares(seen.ids)
        written.append(_write(output / names[path], image, seen, found, info))
        print(f"[{number}/{len(images)}] {shown(path)} -> {shown(written[-1])}: {_in_words(found, info)}", flush=True)
    if failed and not written:
        raise failed[0] if len(failed) == 1 else InputError(f"none of {len(failed)} pictures can be used: {failed[0]}")
    if failed:
        lines = [f"{len(failed)} of {len(images)} pictures could not be predicted:", *map(str, failed)]
        print(*lines, sep="\n  ", file=sys.stderr)
        sys.exit(ExitCode.OMISSIONS)
    return written


def _check_two_classes(args, info) -> None:
    """Raise InputError for what there is of two classes alone."""
    for flag, is_given in (("--threshold", args.threshold is not None), ("--probabilities", args.probabilities)):
        if is_given and len(info.class_names) != 2:
            raise InputError(f"{flag} is for two classes, and there are {len(info.class_names)} here; leave it out")


def _in_words(found: dict[int, float], info) -> str:
    """The share of each class, the largest first; said where one covers nearly all."""
    classes = [f"{name_of(number, info.class_names)} {share:.1%}" for number, share in found.items()]
    more = f" and {len(classes) - SHOWN_SHARES} more" if len(classes) > SHOWN_SHARES else ""
    alone = " (nearly all of it is one class)" if max(found.values()) >= NEARLY_ALL else ""
    return ", ".join(classes[:SHOWN_SHARES]) + more + alone


def _all_seen(paths: Iterable[Path], segmenter, batch_size: int) -> Iterator[tuple[Path, Image.Image | None, object]]:
    """(path, picture, what is seen in it, or the InputError that says why nothing is), in the order of the paths.

    Neighbours of one size go through the network together, up to `batch_size` of them; where that is too much for the
    memory, one by one.
    """
    waiting: list[tuple[Path, Image.Image]] = []
    for path in paths:
        try:
            with large_pictures():
                image, problem = open_image(path), None
        except InputError as error:
            image, problem = None, error
        if waiting and (problem or image.size != waiting[0][1].size):
            yield from _seen_together(waiting, segmenter)
            waiting = []
        if problem:
            yield path, None, problem
            continue
        waiting.append((path, image))
        if len(waiting) == batch_size:
            yield from _seen_together(waiting, segmenter)
            waiting = []
    if waiting:
        yield from _seen_together(waiting, segmenter)


def _seen_together(pictures: list[tuple[Path, Image.Image]], segmenter) -> list[tuple[Path, Image.Image, object]]:
    try:
        if len(pictures) > 1:
            seen = segmenter.see([image for _, image in pictures])
            return [(*picture, each) for picture, each in zip(pictures, seen, strict=True)]
    except (ValueError, RuntimeError, MemoryError):  # each alone says what is wrong with it
        pass
    return [(path, image, _seen_in(path, image, segmenter)) for path, image in pictures]


def _seen_in(path: Path, image: Image.Image, segmenter: Callable):
    """What is seen in a picture, or an InputError, naming the file, for a size that model or memory do not take."""
    from common.device.exits import is_out_of_memory

    try:
        return segmenter(image)
    except ValueError as error:  # a size that the model does not take
        return InputError(f"{path} cannot be predicted: {error}")
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return InputError(
            f"{path} ({image.width} x {image.height}) needs more memory than {segmenter.world.device} has; make the "
            "picture smaller, give a smaller --window, or use --device cpu"
        )


def _write(stem: Path, image: Image.Image, seen, found: dict[int, float], info) -> Path:
    """Write the results of an image, one after the other; returns the overlay. found: the share of each class."""
    stem.parent.mkdir(parents=True, exist_ok=True)

    def save(picture: Image.Image, kind: str) -> Path:
        path = stem.with_name(f"{stem.name}_{kind}.png")
        picture.save(path)
        return path

    ids = palette_picture(seen.ids, info.palette)
    save(ids, "ids")
    save(ids.convert("RGB"), "color")
    if seen.probability is not None:
        save(Image.fromarray(seen.probability), "prob")
    smaller = -(-max(1, image.width * image.height) // OVERLAY_PIXELS)
    factor = next(factor for factor in range(1, smaller + 1) if factor * factor >= smaller)
    picture = np.asarray(image.reduce(factor) if factor > 1 else image)
    colours = colour(np.asarray(ids.resize(picture.shape[1::-1], Image.Resampling.NEAREST)), info.palette)
    blended = with_legend(overlay(picture, colours), found, info.class_names, info.palette)
    return save(Image.fromarray(blended), "overlay")


def _without_output(images: dict[Path, Path], args) -> dict[Path, Path]:
    """Leave out what an earlier run wrote, where the output folder is in an input folder."""
    output = Path(args.output).resolve()
    named = set(map(Path, args.input))
    real = {path: Path(os.path.realpath(path)) for path in images}  # does not mind a link to itself
    others = {path: root for path, root in images.items() if path in named or output not in real[path].parents}
    if not others:
        raise InputError(
            f"all images of --input {' '.join(args.input)} are in --output {args.output}, where results would be taken "
            "for images; give another output folder"
        )
    return others


def load(checkpoint: str | Path, device: str = "auto", folder: str | None = None, **options: object):
    """A trained network for one's own program: see `common.scores.network.load`."""
    from common.scores.network import load as loaded

    return loaded(checkpoint, device, folder, **options)
