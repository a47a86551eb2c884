"""data/transforms.py: crops that are scaled, and that show the same place of a picture and of its label."""

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
import torch
from PIL import Image

from ci.tests.draws import Draws, a_picture, levels
from common.data.transforms import Crop, Cropping, _span, cut_image, cut_label, draw_crop, draw_varied_crop, pad

STRAIGHT = 0.9  # a draw of a probability of one half


def coordinates(height, width):
    """A picture whose red is the column and whose green is the row, with labels of columns and of rows."""
    rows, columns = np.indices((height, width)).astype(np.uint8)
    image = Image.fromarray(np.stack([columns, rows, np.full_like(rows, 200)], axis=2))
    return image, Image.fromarray(columns), Image.fromarray(rows)


# ---- scale and crop --------------------------------------------------------------------------------------------------


def nearest(first, count, source, scaled):
    """For each output pixel the source pixels that hold its centre: one, or two when it lies on their border."""
    centres = [Fraction((2 * (first + i) + 1) * source, 2 * scaled) for i in range(count)]
    return [{floor(centre), ceil(centre) - 1} for centre in centres]


def scale_and_crop(image, label, rng, base_size, crop_size):
    """An augmented pair of the ModelZoo's recipes but for colours, from PIL pictures, as arrays."""
    image, label = np.array(image), np.array(label)
    crop = draw_crop(label.shape, rng, Cropping(base_size, crop_size))
    return pad(cut_image(image, crop), crop_size, 0).numpy(), pad(cut_label(label, crop), crop_size, 255).numpy()


def scale_and_crop_varied(image, label, rng, base_size, crop_size, scales=(0.5, 2.0), cat_max_ratio=1.0):
    """The same of mmsegmentation's recipes, before padding."""
    image, label = np.array(image), np.array(label)
    crop = draw_varied_crop(label, rng, Cropping(base_size, crop_size, scales), cat_max_ratio)
    return cut_image(image, crop).numpy(), cut_label(label, crop)


def place(first, count, source, scaled):
    """Where a crop begins, in pixels of the picture: where it should, or less than a pixel before."""
    span = _span(first, count, source, scaled)
    begin = span.start + Fraction(span.skipped * source, scaled)
    assert 0 <= Fraction(first * source, scaled) - begin < 1
    if span.skipped == first or (first - span.skipped) * source % scaled == 0:
        assert begin == Fraction(first * source, scaled)
    return begin


@pytest.mark.parametrize(
    ("size", "short", "crop"),
    [
        ((64, 128), 64, (32, 48)),  # as it is
        ((64, 128), 32, (24, 24)),  # half the size
        ((64, 128), 128, (48, 64)),  # twice the size
        ((64, 128), 33, (20, 33)),  # ratios that are no whole numbers
        ((64, 128), 97, (61, 50)),
        ((64, 128), 301, (61, 50)),
        ((90, 61), 100, (48, 48)),  # portrait
        ((90, 61), 40, (33, 17)),
        ((50, 50), 77, (77, 77)),  # the crop is all of it
        ((90, 120), 7, (5, 5)),  # shrunk to a thirteenth
    ],
)
@pytest.mark.parametrize("where", ["start", "just behind", "middle", "end"])
def test_resizing_the_region_equals_resizing_everything_and_cropping_then(size, short, crop, where):
    """Pillow's resizing of everything, with a filter that reaches beyond the crop, is what ours is compared with."""
    (height, width), (crop_height, crop_width) = size, crop
    image, columns, rows = a_picture(height, width), *coordinates(height, width)[1:]
    scaled_width = short if width <= height else width * short // height
    scaled_height = short if height < width else height * short // width
    share = {"start": 0, "just behind": 0, "middle": 0.5, "end": 1}[where]
    top, left = int(share * (scaled_height - crop_height)), int(share * (scaled_width - crop_width))
    if where == "just behind":
        top, left = min(1, scaled_height - crop_height), min(2, scaled_width - crop_width)
    draws = STRAIGHT, short, top, left

    got_image, got_columns = scale_and_crop(image, columns, Draws(*draws), short, crop)
    _, got_rows = scale_and_crop(image, rows, Draws(*draws), short, crop)

    x = place(left, crop_width, width, scaled_width)
    y = place(top, crop_height, height, scaled_height)
    box = (x, y, x + Fraction(crop_width * width, scaled_width), y + Fraction(crop_height * height, scaled_height))
    whole = image.resize((crop_width, crop_height), Image.Resampling.BILINEAR, box=tuple(map(float, box)))
    assert levels(got_image, whole).max() <= 1
    for axis, (begin, source, scaled, got) in enumerate(
        ((y, height, scaled_height, got_rows), (x, width, scaled_width, got_columns.T))
    ):
        for i, seen in enumerate(got):
            centre = begin + Fraction((2 * i + 1) * source, 2 * scaled)
            assert set(seen.tolist()) <= {floor(centre), ceil(centre) - 1}, (axis, i)


