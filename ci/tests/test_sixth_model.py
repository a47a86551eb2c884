"""A sixth model is one new folder and one row in the README: here one is written into a copy of the repository."""

import os
import shutil
import subprocess
import sys

import pytest

from ci.tests.folders import ROOT

NAME = "PlainNet"

MODEL = '''
"""Three convolutions, the smallest network that keeps the contract."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.backbone import plain_state_dict
from common.errors import InputError
from common.losses import at_least_float32, upsampled_cross_entropy


class PlainNet(nn.Module):
    def __init__(self, num_classes: int = 19):
        super().__init__()
        self.options = {"num_classes": num_classes}
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, num_classes, 1),
        )

    def check_shape(self, shape):
        if len(shape) != 4 or shape[1] != 3:
            raise InputError(f"images have the shape {list(shape)}; PlainNet needs RGB images [B, 3, H, W]")

    def forward(self, images: Tensor):
        self.check_shape(images.shape)
        logits = self.layers(images)
        if self.training:
            return (logits,)
        return F.interpolate(at_least_float32(logits), size=images.shape[-2:], mode="bilinear", align_corners=False)


def build_model(num_classes: int = 19) -> PlainNet:
    return PlainNet(num_classes)


def from_reference(checkpoint: Mapping) -> dict[str, Tensor]:
    return plain_state_dict(checkpoint)


def training_loss(outputs: tuple[Tensor], target: Tensor) -> Tensor:
    return upsampled_cross_entropy(outputs[0], target)
'''


def changed(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what the contract needs, with a folder that ICNet's files were the pattern for."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("common", "ci", "ICNet"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "output", "golden"))
    shutil.copy(ROOT / "pyproject.toml", root)
    folder = root / NAME
    shutil.copytree(root / "ICNet", folder)
    (folder / "model.py").write_text(MODEL)
    for name in ("train.py", "data.py", "presets.py", "predict.py"):
        (folder / name).write_text((folder / name).read_text().replace("ICNet", NAME))
    presets, train, predict = folder / "presets.py", folder / "train.py", folder / "predict.py"
    presets.write_text(
        changed(
            presets.read_text(),
            ('    "backbone": "resnet50",\n', ""),
            (', "backbone": ["resnet50", "resnet101", "resnet152"]', ""),
            ('"icnet"', '"plainnet"'),
        )
    )
    predict.write_text(changed(predict.read_text(), ('{"backbone": presets.CHOICES["backbone"]}', "{}")))
    train.write_text(
        changed(
            train.read_text(),
            (", args.backbone", ""),
            (', "backbone": args.backbone', ""),
            (", imagenet_file", ""),
            (", args.label_resize", ""),
            ("list(model.backbone.parameters())", "list(model.layers[0].parameters())"),
            ("    file = imagenet_file(args.backbone, args.pretrained)\n", ""),
            ('[load_imagenet(model.backbone, file)] if file else ["initial weights: random"]', '["random weights"]'),
        )
    )
    shutil.rmtree(root / "ICNet")  # nothing of the sixth folder needs another one
    return root


def in_tree(tree, *command) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=tree, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_keeps_the_contract_without_a_change_elsewhere(tree):
    output = in_tree(tree, "-m", "pytest", "-vv", "-p", "no:cacheprovider", "ci/tests/test_contract.py")
    assert f"[{NAME}]" in output and "[ICNet]" not in output and " passed" in output


def test_a_users_walk_through_its_scripts_works(tree):
    assert f"smoke: {NAME} passed" in in_tree(tree, "ci/smoke.py", NAME)


def test_it_keeps_the_rules_of_the_structure(tree):
    rules = "imports_follow or same_files or optional_packages or flat_dictionary or launch_script"
    output = in_tree(
        tree, "-m", "pytest", "-vv", "-p", "no:cacheprovider", "ci/tests/test_architecture.py", "-k", rules
    )
    assert f"[{NAME}]" in output and f"[{NAME}/train.py]" in output
