"""Weights in the format safetensors: tensors by name and text, no code. Its package is optional."""

import json
from pathlib import Path

from torch import Tensor

from common.errors import InputError
from common.record.tensors import Unusable

SUFFIX = ".safetensors"
FIELD = "segmentation-zoo"  # of the text beside the tensors: what a checkpoint of ours says besides


def _package(path: Path):
    try:
        import safetensors.torch
    except ImportError as error:
        raise InputError(f"{path} needs the package safetensors: python3 -m pip install safetensors") from error
    return safetensors


def read_safetensors(path: Path) -> dict:
    """The tensors by name; of a checkpoint of ours, what it holds. Tensors stay in the file until they are looked at.

    Raises InputError where the package is missing, and Unusable for a damaged file.
    """
    package = _package(path)
    try:
        with package.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
            said = (file.metadata() or {}).get(FIELD)
        return json.loads(said) | {"model": tensors} if said else tensors
    except (package.SafetensorError, ValueError) as error:
        raise Unusable(f"{path} is damaged, cut off or no safetensors file ({error}); give another file") from error


def write_safetensors(path: Path, content: dict) -> None:
    """Write the weights of a checkpoint of ours, its other fields as text; whole or not at all.

    Raises InputError without the package.
    """
    package = _package(path)
    tensors: dict[str, Tensor] = {name: value.contiguous() for name, value in content["model"].items()}
    said = {name: value for name, value in content.items() if name != "model"}
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        package.torch.save_file(tensors, scratch, metadata={"format": "pt", FIELD: json.dumps(said)})
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
