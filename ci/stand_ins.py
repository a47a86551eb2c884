"""What stands for the reader's own in a copy of the repository: pictures, weights, files of other programs, CANN.

Nothing is downloaded. Pictures are drawn; files of other programs have the names and shapes that `ci/tests/golden`
records of them, and random values.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from ci.tests.folders import module
from common.data.cityscapes import CLASS_NAMES
from common.samples.layout import draw

SIZE = (64, 96)  # of the drawn pictures, (height, width)
IMAGES = {"train_images": 72, "val_images": 4}
LAYOUTS = {"cityscapes": "cityscapes", "VOCdevkit": "voc", "dataset": "isic"}  # name in the documents -> layout
EXTENDED = 8  # pictures of the drawn VOC whose masks are those of the Semantic Boundaries Dataset (SBD) alone
# ISIC 2018 as it is downloaded -> what of the drawn one it is
DOWNLOADED = {"ISIC2018_Task1-2_Training_Input": "train", "ISIC2018_Task1_Training_GroundTruth": "train_GT"}
# What a network is built by and a file of weights tells: of the presets' values, those that go with no foreign file.
NETWORK_OPTIONS = {"backbone", "arch", "base_channels"}


class StandIns:
    """What stands for the reader's own in a copy of the repository at `root`: made in `scratch` when it is named."""

    def __init__(self, root: Path, scratch: Path, shortened: Callable[[Path, list[str]], list[str]]):
        """shortened: (folder, words) -> the flags that make a training short."""
        self.root, self.scratch, self._shortened = root, scratch, shortened

    def words(self, words: Iterable[str], model: str) -> list[str]:
        """The words with places that there are; what they name, also by its usual place, is made."""
        words = list(words)
        is_own = "--preset=own" in words
        if "dataset.py" in words:
            self._unpack(self.root / model / "ISIC" / "dataset")
        if any(word.endswith("=weights.json") for word in words):
            weights = {name: 1.0 + index for index, name in enumerate(CLASS_NAMES)}
            (self.root / model / "weights.json").write_text(json.dumps(weights))
        if "--pretrained=./pretrained" in words:
            self._imagenet_file(model)
        return [
            re.sub(r"/path/to/([\w.-]+)", lambda found: str(self._place(found[1], model, is_own)), w) for w in words
        ]

    def _place(self, name: str, model: str, is_own: bool) -> Path:
        """What stands for /path/to/`name`. is_own: pictures are read by the preset for one's own."""
        if name == "camvid":  # the documents have its pictures in either layout
            name = "folder" if is_own else "cityscapes"
        path = self.scratch / name
        if name == "best.pt":
            return self.weights(model)
        if name == "pictures":
            return self._place("cityscapes", model, is_own) / "leftImg8bit" / "val"
        if name in DOWNLOADED:
            return self._place("dataset", model, is_own) / DOWNLOADED[name]
        if path.exists():
            return path
        if name == "folder":
            isic = self._place("dataset", model, is_own)
            shutil.copytree(isic / "train", path / "images")
            shutil.copytree(isic / "train_GT", path / "masks")
        elif name in LAYOUTS:
            draw(LAYOUTS[name], path, **IMAGES, size=SIZE)
            if name == "cityscapes":
                pictures = path / "leftImg8bit"
                shutil.copytree(pictures / "val", pictures / "test")  # a split without labels
            elif name == "VOCdevkit":
                _extend(path / "VOC2012")
        elif name in FOREIGN:
            _save(FOREIGN[name](), path)
        return path

    def _unpack(self, folder: Path) -> None:
        """ISIC 2018 where its archives are unpacked."""
        for name in DOWNLOADED:
            if not (folder / name).exists():
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).symlink_to(self._place(name, "", False))

    def environment(self, words: list[str]) -> dict[str, str]:
        """The variables of a command: with CANN's where it is looked for, with an NPU where one is named."""
        more = {}
        if words[0] == "source" or names_npu(words):
            more |= _cann(self.scratch / "cann")
        if names_npu(words):
            paths = [str(self.root / "ci" / "simulated_npu"), os.environ.get("PYTHONPATH", "")]
            more["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        return more

    def weights(self, model: str) -> Path:
        """Where the full run of one device leaves its best weights."""
        values = module(model, "presets").PRESETS["eval_1p"]
        return self.root / model / values["checkpoint"]

    def train(self, model: str) -> None:
        """Leave the weights of a full run, shortened, for commands that begin with some. Raises CalledProcessError."""
        if not self.weights(model).exists():
            folder = self.root / model
            words = ["train.py", "--preset=full_1p", f"--data_path={self._place(self._data(model), model, False)}"]
            command = [sys.executable, *words, *self._shortened(folder, ["python3", *words])]
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)

    def _data(self, model: str) -> str:
        return next(name for name, layout in LAYOUTS.items() if layout == module(model, "presets").LAYOUT)

    def _imagenet_file(self, model: str) -> None:
        """The file that the recipe's encoder looks for in the folder `pretrained`."""
        backbone = module(model, "presets").BASE["backbone"]
        names = module(model, "weights").IMAGENET_FILES[backbone]
        path = self.root / model / "pretrained" / (names if isinstance(names, str) else names[0])
        if not path.exists():
            import torchvision

            _save(getattr(torchvision.models, backbone)().state_dict(), path)


