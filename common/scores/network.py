"""A trained network for one's own programs: a picture in, class ids or probabilities out."""

import ast
import importlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from common.data.colours import picture_to_input
from common.data.decode import large_pictures, open_image
from common.data.pictures import DatasetInfo
from common.device import npu
from common.device.placement import place
from common.device.world import World, device_count, find_device_type
from common.errors import InputError
from common.record.checkpoint import check_exists, is_ours, load_model, read
from common.scores.windows import WINDOW, Segmenter

ROOT = Path(__file__).resolve().parents[2]  # of the repository: the folders of the models are in it
MODULES = ("model", "weights", "data")  # of such a folder

Picture = str | Path | Image.Image | np.ndarray


class Code(NamedTuple):
    """What a model's folder gives for its trained networks; to_input: see `open_network`."""

    build_model: Callable
    from_reference: Callable
    info: DatasetInfo
    to_input: Callable | None = None


class Network:
    """A trained network, and what it knows of its classes.

    info: `class_names` and `palette`, by class id. segmenter: what sees the pictures.
    """

    def __init__(self, segmenter: Segmenter, info: DatasetInfo):
        self.segmenter, self.info = segmenter, info

    def __call__(self, picture: Picture | Sequence[Picture], probabilities: bool = False):
        """[H, W] uint8 class ids of a picture at its own size, or [C, H, W] float32: the probability of each class.

        picture: a file, a PIL picture, or an array [H, W, 3] of RGB or [H, W] of grey, uint8. Of a list of pictures,
        a list: neighbours of one size go through the network together. Raises InputError for what is no picture, and
        ValueError for a size that the network does not take.
        """
        alone = isinstance(picture, Picture)
        images = [_opened(each) for each in ([picture] if alone else picture)]
        found = []
        for _, same in groupby(images, key=lambda image: image.size):
            together = list(same)
            if probabilities:
                found += self.segmenter.class_probabilities(together)
            else:
                found += [seen.ids for seen in self.segmenter.see(together)]
        return found[0] if alone else found


def load(checkpoint: str | Path, device: str = "auto", folder: str | None = None, **options: object) -> Network:
    """The network of a checkpoint, ready to see pictures.

    device: auto, cpu, cuda, npu, or cuda:1. A checkpoint of ours says of which network it is; its folder is found by
    that. folder, options: for files of a reference, which do not: the model's folder, and what its `build_model` takes.
    Raises InputError for a file or a device that cannot be used.
    """
    path = check_exists(checkpoint)
    code = code_of(folder or _folder_of(path))
    return open_network(path, code, {"num_classes": code.info.num_classes, **options}, _device(device))


def open_network(path: str | Path, code: Code, options: dict, world: World, **how: object) -> Network:
    """The network of a file with the code of its folder.

    code.info: of the published data, for files that do not say what they were trained on. code.to_input: (PIL picture
    in RGB, options of the network) -> what the network takes of it, [3, h, w], where that is not the picture itself;
    logits of another size than the picture are resized to it. options: of build_model, for files that name none.
    how: `window`, `threshold`, `probabilities` and `views` of the Segmenter. Raises InputError.
    """
    model = load_model(path, code.build_model, code.from_reference, options)
    info = code.info.of_network(model)
    prepare = partial(picture_to_input, mean=info.mean, std=info.std)
    if code.to_input:
        # a network that is given a picture at a size of its own has to see all of it
        prepare, how = partial(code.to_input, options=model.options), {**how, "window": 0}
    return Network(Segmenter(place(model, world).eval(), prepare, world, **{"window": WINDOW, **how}), info)


def code_of(folder: str) -> Code:
    """What a model's folder gives; raises InputError for what is none."""
    if not folder.isidentifier() or not all((ROOT / folder / f"{name}.py").is_file() for name in MODULES):
        raise InputError(f"{folder} is not a model's folder in {ROOT}; give one of {', '.join(_folders())}")
    model, weights, data = (importlib.import_module(f"{folder}.{name}") for name in MODULES)
    return Code(model.build_model, weights.from_reference, data.INFO, getattr(data, "to_input", None))


def _folders() -> list[str]:
    """The models' folders, by their files."""
    return sorted(
        path.name for path in ROOT.iterdir() if all((path / f"{name}.py").is_file() for name in (*MODULES, "train"))
    )


def _folder_of(path: Path) -> str:
    """The folder whose model.py has the class that a checkpoint is of. Raises InputError where there is none."""
    if path.suffix == ".onnx":
        from common.nets.onnx_network import OnnxNetwork

        name = OnnxNetwork(path).model_class
    else:
        content = read(path)
        if not is_ours(content):
            raise InputError(
                f"{path} does not say of which network it is; give folder=, one of {', '.join(_folders())}"
            )
        name = content["model_class"]
    for folder in _folders():
        code = ast.parse((ROOT / folder / "model.py").read_text(encoding="utf-8"))
        if any(isinstance(node, ast.ClassDef) and node.name == name for node in code.body):
            return folder
    raise InputError(f"{path} is of the network {name}, which no folder here has ({', '.join(_folders())})")


def _device(text: str) -> World:
    """A device for this program, which may have others: nothing is seeded, and no other process is joined."""
    kind, _, number = text.partition(":")
    if kind not in ("auto", "cpu", "cuda", "gpu", "npu") or (number and not number.isdecimal()):
        raise InputError(f"device {text!r} is none of auto, cpu, cuda, npu, or one with a number, such as cuda:1")
    kind = find_device_type(kind)
    if kind == "cpu":
        return World(torch.device("cpu"), channels_last=True)
    if int(number or 0) >= device_count(kind):
        raise InputError(f"device {text!r} is not there: this machine has {device_count(kind)} of {kind}")
    if kind == "npu":
        npu.set_up()
    return World(torch.device(kind, int(number or 0)), channels_last=kind != "npu")


def _opened(picture: Picture) -> Image.Image:
    if isinstance(picture, str | Path):
        with large_pictures():
            return open_image(picture)
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    is_array = isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.size
    if is_array and picture.ndim >= 2 and picture.shape[2:] in ((), (3,)):
        return Image.fromarray(picture).convert("RGB")
    what = f"an array {list(picture.shape)} of {picture.dtype}" if isinstance(picture, np.ndarray) else repr(picture)
    raise InputError(
        f"{what[:80]} is not a picture; give a file, a PIL picture, or uint8 of the shape [H, W, 3] or [H, W]"
    )
