"""The training crops of mmsegmentation's recipes: which picture, which augmentations, how often."""

import numpy as np
import pytest
import torch
from PIL import Image

from ci.tests.samples import Finished
from common.cityscapes import find_pairs, read_pair
from common.crops import BlurredCrops, DistortedCrops, WholePictures, note_on_scale
from common.data import sample_rng
from common.transforms import draw_crop, draw_varied_crop

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def train_set(root, base_size=32, crop_size=(24, 24), seed=0, **options) -> Finished:
    return Finished(DistortedCrops(find_pairs(root, "train"), read_pair, base_size, crop_size, seed, **options))


def bytes_of(image: torch.Tensor) -> np.ndarray:
    """[3, H, W] normalised -> [H, W, 3] colours from 0 to 255."""
    return (image.numpy().transpose(1, 2, 0) * STD + MEAN) * 255


def repaint(root, pixels: np.ndarray, labels: np.ndarray | None = None) -> None:
    """Give every training picture these pixels and, if there are some, these label ids."""
    for pair in find_pairs(root, "train"):
        Image.fromarray(pixels).save(pair.image)
        if labels is not None:
            Image.fromarray(labels).save(pair.label)


@pytest.fixture
def plain_colours(monkeypatch):
    """Training without photometric distortion, where colours are to be measured."""
    monkeypatch.setattr("common.crops.distort_colours", lambda pixels, distortion: pixels)


@pytest.mark.parametrize("size", [(32, 48), (9, 70)])
@pytest.mark.parametrize("crop_size", [(16, 16), (80, 96)])
def test_training_samples_are_crops_of_float_images_and_integer_targets(tiny_cityscapes, size, crop_size):
    samples = train_set(tiny_cityscapes(size=size), crop_size=crop_size)
    seen = set()
    for epoch in range(10):
        image, target = samples[epoch, epoch % 2]
        assert image.shape == (3, *crop_size) and image.dtype == torch.float32
        assert target.shape == crop_size and target.dtype == torch.int64
        assert image.isfinite().all() and image.min() > -2.2 and image.max() < 2.7  # of black and white, normalised
        seen |= set(target.unique().tolist())
    assert seen <= {*range(19), 255}
    assert len(seen) > 10


def test_the_index_chooses_the_picture(tiny_cityscapes, plain_colours):
    root = tiny_cityscapes(train=3)
    for grey, pair in zip((0, 100, 200), find_pairs(root, "train"), strict=True):
        Image.new("RGB", (48, 32), (grey,) * 3).save(pair.image)
    samples = train_set(root, crop_size=(8, 8))
    for grey, index in ((200, 2), (0, 0), (100, 1)):
        assert bytes_of(samples[0, index][0]) == pytest.approx(grey, abs=0.01)


def test_padding_is_ignored_and_of_the_mean_colour_whatever_happens_to_the_others(tiny_cityscapes):
    """Pictures of 32x48 at most doubled, in crops of 80x112: at the right and below there is always padding."""
    samples = train_set(tiny_cityscapes(), crop_size=(80, 112))
    for epoch in range(20):
        image, target = samples[epoch, 0]
        assert (target[64:] == 255).all() and (target[:, 96:] == 255).all()
        padding = torch.cat([image[:, 64:].flatten(1), image[:, :64, 96:].flatten(1)], dim=1)
        assert (padding == 0).all()
        assert image[:, 0, 0].abs().max() > 0.02  # the picture begins in the corner


def test_a_sample_depends_on_seed_epoch_and_index_alone(tiny_cityscapes):
    root = tiny_cityscapes()
    samples = train_set(root, seed=5)
    first = samples[3, 1]
    np.random.default_rng(0).random(5)
    torch.rand(5)
    assert equal(samples[3, 1], first)  # not on what was drawn before
    assert equal(train_set(root, seed=5)[3, 1], first)
    for seed, key in ((5, (4, 1)), (6, (3, 1)), (5, (3, 0)), (5, (1, 1))):
        assert not equal(train_set(root, seed=seed)[key], first)


def test_a_later_epoch_is_no_shifted_copy_of_an_earlier_one(tiny_cityscapes):
    pairs = find_pairs(tiny_cityscapes(train=1), "train") * 4  # one picture under four indices
    samples = Finished(DistortedCrops(pairs, read_pair, 32, (24, 24), seed=0))
    images = [samples[epoch, index][0] for epoch in range(4) for index in range(4)]
    assert not any(torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])


def test_images_are_flipped_and_scaled(tiny_cityscapes, plain_colours):
    """Of a picture that grows brighter from left to right, direction and steepness tell flip and scale."""
    root = tiny_cityscapes(train=1, size=(40, 80))
    columns = np.arange(80, dtype=np.uint8).repeat(3).reshape(1, 80, 3).repeat(40, 0)
    repaint(root, columns * 3)
    samples = train_set(root, base_size=40, crop_size=(20, 20))
    crops = [bytes_of(samples[epoch, 0][0]) for epoch in range(200)]
    slopes = np.array([crop[10, 14, 0] - crop[10, 5, 0] for crop in crops]) / 9
    assert 75 < (slopes < 0).sum() < 125
    scales = 3 / np.abs(slopes)
    assert 0.45 < scales.min() < 0.55 and 1.8 < scales.max() < 2.2
    assert scales.mean() == pytest.approx(1.25, abs=0.1)  # uniform from 0.5 to 2
    lefts = np.array([min(crop[10, 0, 0], crop[10, -1, 0]) / 3 for crop in crops])
    assert lefts.min() < 3 and lefts.max() > 50  # crops are from everywhere


