"""A sixth model is one new folder and one row in the README: here one is written into a copy of the repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ci.tests.folders import ROOT
from common.samples.layout import draw

NAME = "PlainNet"

MODEL = '''
"""Three convolutions, the smallest network that keeps the contract."""

from torch import Tensor, nn
from torch.nn import functional as F

from common import IGNORE_INDEX
from common.errors import InputError
from common.step.criteria import Criterion
from common.step.losses import at_least_float32, upsampled_cross_entropy


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


def training_loss(
    outputs: tuple[Tensor], target: Tensor, ignore_index: int = IGNORE_INDEX, criterion: Criterion | None = None
) -> dict[str, Tensor]:
    return {"main": (criterion or upsampled_cross_entropy)(outputs[0], target, ignore_index)}
'''

WEIGHTS = '''
"""Nobody else has trained this network."""

from common.record.foreign import plain_state_dict as from_reference

__all__ = ["from_reference"]
'''


def change(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text().replace("ICNet", NAME)
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)


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
    (folder / "weights.py").write_text(WEIGHTS)
    change(folder / "data.py")
    change(
        folder / "presets.py",
        ('    "backbone": "resnet50",\n', ""),
        ('    "base_channels": 64,\n', ""),
        ('        "base_channels": 16,\n', ""),
        ('    "backbone": ["resnet50", "resnet101", "resnet152"],\n', ""),
        ('"icnet"', '"plainnet"'),
    )
    for script in ("predict.py", "export.py"):
        change(folder / script, ('{"backbone": presets.CHOICES["backbone"]}', "{}"))
    change(
        folder / "train.py",
        ('    options = {"backbone": args.backbone, "base_channels": args.base_channels}\n', ""),
        (", **options", ""),
        ("import from_reference, imagenet_file", "import from_reference"),
        (", model.backbone, imagenet_file", ""),
        (", args.label_resize", ""),
        ("model.backbone.parameters()", "model.layers[0].parameters()"),
    )
    shutil.rmtree(root / "ICNet")  # nothing of the sixth folder needs another one
    return root


def in_tree(tree, *command) -> str:
    """What a command of Python prints there."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=tree, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_keeps_the_contract_and_the_rules_without_a_change_elsewhere(tree):
    """Of the contract's tests that start processes, the one with two of them."""
    files = ["ci/tests/test_contract.py", "ci/tests/test_architecture.py"]
    rules = "imports_follow or same_files or optional_packages or flat_dictionary or launch_script or names_no_folder"
    chosen = f"(test_contract and not killed and not refused_in_one_line) or {rules}"
    output = in_tree(tree, "-m", "pytest", "-vv", "-p", "no:cacheprovider", *files, "-k", chosen)
    assert f"two_processes_evaluate_like_one[{NAME}]" in output and "[ICNet]" not in output and " passed" in output
    assert f"flat_dictionary_each_with_the_same_names[{NAME}]" in output and f"[{NAME}/train.py]" in output


def test_a_users_walk_through_its_scripts_works(tree):
    assert f"smoke: {NAME} passed" in in_tree(tree, "ci/smoke.py", "--own", NAME)


def test_its_training_is_timed_beside_the_plain_form(tree):
    data = draw("cityscapes", tree / "few", train_images=2, val_images=1, size=(64, 96))
    tiny = ["--preset=tiny", "--device=cpu", "--workers=0", "--repetitions=1", "--warmup=1", f"--data_path={data}"]
    output = in_tree(tree, "-m", "common.tools.benchmark", "train", f"--model={NAME}", *tiny)
    assert "plain / ours: " in output