def test_a_mirrored_crop_is_the_mirror_image_of_the_crop():
    image, label = np.array(a_picture(40, 60)), np.array(coordinates(40, 60)[1])
    for scaled in ((40, 60), (33, 50), (80, 120)):
        crop = Crop(scaled, 3, 5, (20, 30))
        mirrored = crop._replace(flipped=True)
        assert torch.equal(cut_image(image, mirrored), cut_image(image, crop).flip(1))
        assert np.array_equal(cut_label(label, mirrored), cut_label(label, crop)[:, ::-1])


def test_a_crop_reads_no_more_of_a_picture_than_it_needs():
    class Watched(np.ndarray):
        def __getitem__(self, key):
            seen.append(key)
            return np.asarray(self)[key]

    seen = []
    cut_image(np.zeros((1000, 2000, 3), np.uint8).view(Watched), Crop((500, 1000), 100, 700, (50, 60)))
    ((rows, columns),) = seen
    assert 190 <= rows.start <= 200 and 300 <= rows.stop <= 310
    assert 1390 <= columns.start <= 1400 and 1520 <= columns.stop <= 1530


def test_image_and_label_show_the_same_place_in_200_draws():
    image, columns, rows = coordinates(100, 200)
    errors = []
    for seed in range(200):
        got_image, got_columns = scale_and_crop(image, columns, np.random.default_rng(seed), 100, (90, 90))
        again_image, got_rows = scale_and_crop(image, rows, np.random.default_rng(seed), 100, (90, 90))
        assert np.array_equal(got_image, again_image)
        got_image, got_columns, got_rows = (np.asarray(a).astype(np.int64) for a in (got_image, got_columns, got_rows))
        valid = got_rows != 255
        assert np.array_equal(valid, got_columns != 255)
        height, width = valid.any(1).sum(), valid.any(0).sum()
        assert valid[:height, :width].all()
        source_pixels_per_pixel = (got_columns[0, width - 1] - got_columns[0, 0]) / (width - 1)
        for colour, label in ((got_image[..., 0], got_columns), (got_image[..., 1], got_rows)):
            error = (colour - label)[valid]
            assert np.abs(error).max() <= max(1, source_pixels_per_pixel)
            errors.append(error.mean())
    assert abs(np.mean(errors)) < 0.1  # a label half a pixel off would be seen here
    assert np.abs(errors).max() < 0.6


def test_what_the_picture_does_not_fill_is_black_and_ignored():
    white = Image.new("RGB", (40, 20), (255, 255, 255))
    image, label = scale_and_crop(white, Image.new("L", (40, 20), 7), Draws(STRAIGHT, 10, 0, 0), 20, (32, 48))
    assert image.shape == (32, 48, 3) and label.shape == (32, 48)
    assert (image[:10, :20] == 255).all() and (label[:10, :20] == 7).all()
    assert (image[10:] == 0).all() and (image[:, 20:] == 0).all()
    assert (label[10:] == 255).all() and (label[:, 20:] == 255).all()