def test_labels_go_with_their_pictures(tiny_cityscapes, plain_colours):
    """Road (0) is painted black and sky (10) white: flips, scales and crops keep them together."""
    root = tiny_cityscapes(train=1, size=(64, 96))
    is_sky = np.random.default_rng(0).random((8, 12)).repeat(8, 0).repeat(8, 1) < 0.5
    repaint(
        root,
        np.where(is_sky, 255, 0).astype(np.uint8)[..., None].repeat(3, 2),
        np.where(is_sky, 23, 7).astype(np.uint8),
    )
    samples = train_set(root, base_size=64, crop_size=(48, 48))
    for epoch in range(20):
        image, target = samples[epoch, 0]
        colours = bytes_of(image)[..., 0][target.numpy() != 255]
        sky = target.numpy()[target.numpy() != 255] == 10
        assert np.mean((colours > 127) == sky) > 0.95  # but for the blended pixels of the borders


@pytest.mark.parametrize(("cat_max_ratio", "expected"), [(1.0, 72 / 105), (0.75, (84 / 105) ** 11)])
def test_crops_of_one_class_are_drawn_anew(tiny_cityscapes, cat_max_ratio, expected):
    """A strip of sky in the columns 60 to 69 of a road.

    Of the 105 places for a crop of 24 columns, 72 see none of the strip, and 84 see less than 7 columns of it: road is
    then three quarters or more. Of such crops, eleven have to be drawn in a row.
    """
    root = tiny_cityscapes(train=1, size=(64, 128))
    labels = np.full((64, 128), 7, np.uint8)
    labels[:, 60:70] = 23
    repaint(root, np.zeros((64, 128, 3), np.uint8), labels)
    samples = train_set(root, base_size=64, crop_size=(24, 24), scales=(1.0, 1.0), cat_max_ratio=cat_max_ratio)
    road = np.array([(samples[epoch, 0][1] == 0).double().mean().item() for epoch in range(400)])
    assert (road >= cat_max_ratio).mean() == pytest.approx(expected, abs=0.06)


def test_colours_change_in_pictures_and_never_in_targets(tiny_cityscapes, monkeypatch):
    samples = train_set(tiny_cityscapes(train=1))
    changed = [samples[epoch, 0] for epoch in range(100)]
    monkeypatch.setattr("common.crops.distort_colours", lambda pixels, distortion: pixels)
    plain = [samples[epoch, 0] for epoch in range(100)]
    assert all(torch.equal(target, same) for (_, target), (_, same) in zip(changed, plain, strict=True))
    differ = sum(not torch.equal(image, other) for (image, _), (other, _) in zip(changed, plain, strict=True))
    assert 85 < differ < 100  # four changes, each with a probability of one half: 15 of 16 pictures


@pytest.mark.parametrize("size", [(1024, 2048), (720, 960), (360, 480), (96, 128), (128, 96), (50, 300)])
@pytest.mark.parametrize("kind", [BlurredCrops, DistortedCrops])
def test_a_fitting_base_size_leaves_pictures_as_they_are(kind, size):
    """But for the random factor, which is 1 here."""
    base_size = kind([], None, 1, (8, 8), 0).fitting_base_size(*size)
    if kind is BlurredCrops:
        scaled = draw_crop(size, sample_rng(0, 0, 0), base_size, (8, 8), (1.0, 1.0)).scaled
    else:
        scaled = draw_varied_crop(np.zeros(size, np.uint8), sample_rng(0, 0, 0), base_size, (8, 8), (1.0, 1.0)).scaled
    assert np.abs(np.subtract(scaled, size)).max() <= 1


def test_pictures_that_are_scored_at_a_size_never_trained_on_are_told_of(tiny_cityscapes):
    root = tiny_cityscapes(size=(32, 48))
    whole = WholePictures(find_pairs(root, "val"), read_pair)
    for base_size, scales, said in ((32, (0.5, 2.0), False), (64, (0.5, 2.0), False), (65, (0.5, 2.0), True),
                                    (15, (0.5, 2.0), True), (32, (1.1, 2.0), True)):  # fmt: skip
        crops = DistortedCrops(find_pairs(root, "train"), read_pair, base_size, (24, 24), 0, scales)
        assert bool(note_on_scale(crops, whole)) is said
    crops = DistortedCrops(find_pairs(root, "train"), read_pair, 1024, (24, 24), 0)
    assert note_on_scale(crops, whole) == (
        "note: pictures of 48 x 32 are scored at that size, and training shows them at 16.00 to 64.00 times it; "
        "--base_size 32 brings the two together"
    )
    assert note_on_scale(crops, None) == ""
