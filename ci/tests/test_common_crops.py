"""data/crops.py: which picture, which augmentations, how often; and whole pictures for evaluation."""

import numpy as np
import pytest
import torch
from PIL import Image

from ci.tests.operators import Operators
from ci.tests.samples import Finished
from common.data.cityscapes import find_pairs, read_pair
from common.data.cityscapes_sets import INFO
from common.data.colours import Distortion, blur_weights, blurred
from common.data.crops import BlurredCrops, DistortedCrops, WholePictures, note_on_scale
from common.data.order import sample_rng
from common.data.pictures import Source
from common.data.transforms import Cropping, draw_crop, draw_varied_crop
from common.errors import InputError

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
# label id -> train id, by hand; every other id is ignored
TRAIN_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
TRAIN_IDS |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}

both_kinds = pytest.mark.parametrize("kind", [BlurredCrops, DistortedCrops])


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def source(root, split="train", copies=1) -> Source:
    return Source(find_pairs(root, split) * copies, read_pair, INFO)


def train_set(kind, pictures, base_size=32, crop_size=(24, 24), seed=0, scales=(0.5, 2.0), **options) -> Finished:
    """The crops of a folder's training pictures, or of a `Source`, as a network sees them."""
    pictures = pictures if isinstance(pictures, Source) else source(pictures)
    return Finished(kind(pictures, Cropping(base_size, crop_size, scales), seed, **options))


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
    monkeypatch.setattr("common.data.crops.distort_colours", lambda pixels, distortion: pixels)


# ---- training crops of both kinds


@pytest.mark.parametrize("size", [(32, 48), (48, 32), (9, 70)])
@pytest.mark.parametrize("crop_size", [(16, 16), (80, 96), (80, 48), (24, 40)])
@both_kinds
def test_training_samples_are_crops_of_float_images_and_integer_targets(tiny_cityscapes, kind, size, crop_size):
    samples = train_set(kind, tiny_cityscapes(size=size), crop_size=crop_size)
    seen = set()
    for epoch in range(10):
        image, target = samples[epoch, epoch % 2]
        assert image.shape == (3, *crop_size) and image.dtype == torch.float32
        assert target.shape == crop_size and target.dtype == torch.int64
        assert image.isfinite().all() and image.min() > -2.2 and image.max() < 2.7  # of black and white, normalised
        seen |= set(target.unique().tolist())
    assert seen <= {*range(19), 255}
    assert len(seen) > 10


@both_kinds
def test_the_index_chooses_the_picture(tiny_cityscapes, plain_colours, kind):
    root = tiny_cityscapes(train=3)
    for grey, pair in zip((0, 100, 200), find_pairs(root, "train"), strict=True):
        Image.new("RGB", (48, 32), (grey,) * 3).save(pair.image)
    samples = train_set(kind, root, crop_size=(8, 8))
    for grey, index in ((200, 2), (0, 0), (100, 1)):
        assert bytes_of(samples[0, index][0]) == pytest.approx(grey, abs=0.01)


@both_kinds
def test_a_sample_depends_on_seed_epoch_and_index_alone(tiny_cityscapes, kind):
    root = tiny_cityscapes()
    samples = train_set(kind, root, seed=5)
    first = samples[3, 1]
    np.random.default_rng(0).random(5)
    torch.rand(5)
    assert equal(samples[3, 1], first)  # not on what was drawn before
    assert equal(train_set(kind, root, seed=5)[3, 1], first)
    for seed, key in ((5, (4, 1)), (6, (3, 1)), (5, (3, 0)), (5, (1, 1))):
        assert not equal(train_set(kind, root, seed=seed)[key], first)


@both_kinds
def test_a_later_epoch_is_no_shifted_copy_of_an_earlier_one(tiny_cityscapes, kind):
    samples = train_set(kind, source(tiny_cityscapes(train=1), copies=4))  # one picture under four indices
    images = [samples[epoch, index][0] for epoch in range(4) for index in range(4)]
    assert not any(torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])


@both_kinds
def test_images_are_flipped_and_scaled(tiny_cityscapes, plain_colours, kind):
    """Of a picture that grows brighter from left to right, direction and steepness tell flip and scale."""
    root = tiny_cityscapes(train=1, size=(40, 80))
    columns = np.arange(80, dtype=np.uint8).repeat(3).reshape(1, 80, 3).repeat(40, 0)
    repaint(root, columns * 3)
    samples = train_set(kind, root, base_size=40, crop_size=(20, 20))
    rows = np.array([bytes_of(samples[epoch, 0][0])[10, :, 0] for epoch in range(200)])
    slopes = (rows[:, 14] - rows[:, 5]) / 9
    assert 75 < (slopes < 0).sum() < 125
    scales = 3 / np.abs(slopes)
    assert 0.45 < scales.min() < 0.55 and 1.8 < scales.max() < 2.2
    assert scales.mean() == pytest.approx(1.25, abs=0.1)  # uniform from 0.5 to 2
    lefts, middles = np.minimum(rows[:, 0], rows[:, -1]) / 3, rows[:, 9] / 3  # as columns of the picture
    assert lefts.min() < 3 and lefts.max() > 50  # crops are from everywhere
    assert middles.min() < 15 and middles.max() > 65