def test_only_the_direction_that_is_too_short_is_padded():
    image, columns, _ = coordinates(20, 250)
    image, label = scale_and_crop(image, columns, Draws(STRAIGHT, 20, 0, 60), 20, (30, 40))
    assert np.asarray(label)[0].tolist() == list(range(60, 100))
    assert (np.asarray(label)[20:] == 255).all()
    assert np.asarray(image)[5, :, 0].tolist() == list(range(60, 100))


@pytest.mark.parametrize("size", [(8, 12), (12, 8), (8, 8), (37, 9)])
@pytest.mark.parametrize("crop", [(16, 16), (5, 11), (40, 3)])
def test_the_crop_has_the_size_asked_for(size, crop):
    image, label = a_picture(*size), Image.new("L", size[::-1], 3)
    for seed in range(30):
        got_image, got_label = scale_and_crop(image, label, np.random.default_rng(seed), 16, crop)
        assert (got_image.shape, got_image.dtype) == ((*crop, 3), np.uint8)
        assert (got_label.shape, got_label.dtype) == (crop, np.uint8)


@pytest.mark.parametrize(("size", "long_per_short"), [((20, 30), 1.5), ((30, 20), 1.5), ((20, 20), 1)])
def test_the_short_side_is_uniform_from_half_to_twice_the_base(size, long_per_short):
    image, label = Image.new("RGB", size[::-1]), Image.new("L", size[::-1], 1)
    rng = np.random.default_rng(0)
    counts = np.zeros(64, int)
    for _ in range(1300):
        _, got = scale_and_crop(image, label, rng, 8, (40, 40))
        filled = np.asarray(got) == 1
        height, width = filled.any(1).sum(), filled.any(0).sum()
        short, long = sorted((height, width))
        assert (height <= width) == (size[0] <= size[1])
        assert long == int(short * long_per_short)
        counts[short] += 1
    assert counts[4:17].sum() == 1300 and counts[4:17].min() >= 65 and counts[4:17].max() <= 140  # 100 expected each


def test_crops_reach_every_border_and_spread_between():
    image, columns, rows = coordinates(40, 80)
    first_columns, first_rows = [], []
    for seed in range(400):
        for label, firsts in ((columns, first_columns), (rows, first_rows)):
            _, got = scale_and_crop(image, label, np.random.default_rng(seed), 40, (10, 10))
            firsts.append(np.asarray(got)[0, 0] / (80 if label is columns else 40))
    for firsts in (first_columns, first_rows):
        assert min(firsts) == 0 and max(firsts) > 0.8
        assert 0.35 < np.mean(firsts) < 0.5  # the middle, less half a crop
    assert abs(np.corrcoef(first_columns, first_rows)[0, 1]) < 0.2


def test_equal_generators_give_equal_crops_and_others_give_others():
    image, label, _ = coordinates(40, 60)
    one, same, other = (scale_and_crop(image, label, np.random.default_rng(s), 40, (20, 20)) for s in (1, 1, 2))
    assert np.array_equal(one[0], same[0]) and np.array_equal(one[1], same[1])
    assert not np.array_equal(one[0], other[0])


def test_pad_fills_up_at_the_right_and_below():
    image = np.array(a_picture(9, 11))
    assert np.array_equal(pad(image, (9, 11), 0), image)
    padded = pad(torch.from_numpy(image), (10, 14), 77).numpy()
    assert padded.shape == (10, 14, 3) and np.array_equal(padded[:9, :11], image)
    assert (padded[9:] == 77).all() and (padded[:, 11:] == 77).all()
    assert pad(image[..., 0], (9, 12), 255).numpy()[:, 11].tolist() == [255] * 9


# ---- mirror images ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [scale_and_crop, scale_and_crop_varied])
def test_half_of_the_pairs_are_mirrored_and_never_one_alone(draw):
    image, columns, _ = coordinates(40, 80)
    rng, mirrored = np.random.default_rng(0), 0
    for _ in range(1000):
        got_image, got_label = draw(image, columns, rng, 40, (12, 12))
        directions = [np.sign(int(line[-1]) - int(line[0])) for line in (got_image[0, :, 0], got_label[0])]
        assert directions[0] == directions[1] != 0
        mirrored += directions[0] < 0
    assert 440 < mirrored < 560


