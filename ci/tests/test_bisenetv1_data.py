"""The data sets that BiSeNetV1 reads; their crops are tested in test_common_crops.py."""

import pytest

from BiSeNetv1.data import build_datasets, validation_images
from common.cityscapes import find_pairs
from common.errors import InputError


def test_the_splits_have_their_pairs_and_only_what_is_asked_for(tiny_cityscapes):
    root = tiny_cityscapes(train=3, val=2)
    train, val = build_datasets(root, base_size=32, crop_size=(16, 16), seed=0)
    assert (len(train), len(val)) == (3, 2)
    assert build_datasets(root, 32, (16, 16), 0, train=False)[0] is None
    assert build_datasets(root, 32, (16, 16), 0, val=False)[1] is None
    assert validation_images(root) == [pair.image for pair in find_pairs(root, "val")]


def test_the_numbers_reach_the_training_set(tiny_cityscapes):
    train, _ = build_datasets(tiny_cityscapes(), 40, (16, 24), 7, (0.75, 1.5), 0.6, val=False)
    assert (train.base_size, train.crop_size, train.seed) == (40, (16, 24), 7)
    assert (train.scales, train.cat_max_ratio) == ((0.75, 1.5), 0.6)


def test_evaluation_alone_needs_no_training_split(tiny_cityscapes):
    root = tiny_cityscapes(train=0, val=1)
    assert len(build_datasets(root, 32, (16, 16), 0, train=False)[1]) == 1
    with pytest.raises(InputError, match="no split 'train'"):
        build_datasets(root, 32, (16, 16), 0)


def test_scales_and_shares_that_make_no_sense_are_refused(tiny_cityscapes):
    root = tiny_cityscapes()
    for scales in ((0.0, 2.0), (2.0, 0.5)):
        with pytest.raises(InputError, match="--min_scale .* 0 < min <= max"):
            build_datasets(root, 32, (16, 16), 0, scales)
    with pytest.raises(InputError, match="--cat_max_ratio"):
        build_datasets(root, 32, (16, 16), 0, cat_max_ratio=0.0)
    with pytest.raises(InputError, match="no folder"):
        build_datasets(root / "nowhere", 32, (16, 16), 0)
