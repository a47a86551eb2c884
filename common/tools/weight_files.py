"""Files of weights: written anew in our form, and those that are published."""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from common.errors import InputError
from common.nets.backbone import torchvision_models
from common.nets.imagenet import weight_folders
from common.record.checkpoint import FORMAT, is_ours, load_model, read, without_training
from common.record.files import writable_folder, write_atomically
from common.record.foreign import NAMES_OF_OURS, OtherNetwork
from common.record.safetensors_file import SUFFIX, write_safetensors
from common.record.tensors import check_archive
from common.version import code_version

ROOT = Path(__file__).resolve().parents[2]
MODELS = sorted(path.parent.name for path in ROOT.glob("*/train.py"))
# SHA-1 of PyTorch-Encoding's files, whose names begin it
SHA1 = {
    "resnet50-25c4b509.pth": "25c4b50959ef024fcc050213a06b614899f94b3d",
    "resnet101-2a57e44d.pth": "2a57e44de9c853fa015b172309a1ee7e2d0e4e2a",
    "resnet152-0d43d698.pth": "0d43d698c66aceaa2bc0309f55efdd7ff4b143af",
}


def convert(source: Path, target: Path, model: str | None = None) -> str:
    """Write the weights of any file that is read here as a checkpoint of ours; returns a line about them.

    target: a .pt or a .safetensors file that is not there yet. model: the folder; without it, the one that knows the
    file. Raises InputError for a file that no folder, or not this one, takes.
    """
    if target.suffix not in (".pt", SUFFIX):
        raise InputError(f"{target} is to be written, and its kind is unknown; end its name in .pt or {SUFFIX}")
    if target.exists():
        raise InputError(f"{target} already exists; give the name of a new file")
    content = read(source, mapped=True)
    writable_folder(target.parent, "the folder")
    if is_ours(content):
        if model and content["model_class"] != (other := _build_model(model).__annotations__["return"].__name__):
            raise InputError(
                f"{source} is a checkpoint of our {content['model_class']}, and --model {model} builds {other}; leave "
                "--model out"
            )
        averaged = ", the averaged weights (--ema)" if "ema" in content else ""
        line = f"{source}: our {content['model_class']}{averaged}"
        content = without_training(content)
    else:
        lines: list[str] = []
        content = _ours(source, model or _folder_of(content, source), lines)
        line = lines[0]
    if target.suffix == SUFFIX:
        write_safetensors(target, content)
    else:
        write_atomically(target, lambda file: torch.save(content, file), check_archive)
    return f"{line}; written to {target}, {target.stat().st_size / 2**20:.1f} MiB"


def _build_model(name: str) -> Callable:
    return importlib.import_module(f"{name}.model").build_model


def _folder_of(content: dict, source: Path) -> str:
    """The folder that knows what the file is."""
    refusals = []
    for name in MODELS:
        try:
            if importlib.import_module(f"{name}.weights").from_reference(content).kind != NAMES_OF_OURS:
                return name
        except OtherNetwork as error:
            refusals.append(error)
    if refusals:  # the longest says most: some folders know only whose file it is
        raise OtherNetwork(f"{source} {max(refusals, key=lambda error: len(str(error)))}")
    raise InputError(f"no folder knows what {source} is; name the one whose network it is with --model")


def _ours(source: Path, name: str, lines: list[str]) -> dict:
    """The fields of a checkpoint for the weights of another program."""
    build_model = _build_model(name)
    from_reference = importlib.import_module(f"{name}.weights").from_reference
    network = load_model(source, build_model, from_reference, {}, lines.append)
    made_by = {
        "preset": f"none: converted from {source.name}",
        "flags": {},
        "schedule_steps": 0,
        "data": {},
        "code": code_version(),
        "changes": [],
    }
    return {
        "format": FORMAT,
        "model_class": type(network).__name__,
        "options": network.options,
        "data": None,
        "model": network.state_dict(),
        "made_by": made_by,
        "steps_done": 0,
        "best": None,
        "images_per_step": 1,
    }


def listed() -> Iterator[str]:
    """A line for each published file of ImageNet weights that a folder takes, and for each folder that is looked in."""
    sizes = {}
    models = torchvision_models()
    for name in ("ResNet18", "ResNet34", "ResNet50", "ResNet101", "ResNet152"):
        weights = getattr(models, f"{name}_Weights").IMAGENET1K_V1
        sizes[weights.url.rpartition("/")[2]] = f"{weights.meta['_file_size']:.1f} MiB by torchvision"
    folders = []
    for model in MODELS:
        files = getattr(importlib.import_module(f"{model}.weights"), "IMAGENET_FILES", {})
        if not files:  # a network without a published encoder
            continue
        presets = importlib.import_module(f"{model}.presets").PRESETS
        given = {preset["pretrained"] for preset in presets.values() if "pretrained" in preset} - {"none"}
        own = [ROOT / model / folder for folder in sorted(given)] or [ROOT / model / "pretrained"]
        for backbone, names in files.items():
            for name in [names] if isinstance(names, str) else names:
                found = next((folder / name for folder in weight_folders(*own) if (folder / name).is_file()), None)
                digest = f"SHA-1 {SHA1[name]}" if name in SHA1 else f"hash begins {name[-12:-4]}"
                where = f"{found}, {found.stat().st_size / 2**20:.1f} MiB" if found else "not found"
                yield f"{model} {backbone}: {name}, {digest}, {sizes.get(name, 'size unknown')}; {where}"
        folders += [folder for folder in weight_folders(*own) if folder not in folders]
    yield from (f"looked in {folder}" for folder in folders)
