"""data/cityscapes_sets.py as the folders that train on Cityscapes have it in their data.py."""

from argparse import Namespace

import pytest

from ci.tests.folders import FOLDERS, module
from common.data.cityscapes import find_pairs
from common.data.crops import BlurredCrops, DistortedCrops, WholePictures
from common.data.pictures import Datasets
from common.data.transforms import Cropping
from common.errors import InputError

OF_CITYSCAPES = [folder for folder in FOLDERS if module(folder, "presets").LAYOUT == "cityscapes"]
# the recipes of mmsegmentation; the others blur
DISTORTED = [folder for folder in OF_CITYSCAPES if "cat_max_ratio" in module(folder, "presets").PRESETS["tiny"]]

pytestmark = pytest.mark.parametrize("folder", OF_CITYSCAPES)


def datasets(folder: str, root, **changes) -> Datasets:
    """Those of the folder's preset `tiny` with these values."""
    values = {**module(folder, "presets").PRESETS["tiny"], "seed": 0, "base_size": 32, "crop_size": (16, 16)}
    return module(folder, "data").build_datasets(Namespace(**{**values, "data_path": root, **changes}))


def test_the_splits_have_their_pairs_and_only_what_is_asked_for(folder, tiny_cityscapes):
    root = tiny_cityscapes(train=3, val=2)
    train_set, val_set, test_set = datasets(folder, root)
    assert (len(train_set), len(val_set), test_set) == (3, 2, None)
    assert (train_set.pairs, val_set.pairs) == (find_pairs(root, "train"), find_pairs(root, "val"))
    assert datasets(folder, root, evaluate=True).train is None
    assert datasets(folder, root, validate=False).val is None
    assert len(datasets(folder, root, evaluate=True, validate=False).val) == 2
    assert module(folder, "data").validation_images(root) == [pair.image for pair in val_set.pairs]


def test_training_on_train_and_val_is_said(folder, tiny_cityscapes, capsys):
    root = tiny_cityscapes(train=3, val=2)
    data = datasets(folder, root, train_split="trainval")
    assert data.train.pairs == find_pairs(root, "train") + find_pairs(root, "val")
    assert (data.val.pairs, data.train.split) == (find_pairs(root, "val"), "trainval")

    class Model:
        def check_shape(self, shape):
            pass

    _, model = data.with_network(Model())
    model.data_info = dict(model.data_info)  # as its checkpoint has it
    datasets(folder, root, evaluate=True).with_network(model)
    line = "note: the split val is training data (--train_split trainval): its scores say nothing of new pictures\n"
    assert capsys.readouterr().out == 2 * line
    datasets(folder, root).with_network(Model())
    assert capsys.readouterr().out == ""


def test_the_folder_chooses_the_augmentation(folder, tiny_cityscapes):
    train_set, val_set, _ = datasets(folder, tiny_cityscapes())
    assert type(train_set) is (DistortedCrops if folder in DISTORTED else BlurredCrops)
    assert type(val_set) is WholePictures


def test_the_numbers_reach_the_training_set(folder, tiny_cityscapes):
    numbers = {"base_size": 40, "crop_size": (16, 24), "min_scale": 0.75, "max_scale": 1.5, "seed": 7}
    train_set = datasets(folder, tiny_cityscapes(), **numbers, cat_max_ratio=0.6).train
    assert (train_set.cropping, train_set.seed) == (Cropping(40, (16, 24), (0.75, 1.5)), 7)
    assert getattr(train_set, "cat_max_ratio", None) == (0.6 if folder in DISTORTED else None)


def test_evaluation_alone_needs_no_training_split(folder, tiny_cityscapes):
    root = tiny_cityscapes(train=0, val=1)
    assert len(datasets(folder, root, evaluate=True).val) == 1
    with pytest.raises(InputError, match="no split 'train'"):
        datasets(folder, root)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"min_scale": 0.0}, "--min_scale .* 0 < min <= max"),
        ({"min_scale": 2.0, "max_scale": 0.5}, "--min_scale .* 0 < min <= max"),
        ({"base_size": 1}, "less than a pixel"),
        ({"data_path": "/nowhere"}, "no folder"),
    ],
)
def test_values_that_make_no_sense_are_refused(folder, tiny_cityscapes, changes, message):
    with pytest.raises(InputError, match=message):
        datasets(folder, tiny_cityscapes(), **changes)


def test_a_share_that_no_crop_can_keep_is_refused(folder, tiny_cityscapes):
    if folder in DISTORTED:
        with pytest.raises(InputError, match="--cat_max_ratio 0"):
            datasets(folder, tiny_cityscapes(), cat_max_ratio=0.0)