def names_npu(words: list[str]) -> bool:
    return bool(re.search(r"--device[= ]npu\b", " ".join(words)))


def simulates_npu() -> bool:
    """Whether this torch can define a device in Python (ci/simulated_npu)."""
    import torch.utils.backend_registration as registration

    return hasattr(registration, "_setup_privateuseone_for_python_backend")


def _extend(voc: Path) -> None:
    """Make of a drawn VOC one with the masks of SBD beside its own: the last pictures to train on have those alone."""
    lists = voc / "ImageSets" / "Segmentation"
    names = (lists / "train.txt").read_text().split()
    shutil.copytree(voc / "SegmentationClass", voc / "SegmentationClassAug")
    for name, content in (
        ("train_aug", names),
        ("train", names[:-EXTENDED]),
        ("trainval", names[:-EXTENDED] + (lists / "val.txt").read_text().split()),
    ):
        (lists / f"{name}.txt").write_text("".join(f"{line}\n" for line in content))
    for name in names[-EXTENDED:]:
        (voc / "SegmentationClass" / f"{name}.png").unlink()


def _cann(home: Path) -> dict[str, str]:
    """The folders that are looked for in CANN, empty, and the variables that its own script sets."""
    for part in ("opp", "runtime", "compiler"):
        (home / part).mkdir(parents=True, exist_ok=True)
    return {"ASCEND_HOME_PATH": str(home), "ASCEND_OPP_PATH": str(home / "opp")}


# ---- files of other programs


def _golden(name: str) -> dict[str, object]:
    """A checkpoint of the reference, with its names and shapes."""
    from ci.tests.golden_case import GoldenCase

    return {"state_dict": GoldenCase(name).state, "meta": {"epoch": 1}}


def _deeplabv3_resnet101() -> dict[str, object]:
    """The third stage of ResNet-101 has 23 blocks where ResNet-50 has 6; they are alike from the second on."""
    content = _golden("deeplabv3_r50")
    state = content["state_dict"]
    last = "backbone.layer3.5."
    for name in [name for name in state if name.startswith(last)]:
        state |= {f"backbone.layer3.{block}.{name.removeprefix(last)}": state[name] for block in range(6, 23)}
    return content


def _open_mmlab_encoder() -> dict[str, object]:
    state, prefix = _golden("deeplabv3_r50")["state_dict"], "backbone."
    return {
        "state_dict": {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    }


def _save(content: object, path: Path) -> None:
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


# name in the documents -> what torch.load gives of such a file
FOREIGN: dict[str, Callable[[], object]] = {
    "deeplabv3.pth": lambda: _golden("deeplabv3_r50"),
    "iter_40000.pth": _deeplabv3_resnet101,
    "resnet50_v1c.pth": _open_mmlab_encoder,
    "iter_160000.pth": lambda: _golden("bisenetv1_r18"),
    "AttU_Net.pkl": lambda: _golden("attu_net"),
}