@both_kinds
def test_labels_go_with_their_pictures(tiny_cityscapes, plain_colours, kind):
    """Road (0) is painted black and sky (10) white: flips, scales and crops keep them together."""
    root = tiny_cityscapes(train=1, size=(64, 96))
    is_sky = np.random.default_rng(0).random((8, 12)).repeat(8, 0).repeat(8, 1) < 0.5
    repaint(
        root,
        np.where(is_sky, 255, 0).astype(np.uint8)[..., None].repeat(3, 2),
        np.where(is_sky, 23, 7).astype(np.uint8),
    )
    samples = train_set(kind, root, base_size=64, crop_size=(48, 48))
    for epoch in range(20):
        image, target = samples[epoch, 0]
        colours = bytes_of(image)[..., 0][target.numpy() != 255]
        sky = target.numpy()[target.numpy() != 255] == 10
        assert np.mean((colours > 127) == sky) > 0.95  # but for the blended pixels of the borders


# ---- blurred crops


def test_what_is_padded_is_black_and_ignored(tiny_cityscapes):
    root = tiny_cityscapes(train=1)
    repaint(root, np.full((32, 48, 3), 90, np.uint8), np.full((32, 48), 12, np.uint8))
    samples = train_set(BlurredCrops, root, base_size=16, crop_size=(80, 80))
    black = torch.from_numpy(-MEAN / STD).float()
    shorts = set()
    for epoch in range(30):
        image, target = samples[epoch, 0]
        short, long = (target[:, 0] == 3).sum().item(), (target[0] == 3).sum().item()
        shorts.add(short)
        assert long == int(short * 48 / 32)
        assert (target[:short, :long] == 3).all()
        assert (target == 255).sum() == 80 * 80 - short * long  # 255 wherever the picture is not
        assert torch.allclose(image[:, 79, 79], black, atol=1e-5)
    assert 8 <= min(shorts) <= 10 and 30 <= max(shorts) <= 32  # half to twice the base


def test_half_of_the_training_images_are_blurred_and_no_target(tiny_cityscapes, monkeypatch):
    samples = train_set(BlurredCrops, tiny_cityscapes(train=1))
    blurred = [samples[epoch, 0] for epoch in range(60)]
    monkeypatch.setattr("common.data.crops.blur", lambda images, rows, weights: images[:, :, rows])
    sharp = [samples[epoch, 0] for epoch in range(60)]
    assert all(torch.equal(target, same) for (_, target), (_, same) in zip(blurred, sharp, strict=True))
    assert 15 < sum(not torch.equal(image, other) for (image, _), (other, _) in zip(blurred, sharp, strict=True)) < 40