# ---- scale and crop as in mmsegmentation -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "ratio", "scaled"),
    [
        ((64, 128), 1.0, (64, 128)),
        ((64, 128), 0.5, (32, 64)),
        ((64, 128), 1.37, (87, 174)),  # 87.68 is cut off to 87, and 128 / 64 x 87 is 174
        ((48, 64), 1.0, (64, 85)),  # the short side decides
        ((32, 128), 1.0, (32, 128)),  # the long side decides
        ((64, 48), 0.75, (64, 48)),
    ],
)
def test_pictures_are_scaled_to_fit_into_two_by_one(size, ratio, scaled):
    image, columns, rows = coordinates(*size)
    got_image, got_columns = scale_and_crop_varied(image, columns, Draws(ratio, 0, 0, STRAIGHT), 64, scaled)
    _, got_rows = scale_and_crop_varied(image, rows, Draws(ratio, 0, 0, STRAIGHT), 64, scaled)
    assert got_image.shape == (*scaled, 3) and got_columns.shape == scaled
    expected = image.resize(scaled[::-1], Image.Resampling.BILINEAR)
    assert levels(got_image, expected).max() <= 1
    for got, count, source, axis in ((got_columns, scaled[1], size[1], 0), (got_rows, scaled[0], size[0], 1)):
        line = np.asarray(got).take(0, axis=axis)
        assert all(value in choice for value, choice in zip(line, nearest(0, count, source, count), strict=True))
    bigger, label = scale_and_crop_varied(
        image, columns, Draws(ratio, 0, 0, STRAIGHT), 64, (scaled[0] + 1, scaled[1] + 9)
    )
    assert bigger.shape[:2] == label.shape == scaled, "nothing is added to a picture that is smaller than the crop"


def test_a_crop_is_drawn_again_while_one_class_covers_too_much_of_it():
    label = np.zeros((10, 40), np.uint8)
    label[:, 10:20] = 1
    label[:, 30:] = 255
    image, label = Image.new("RGB", (40, 10)), Image.fromarray(label)

    def crop(*lefts, ratio=0.75):
        draws = Draws(1.0, *(number for left in lefts for number in (0, left)), STRAIGHT)
        _, got = scale_and_crop_varied(image, label, draws, 40, (20, 40), cat_max_ratio=ratio)
        assert draws.values == []
        return np.asarray(got)

    # the picture is scaled to 20 x 80: columns 0..19 class 0, 20..39 class 1, 40..59 class 0, 60..79 ignored
    assert (crop(0)[0] == [0] * 20 + [1] * 20).all()  # one half each
    first = crop(40, 10)  # a single class beside what is ignored: drawn again
    assert (first[0] == [0] * 10 + [1] * 20 + [0] * 10).all()
    second = crop(36, 30)  # 4 columns of 24 labelled ones are class 1, 20 are class 0: 0.83 is too much
    assert (second[0] == [1] * 10 + [0] * 20 + [255] * 10).all()
    assert (crop(36, ratio=0.84)[0] == [1] * 4 + [0] * 20 + [255] * 16).all()
    assert (crop(40, ratio=1.0)[0] == [0] * 20 + [255] * 20).all(), "1: any crop"
    assert (crop(*[40] * 10, 39)[0, :2] == [1, 0]).all(), "the eleventh is taken as it is"


def test_scales_and_places_of_varied_crops_are_uniform():
    image, columns, _ = coordinates(20, 250)
    widths, lefts = [], []
    for seed in range(300):
        _, got = scale_and_crop_varied(image, columns, np.random.default_rng((7, seed)), 125, (4, 100), (0.5, 2.0))
        line = np.sort(np.asarray(got)[0].astype(int))  # some are mirrored
        widths.append((line[-1] - line[0]) / 99)  # source columns for each column: 1 / scale
        lefts.append(line[0])
    scales = 1 / np.array(widths)
    assert scales.min() < 0.55 and scales.max() > 1.9 and 1.18 < scales.mean() < 1.32
    assert min(lefts) < 10 and max(lefts) > 180
