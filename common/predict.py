"""From pictures to coloured masks, with the weights of any of our checkpoints or of the reference's."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from common import IGNORE_INDEX
from common.args import Parser
from common.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".tif", ".tiff", ".webp")


def parse_predict_args(options: dict[str, list[str]], description: str, argv: list[str] | None = None):
    """Flags of a predict.py. options: name -> choices of what `build_model` takes; the first is the default.

    Files of our own training say themselves how their model is built; the options are for files of the reference.
    """
    parser = Parser(description=description)
    parser.add_argument("--checkpoint", required=True, help="weights: checkpoints/best.pt, or a file of the reference")
    parser.add_argument("--input", required=True, help="an image, or a folder that is searched for images")
    parser.add_argument("--output", required=True, help="folder for the pictures; made if it is not there")
    parser.add_argument("--device", choices=("auto", "npu", "cuda", "gpu", "cpu"), default="auto")
    for name, choices in options.items():
        parser.add_argument(
            f"--{name}", choices=choices, default=choices[0], help=f"for files of the reference; default: {choices[0]}"
        )
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


def find_images(source: str | Path) -> list[Path]:
    """The image, or every image below a folder, sorted. Raises InputError when there is none."""
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError(f"--input {source}: no such file or folder; give an image or a folder of images")
    images = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not images:
        raise InputError(f"--input {source} holds no image ({', '.join(IMAGE_SUFFIXES)}); give another folder")
    return images


def predict(
    args,
    build_model: Callable,
    from_reference: Callable,
    normalize: Callable,
    palette: Sequence[tuple[int, int, int]],
    num_classes: int,
) -> list[Path]:
    """Write for each image <name>_color.png, <name>_overlay.png and <name>_ids.png (class ids), all of its own size.

    Images of a folder keep their subfolders, and images whose names differ in the suffix alone keep it, so that equal
    names do not collide. An output folder within the input is not searched for images. Returns the overlays.
    """
    import torch

    from common.checkpoint import load_model
    from common.device import setup
    from common.transforms import read_image

    root = Path(args.input) if Path(args.input).is_dir() else Path(args.input).parent
    images = _without_output(find_images(args.input), args)
    model = load_model(args.checkpoint, build_model, from_reference, {"num_classes": num_classes, **args.options})
    world = setup(args.device)
    output = _writable_folder(args.output)
    model.to(world.device).eval()

    written = []
    same_stem = Counter(path.with_suffix("") for path in images)
    for number, path in enumerate(images, start=1):
        image = ImageOps.exif_transpose(read_image(path))  # a phone's pictures as people see them
        try:
            with torch.no_grad():
                logits = model(normalize(image)[None].to(world.device))  # [1, C, H, W]
        except ValueError as error:  # a size that the model does not take
            raise InputError(f"{path} cannot be predicted: {error}") from error
        class_ids = logits[0].argmax(0).to(torch.uint8).cpu().numpy()  # [H, W]
        colours = colour(class_ids, palette)
        stem = output / (path if same_stem[path.with_suffix("")] > 1 else path.with_suffix("")).relative_to(root)
        stem.parent.mkdir(parents=True, exist_ok=True)
        files = {
            "ids": Image.fromarray(class_ids),
            "color": Image.fromarray(colours),
            "overlay": Image.fromarray(overlay(np.asarray(image), colours)),
        }
        for kind, picture in files.items():
            picture.save(stem.with_name(f"{stem.name}_{kind}.png"))
        written.append(stem.with_name(f"{stem.name}_overlay.png"))
        print(f"[{number}/{len(images)}] {path} -> {written[-1]}", flush=True)
    return written


def _without_output(images: list[Path], args) -> list[Path]:
    """Leave out what an earlier run wrote, where the output folder is in the input folder."""
    output = Path(args.output).resolve()
    if images == [Path(args.input)]:
        return images
    others = [path for path in images if output not in path.resolve().parents]
    if not others:
        raise InputError(
            f"all images of --input {args.input} are in --output {args.output}, where results would be taken for "
            "images; give another output folder"
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
