"""The published ImageNet weights of ResNets: finding the file, and loading it into a backbone."""

import hashlib
import http.client
import io
import os
import re
import shutil
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import InputError
from common.record.foreign import counted, plain_state_dict, resnet_of
from common.record.tensors import check_finite, load_tensors

DOWNLOAD_TIMEOUT_SECONDS = 10  # of a connection without answer: a machine without network is to say so soon
WEIGHT_SUFFIXES = (".pth", ".pt", ".zip")


def find_imagenet(source: str, file_names: Sequence[str], url: str | None = None) -> Path | None:
    """The weight file that `--pretrained SOURCE` means, or None for "none" (training from scratch).

    source: "none", a file, or a folder. A folder is searched for `file_names`, in this order, each also as the `.zip`
    around it; then the folders are in which other programs keep such files. Then the file behind `url` (the first of
    `file_names`, or a zip that contains it) is downloaded into the folder, which is made if need be. The download is
    checked against the 8 hexadecimal digits in the file's name before it gets that name.

    Raises InputError when there is no such file and no way to get it. Processes that start together may call this
    together, but each of them then downloads: call it once, before they start.
    """
    if source == "none":
        return None
    given = Path(source).expanduser()
    if given.is_file():
        return given
    wanted = " or ".join(file_names)
    choice = "name the file with --pretrained FILE, or train from scratch with --pretrained none"
    if given.suffix in WEIGHT_SUFFIXES:
        raise InputError(f"no file {given} (ImageNet weights, --pretrained): put {wanted} there, {choice}")
    folders = weight_folders(given)
    for folder in folders:
        for name in file_names:
            for candidate in (folder / name, (folder / name).with_suffix(".zip"), folder / f"{name}.zip"):
                if candidate.is_file():
                    return candidate
    missing = f"no ImageNet weights {wanted} in {', '.join(map(str, folders))}"
    if url is None:
        raise InputError(f"{missing}: put the file into {given}, {choice}")
    try:
        return _download(url, given, file_names[0])
    except (OSError, http.client.HTTPException, zipfile.BadZipFile) as error:
        raise InputError(
            f"{missing}, and the download of {url} failed ({error}): put the file into {given}, {choice}"
        ) from error


def weight_folders(*given: Path) -> list[Path]:
    """The folders that are searched for published files: the given ones, then those of other programs."""
    hub = Path(torch.hub.get_dir()).expanduser()
    return [*given, Path("~/.torch/models").expanduser(), hub / "checkpoints", hub.parent / "checkpoints"]


def _download(url: str, folder: Path, name: str) -> Path:
    """Fetch `url` as folder/name; OSError when that fails or the content is not what the name promises."""
    print(f"downloading {url} into {folder}", file=sys.stderr, flush=True)
    with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as answer:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
            path = Path(scratch, name)
            with path.open("wb") as file:
                shutil.copyfileobj(answer, file)
            _unzip_in_place(path)
            _check_digest(path)
            os.replace(path, folder / name)
    return folder / name


def _unzip_in_place(path: Path) -> None:
    """Replace a zip archive around a .pth file by that file."""
    member = _zipped_checkpoint(path)
    if member is None:
        return
    archive = path.rename(path.with_suffix(".zip"))
    with zipfile.ZipFile(archive) as zipped, zipped.open(member) as content, path.open("wb") as file:
        shutil.copyfileobj(content, file)


def _check_digest(path: Path) -> None:
    """OSError unless the 8 hexadecimal digits in the file's name begin its SHA-1 (PyTorch-Encoding) or SHA-256."""
    promised = re.search(r"-([0-9a-f]{8})\.", path.name)
    if promised is None:
        return
    hashes = [hashlib.sha1(usedforsecurity=False), hashlib.sha256()]
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            for digest in hashes:
                digest.update(chunk)
    if not any(digest.hexdigest().startswith(promised[1]) for digest in hashes):
        raise OSError(f"the content does not match {promised[1]} in its name: SHA-1 is {hashes[0].hexdigest()}")