def test_an_accelerator_blurs_all_pictures_of_a_batch_at_once_and_as_the_cpu_does():
    """Else the host, which launches a few dozen operators for each picture, keeps a fast card waiting."""
    radii = (0.0, 0.9, 0.3, 0.0, 0.99, 0.6)
    draws = torch.zeros(len(radii), 4)
    for line, weights in zip(draws, map(blur_weights, radii), strict=True):
        line[: len(weights)] = torch.tensor(weights)
    images = torch.randint(0, 256, (len(radii), 3, 20, 30), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    pictures = BlurredCrops(Source([], read_pair, INFO), Cropping(8, (8, 8)), 0)
    expected = pictures.finish(images, draws)
    torch.testing.assert_close(pictures.normalized(blurred(images, draws)), expected, rtol=0, atol=2e-6)
    assert not torch.allclose(pictures.normalized(images), expected, atol=0.1)
    pictures.normalized(images.to("meta"))  # its constants are made once for each device
    launched = []
    for copies in (1, 4):
        with Operators() as operators:
            got = pictures.finish(torch.cat([images.to("meta")] * copies), draws.repeat(copies, 1))
        assert (got.dtype, got.stride()) == (expected.dtype, expected.stride()) and not operators.unwanted
        launched.append(operators.launched)
    assert launched[0] == launched[1] < 35


# ---- distorted crops


def test_padding_is_ignored_and_of_the_mean_colour_whatever_happens_to_the_others(tiny_cityscapes):
    """Pictures of 32x48 at most doubled, in crops of 80x112: at the right and below there is always padding."""
    samples = train_set(DistortedCrops, tiny_cityscapes(), crop_size=(80, 112))
    for epoch in range(20):
        image, target = samples[epoch, 0]
        assert (target[64:] == 255).all() and (target[:, 96:] == 255).all()
        padding = torch.cat([image[:, 64:].flatten(1), image[:, :64, 96:].flatten(1)], dim=1)
        assert (padding == 0).all()
        assert image[:, 0, 0].abs().max() > 0.02  # the picture begins in the corner


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
    samples = train_set(DistortedCrops, root, base_size=64, scales=(1.0, 1.0), cat_max_ratio=cat_max_ratio)
    road = np.array([(samples[epoch, 0][1] == 0).double().mean().item() for epoch in range(400)])
    assert (road >= cat_max_ratio).mean() == pytest.approx(expected, abs=0.06)


def test_colours_change_in_pictures_and_never_in_targets(tiny_cityscapes, monkeypatch):
    samples = train_set(DistortedCrops, tiny_cityscapes(train=1))
    changed = [samples[epoch, 0] for epoch in range(100)]
    monkeypatch.setattr("common.data.crops.distort_colours", lambda pixels, distortion: pixels)
    plain = [samples[epoch, 0] for epoch in range(100)]
    assert all(torch.equal(target, same) for (_, target), (_, same) in zip(changed, plain, strict=True))
    differ = sum(not torch.equal(image, other) for (image, _), (other, _) in zip(changed, plain, strict=True))
    assert 85 < differ < 100  # four changes, each with a probability of one half: 15 of 16 pictures


# ---- whole pictures


@pytest.mark.parametrize("size", [(32, 48), (35, 51)])
def test_evaluation_gives_the_whole_picture_and_the_mapped_label(tiny_cityscapes, size):
    pictures = source(tiny_cityscapes(size=size), "val")
    image, target = Finished(WholePictures(pictures))[0]
    assert image.shape == (3, *size) and image.dtype == torch.float32
    assert target.shape == size and target.dtype == torch.int64
    pixels, label_ids = (np.asarray(Image.open(path)) for path in pictures.pairs[0])
    expected = (pixels / 255 - MEAN) / STD
    assert np.abs(image.numpy() - expected.transpose(2, 0, 1)).max() < 1e-5
    assert target.tolist() == [[TRAIN_IDS.get(value, 255) for value in row] for row in label_ids.tolist()]


def test_a_label_of_another_size_is_refused_when_it_is_read(tiny_cityscapes):
    pictures = source(tiny_cityscapes(), "val")
    label = pictures.pairs[0].label
    Image.open(label).crop((0, 0, 10, 10)).save(label)
    with pytest.raises(InputError, match="must have the same size"):
        WholePictures(pictures)[0]


# ---- sizes of training and evaluation


@pytest.mark.parametrize("size", [(1024, 2048), (720, 960), (360, 480), (96, 128), (128, 96), (50, 300)])
@both_kinds
def test_a_fitting_base_size_leaves_pictures_as_they_are(kind, size):
    """But for the random factor, which is 1 here."""
    base_size = kind(Source([], read_pair, INFO), Cropping(1, (8, 8)), 0).fitting_base_size(*size)
    cropping, rng = Cropping(base_size, (8, 8), (1.0, 1.0)), sample_rng(0, 0, 0)
    if kind is BlurredCrops:
        scaled = draw_crop(size, rng, cropping).scaled
    else:
        scaled = draw_varied_crop(np.zeros(size, np.uint8), rng, cropping).scaled
    assert np.abs(np.subtract(scaled, size)).max() <= 1


def test_pictures_that_are_scored_at_a_size_never_trained_on_are_told_of(tiny_cityscapes):
    root = tiny_cityscapes(size=(32, 48))
    whole = WholePictures(source(root, "val"))

    def note(base_size, scales=(0.5, 2.0), val_set=whole, scored_scales=(1.0,)) -> str:
        train_set = DistortedCrops(source(root), Cropping(base_size, (24, 24), scales), 0)
        return note_on_scale(train_set, val_set, scored_scales)

    assert not note(32) and not note(64)
    assert note(65) and note(15) and note(32, (1.1, 2.0))
    assert note(1024) == (
        "note: pictures of 48 x 32 are scored at that size, and training shows them at 16.00 to 64.00 times it; "
        "--base_size 32 brings the two together"
    )
    assert note(1024, val_set=None) == ""
    assert note(15, scored_scales=(0.5,)) == "" and note(32, scored_scales=(4.0,))


@pytest.mark.parametrize("kind", [BlurredCrops, DistortedCrops, WholePictures])
def test_a_network_sees_the_colours_as_its_data_set_normalises_them(kind):
    """In training as in evaluation and prediction, which take mean and deviation from `DatasetInfo` too."""
    info = INFO._replace(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    arguments = () if kind is WholePictures else (Cropping(8, (8, 8)), 0)
    pictures = kind(Source([], read_pair, info), *arguments)
    draws = [1.0, 0.0, 0.0, 0.0] if kind is BlurredCrops else []
    if kind is DistortedCrops:
        draws = [8.0, 8.0, *Distortion()]
    seen = pictures.finish(torch.full((1, 3, 8, 8), 255, dtype=torch.uint8), torch.tensor([draws]))
    torch.testing.assert_close(seen, torch.full((1, 3, 8, 8), 2.0))