def _zipped_checkpoint(path: Path) -> str | None:
    """The name of the .pth file in a zip archive, or None: torch's own files are archives too, without such a file."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return next((name for name in archive.namelist() if name.endswith((".pth", ".pt"))), None)


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors in a checkpoint file; InputError when it is damaged or something else."""
    try:
        member = _zipped_checkpoint(path)
        if member is None:
            checkpoint = load_tensors(path)
        else:
            with zipfile.ZipFile(path) as archive:
                checkpoint = load_tensors(path, io.BytesIO(archive.read(member)))
    except (InputError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"cannot read {path} as ImageNet weights ({error}): get it again, or train from scratch with "
            "--pretrained none"
        ) from error
    state = plain_state_dict(checkpoint) if isinstance(checkpoint, Mapping) else {}
    if not state:
        raise InputError(f"{path} holds no named tensors: --pretrained needs the state dict of an ImageNet classifier")
    return state


# whose files of an encoder have such a name, and what takes the place of the beginnings of names in them
_STEMS = (
    ("stem.0.weight", "open-mmlab, with a deep stem", (("stem.7.", "bn1."), ("stem.", "conv1."))),
    ("conv1.0.weight", "PyTorch-Encoding, with a deep stem", ()),
    ("conv1.weight", "torchvision, with a 7x7 stem", ()),
)


def _encoder(state: dict[str, Tensor]) -> tuple[str, dict[str, Tensor], list[str]]:
    """(What it is, the tensors of a ResNet by the names that `ResNet` has, the names of the others).

    state: of a classifier, or of any network with a ResNet in it, whose names have something before them.
    """
    first = "layer1.0.conv1.weight"
    prefix = next((name.removesuffix(first) for name in state if name.endswith(first)), "")
    _, whose, renaming = next((stem for stem in _STEMS if prefix + stem[0] in state), ("", "unknown origin", ()))
    tensors, others = {}, []
    for name, value in state.items():
        # files from before torch 0.4.1 have no num_batches_tracked, and nothing depends on it
        if not name.startswith(prefix) or name.endswith("num_batches_tracked"):
            others += [name] * (not name.endswith("num_batches_tracked"))
            continue
        own = name.removeprefix(prefix)
        if own.startswith("fc."):  # the classifier
            others.append(name)
            continue
        for theirs, ours in renaming:
            if own.startswith(theirs):
                own = ours + own.removeprefix(theirs)
        tensors[own] = value
    kind = f"{resnet_of(state, prefix) or 'an encoder'} as in files of {whose}"
    return f"{kind}, in {prefix.rstrip('.')} of a network" if prefix else kind, tensors, others


def _part(name: str) -> str:
    """The part of a ResNet that a tensor belongs to: "stem", or a residual block such as "layer1.0"."""
    return ".".join(name.split(".")[:2]) if name.startswith("layer") else "stem"


def load_imagenet(backbone: nn.Module, path: str | Path) -> str:
    """Load the ImageNet weights in a file into `backbone` (a `ResNet`) and return one line that says what was done.

    path: a state dict, also wrapped in {"state_dict": ...}, with `module.` prefixes, or zipped; see `find_imagenet`. Of
    a file of a whole network, such as one for segmentation, its ResNet is taken.

    Where not every tensor fits (a file for another stem, or another depth), the stem and each residual block are taken
    whole or not at all, so that no layer gets the statistics of another's output; the line then begins with "warning:".
    Raises InputError for a file that cannot be read, and for one that fits less than half.
    """
    kind, offered, others = _encoder(_read_checkpoint(Path(path)))
    wanted = {name: value for name, value in backbone.state_dict().items() if not name.endswith("num_batches_tracked")}
    unfit = {
        name
        for name in wanted
        if name not in offered or offered[name].shape != wanted[name].shape or not offered[name].is_floating_point()
    }
    unfit_parts = {_part(name) for name in unfit}
    taken = {name: offered[name] for name in wanted if _part(name) not in unfit_parts}
    check_finite(Path(path), taken)
    unused = len(offered) - len(taken)
    if 2 * len(taken) < max(len(wanted), len(offered)):
        raise InputError(
            f"{path} ({kind}) does not fit the backbone: of {len(wanted)} tensors needed and {len(offered)} in the "
            f"file {len(taken)} match; use the ImageNet file for this depth and stem with "
            "--base_channels 64, or --pretrained none"
        )
    backbone.load_state_dict(taken, strict=False)
    if len(taken) == len(wanted) and not unused:
        return f"backbone: all {len(taken)} tensors loaded from {path}: {kind}; {counted(others)} left out"
    left_out = f"; from random values start: {', '.join(sorted(unfit_parts))}" if unfit_parts else ""
    return (
        f"warning: backbone: {len(taken)} of {len(wanted)} tensors loaded from {path}: {kind}; "
        f"{unused} in the file have no place{left_out}"
    )
