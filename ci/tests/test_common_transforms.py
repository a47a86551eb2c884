from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import InputError
from common.transforms import (
    blur,
    denormalize,
    flip,
    normalize,
    pad,
    photometric_distortion,
    read_image,
    read_label,
    scale_and_crop,
    scale_and_crop_varied,
    to_class_ids,
)


class Draws:
    """A generator that gives the values it was made with, each within the range that is asked for."""

    def __init__(self, *values):
        self.values = list(values)

    def integers(self, low, high, endpoint=False):
        value = self.values.pop(0)
        assert low <= value <= high and (endpoint or value < high), (low, value, high)
        return value

    def uniform(self, low, high):
        return self.integers(low, high, endpoint=True)

    def random(self):
        return self.integers(0, 1)


def a_picture(height, width):
    """Noise of single pixels below, of blocks above: fine grain, flat parts and edges."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[: height // 2] = image[: height // 2 : 4, ::4].repeat(4, 0).repeat(4, 1)[: height // 2, :width]
    return Image.fromarray(image)


def coordinates(height, width):
    """A picture whose red is the column and whose green is the row, with labels of columns and of rows."""
    rows, columns = np.indices((height, width)).astype(np.uint8)
    image = Image.fromarray(np.stack([columns, rows, np.full_like(rows, 200)], axis=2))
    return image, Image.fromarray(columns), Image.fromarray(rows)


def levels(one, other):
    return np.abs(np.asarray(one, np.int64) - np.asarray(other, np.int64))


# ---- scale and crop --------------------------------------------------------------------------------------------------


def nearest(first, count, source, scaled):
    """For each output pixel the source pixels that hold its centre: one, or two when it lies on their border."""
    centres = [Fraction((2 * (first + i) + 1) * source, 2 * scaled) for i in range(count)]
    return [{floor(centre), ceil(centre) - 1} for centre in centres]


@pytest.mark.parametrize(
    ("size", "short", "crop"),
    [
        ((64, 128), 64, (32, 48)),  # as it is
        ((64, 128), 32, (24, 24)),  # half the size
        ((64, 128), 128, (48, 64)),  # twice the size
        ((64, 128), 33, (20, 33)),  # ratios that are no whole numbers
        ((64, 128), 97, (61, 50)),
        ((90, 61), 100, (48, 48)),  # portrait
        ((90, 61), 40, (33, 17)),
        ((50, 50), 77, (77, 77)),  # the crop is all of it
    ],
)
@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_resizing_the_region_equals_resizing_everything_and_cropping_then(size, short, crop, place):
    (height, width), (crop_height, crop_width) = size, crop
    image, columns, rows = a_picture(height, width), *coordinates(height, width)[1:]
    scaled_width = short if width <= height else width * short // height
    scaled_height = short if height < width else height * short // width
    share = {"start": 0, "middle": 0.5, "end": 1}[place]
    top, left = int(share * (scaled_height - crop_height)), int(share * (scaled_width - crop_width))
    base_size = short  # any base whose range holds the short side

    got_image, got_columns = scale_and_crop(image, columns, Draws(short, top, left), base_size, crop)
    _, got_rows = scale_and_crop(image, rows, Draws(short, top, left), base_size, crop)

    region = (left, top, left + crop_width, top + crop_height)
    whole = image.resize((scaled_width, scaled_height), Image.Resampling.BILINEAR).crop(region)
    assert levels(got_image, whole).max() <= 1
    for seen, among in zip(np.asarray(got_columns).T, nearest(left, crop_width, width, scaled_width), strict=True):
        assert set(seen.tolist()) <= among
    for seen, among in zip(np.asarray(got_rows), nearest(top, crop_height, height, scaled_height), strict=True):
        assert set(seen.tolist()) <= among


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
    image, label = scale_and_crop(white, Image.new("L", (40, 20), 7), Draws(10, 0, 0), 20, (32, 48))
    image, label = np.asarray(image), np.asarray(label)
    assert image.shape == (32, 48, 3) and label.shape == (32, 48)
    assert (image[:10, :20] == 255).all() and (label[:10, :20] == 7).all()
    assert (image[10:] == 0).all() and (image[:, 20:] == 0).all()
    assert (label[10:] == 255).all() and (label[:, 20:] == 255).all()


def test_only_the_direction_that_is_too_short_is_padded():
    image, columns, _ = coordinates(20, 250)
    image, label = scale_and_crop(image, columns, Draws(20, 0, 60), 20, (30, 40))
    assert np.asarray(label)[0].tolist() == list(range(60, 100))
    assert (np.asarray(label)[20:] == 255).all()
    assert np.asarray(image)[5, :, 0].tolist() == list(range(60, 100))


@pytest.mark.parametrize("size", [(8, 12), (12, 8), (8, 8), (37, 9)])
@pytest.mark.parametrize("crop", [(16, 16), (5, 11), (40, 3)])
def test_the_crop_has_the_size_asked_for(size, crop):
    image, label = a_picture(*size), Image.new("L", size[::-1], 3)
    for seed in range(30):
        got_image, got_label = scale_and_crop(image, label, np.random.default_rng(seed), 16, crop)
        assert (got_image.size, got_image.mode) == ((crop[1], crop[0]), "RGB")
        assert (got_label.size, got_label.mode) == ((crop[1], crop[0]), "L")


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


def test_pad_leaves_a_large_picture_as_it_is():
    image = a_picture(9, 11)
    assert np.array_equal(pad(image, (9, 11), 0), image)
    assert np.array_equal(pad(image, (4, 5), 0), image)
    assert pad(image, (10, 5), 0).size == (11, 10)


# ---- flip and blur ---------------------------------------------------------------------------------------------------


def test_flip_mirrors_image_and_label_together():
    image, columns, _ = coordinates(4, 6)
    flipped_image, flipped_label = flip(image, columns, np.random.default_rng(0), probability=1)
    assert np.asarray(flipped_label).tolist() == [[5, 4, 3, 2, 1, 0]] * 4
    assert np.asarray(flipped_image)[..., 0].tolist() == [[5, 4, 3, 2, 1, 0]] * 4
    assert np.asarray(flipped_image)[..., 1].tolist() == [[row] * 6 for row in range(4)]
    kept_image, kept_label = flip(image, columns, np.random.default_rng(0), probability=0)
    assert np.array_equal(kept_image, image) and np.array_equal(kept_label, columns)


def test_half_of_the_pairs_are_flipped_and_never_one_alone():
    image, columns, _ = coordinates(2, 3)
    rng, flipped = np.random.default_rng(0), 0
    for _ in range(1000):
        got_image, got_label = flip(image, columns, rng)
        assert np.array_equal(np.asarray(got_image)[..., 0], got_label)
        flipped += np.asarray(got_label)[0, 0] == 2
    assert 440 < flipped < 560


def test_blur_softens_about_half_of_the_images_by_at_most_a_pixel():
    point = np.zeros((15, 15, 3), np.uint8)
    point[7, 7] = 255
    image = Image.fromarray(point)
    rng = np.random.default_rng(0)
    peaks = []
    for _ in range(600):
        got = np.asarray(blur(image, rng))
        peaks.append(int(got[7, 7, 0]))
        assert np.array_equal(got, got[::-1]) and np.array_equal(got, got[:, ::-1])
        assert not got[:3].any()  # nothing reaches four pixels
    assert np.array_equal(image, point)  # the argument is not changed
    unchanged = sum(peak == 255 for peak in peaks)
    assert 270 < unchanged < 370  # half, and the smallest radii
    # a Gaussian of radius 1 keeps 1 / (2 pi) of a point in its middle pixel, a smaller one more
    assert min(peaks) > 0.8 * 255 / (2 * np.pi) and len(set(peaks)) > 40


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_normalize_is_the_plain_formula_in_every_channel():
    image = a_picture(5, 7)
    got = normalize(image)
    assert got.shape == (3, 5, 7) and got.dtype == torch.float32 and got.is_contiguous()
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        for row in range(5):
            for column in range(7):
                expected = (image.getpixel((column, row))[channel] / 255 - mean) / std
                assert got[channel, row, column].item() == pytest.approx(expected, abs=2e-6)


def test_normalize_with_other_constants():
    image = Image.new("RGB", (1, 1), (255, 0, 51))
    got = normalize(image, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.1)).flatten().tolist()
    assert got == pytest.approx([1, -2, -3], abs=1e-6)


def test_denormalize_gives_back_every_value():
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    got = denormalize(normalize(Image.fromarray(values)))
    assert got.dtype == np.uint8 and np.array_equal(got, values)
    half = denormalize(normalize(Image.fromarray(values)).half())
    assert levels(half, values).max() <= 1
    assert denormalize(torch.tensor([99.0, -99.0, 0.0]).view(3, 1, 1)).flatten().tolist()[:2] == [255, 0]


def test_class_ids_are_int64_and_writable():
    ids = to_class_ids(Image.fromarray(np.array([[0, 18], [255, 3]], np.uint8)))
    assert ids.dtype == torch.int64 and ids.tolist() == [[0, 18], [255, 3]]
    ids += 1


# ---- files -----------------------------------------------------------------------------------------------------------


def saved(picture, path):
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path)
    return path


def pixels_of(path):
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def test_grey_pictures_of_8_and_of_16_bits_become_rgb(tmp_path):
    grey = np.array([[0, 100, 255]])
    expected = [[[0] * 3, [100] * 3, [255] * 3]]
    assert pixels_of(saved(grey.astype(np.uint8), tmp_path / "8.png")) == expected
    for suffix in ("png", "tif"):
        assert pixels_of(saved((grey * 257).astype(np.uint16), tmp_path / f"16.{suffix}")) == expected
    assert pixels_of(saved((grey * 257).astype(np.int32), tmp_path / "32.tif")) == expected
    assert pixels_of(saved(Image.fromarray(grey > 99), tmp_path / "1.png")) == [[[0] * 3, [255] * 3, [255] * 3]]


def test_transparency_is_dropped_and_palettes_are_looked_up(tmp_path):
    opaque_and_not = np.array([[[10, 20, 30, 255], [40, 50, 60, 128]]], np.uint8)
    assert pixels_of(saved(opaque_and_not, tmp_path / "rgba.png")) == [[[10, 20, 30], [40, 50, 60]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert pixels_of(saved(palette, tmp_path / "palette.png")) == [[[9, 8, 7], [200, 100, 50]]]


def test_a_picture_of_floats_is_refused(tmp_path):
    path = saved(np.full((2, 2), 0.5, np.float32), tmp_path / "float.tif")
    with pytest.raises(InputError, match=r"float\.tif .*floating-point"):
        read_image(path)


def test_label_values_become_train_ids_whether_in_grey_or_in_a_palette(tmp_path):
    values = np.array([[7, 8], [0, 7]], np.uint8)
    train_id = np.full(256, 255, np.uint8)
    train_id[[7, 8]] = 0, 1
    known = frozenset({0, 7, 8})
    palette = Image.fromarray(values).convert("P")
    palette.putdata(values.ravel().tolist())
    palette.putpalette(list(range(255, 255 - 27, -1)))
    for path in (saved(values, tmp_path / "l.png"), saved(palette, tmp_path / "p.png")):
        label = read_label(path, train_id, known)
        assert label.mode == "L"
        assert np.asarray(label).tolist() == [[0, 1], [255, 0]]


def test_unknown_label_values_are_named_with_their_file(tmp_path):
    path = saved(np.array([[7, 77, 200]], np.uint8), tmp_path / "odd_labelIds.png")
    with pytest.raises(InputError, match=r"odd_labelIds\.png.*\[77, 200\].*label table.*give"):
        read_label(path, np.zeros(256, np.uint8), frozenset(range(34)))


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [(np.zeros((2, 2, 3), np.uint8), "RGB"), (np.zeros((2, 2), np.uint16), "I(;16)?"), (np.zeros((2, 2), bool), "1")],
)
def test_labels_that_are_not_8_bit_single_channel_are_refused(tmp_path, pixels, mode):
    with pytest.raises(InputError, match=rf"label\.png is a {mode} image.*8-bit"):
        read_label(saved(pixels, tmp_path / "label.png"), np.zeros(256, np.uint8), frozenset(range(34)))


def cut_off(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (30, 30), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-60])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: None,  # missing
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no picture"),
        lambda path: path.mkdir(),
        cut_off,
    ],
    ids=["missing", "empty", "text", "folder", "cut off"],
)
def test_a_file_that_cannot_be_decoded_is_named_in_one_line(tmp_path, spoil):
    path = tmp_path / "damaged.png"
    spoil(path)
    for read in (read_image, lambda path: read_label(path, np.zeros(256, np.uint8), frozenset(range(34)))):
        with pytest.raises(InputError, match="damaged.png") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_a_picture_too_large_for_pillow_is_named_too(tmp_path, monkeypatch):
    path = saved(np.zeros((20, 20), np.uint8), tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(InputError, match="huge.png"):
        read_image(path)


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
    got_image, got_columns = scale_and_crop_varied(image, columns, Draws(ratio, 0, 0), 64, scaled)
    _, got_rows = scale_and_crop_varied(image, rows, Draws(ratio, 0, 0), 64, scaled)
    assert got_image.size == got_columns.size == scaled[::-1]
    expected = image.resize(scaled[::-1], Image.Resampling.BILINEAR)
    assert levels(got_image, expected).max() <= 1
    for got, count, source, axis in ((got_columns, scaled[1], size[1], 0), (got_rows, scaled[0], size[0], 1)):
        line = np.asarray(got).take(0, axis=axis)
        assert all(value in choice for value, choice in zip(line, nearest(0, count, source, count), strict=True))
    bigger, label = scale_and_crop_varied(image, columns, Draws(ratio, 0, 0), 64, (scaled[0] + 1, scaled[1] + 9))
    assert bigger.size == label.size == scaled[::-1], "nothing is added to a picture that is smaller than the crop"


def test_a_crop_is_drawn_again_while_one_class_covers_too_much_of_it():
    label = np.zeros((10, 40), np.uint8)
    label[:, 10:20] = 1
    label[:, 30:] = 255
    image, label = Image.new("RGB", (40, 10)), Image.fromarray(label)

    def crop(*lefts, ratio=0.75):
        draws = Draws(1.0, *(number for left in lefts for number in (0, left)))
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
        line = np.asarray(got)[0].astype(int)
        widths.append((line[-1] - line[0]) / 99)  # source columns for each column: 1 / scale
        lefts.append(line[0])
    scales = 1 / np.array(widths)
    assert scales.min() < 0.55 and scales.max() > 1.9 and 1.18 < scales.mean() < 1.32
    assert min(lefts) < 10 and max(lefts) > 180


# ---- photometric distortion ------------------------------------------------------------------------------------------

NO, YES = 0.9, 0.1  # draws of probabilities


def distorted(colour, *draws):
    rng = Draws(*draws)
    image = photometric_distortion(Image.new("RGB", (3, 2), colour), rng)
    assert rng.values == []
    assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) == 1
    return tuple(np.asarray(image)[0, 0].tolist())


def test_each_distortion_by_hand():
    # brightness, contrast first?, contrast, saturation, hue
    assert distorted((10, 100, 250), NO, NO, NO, NO, NO) == (10, 100, 250)
    assert distorted((10, 100, 250), YES, 20.5, NO, NO, NO, NO) == (30, 120, 255)
    assert distorted((10, 100, 250), YES, -32, NO, NO, NO, NO) == (0, 68, 218)
    for contrast_first in (YES, NO):
        assert distorted((10, 101, 250), NO, contrast_first, YES, 1.5, NO, NO) == (15, 151, 255)
    assert distorted((200, 100, 100), NO, NO, NO, YES, 0.5, NO) == pytest.approx((200, 150, 150), abs=1)
    assert distorted((200, 100, 100), NO, NO, NO, YES, 1.5, NO) == pytest.approx((200, 50, 50), abs=1)
    # red by 36 degrees towards yellow: green rises by 36 / 60 of the chroma; the other way blue does
    assert distorted((200, 0, 0), NO, NO, NO, NO, YES, 36) == pytest.approx((200, 120, 0), abs=4)
    assert distorted((200, 0, 0), NO, NO, NO, NO, YES, -36) == pytest.approx((200, 0, 120), abs=4)


def test_contrast_comes_before_or_after_hue_and_saturation():
    """Cut off at 255 first, a colour loses its hue; turned grey first, it does not."""
    assert distorted((250, 200, 180), NO, YES, YES, 1.5, YES, 0.5, NO) == pytest.approx((255, 255, 255), abs=1)
    assert distorted((100, 160, 40), NO, YES, YES, 1.5, YES, 0.5, NO) == pytest.approx((187, 240, 97 + 50), abs=45)
    after = distorted((250, 200, 180), NO, NO, YES, 0.5, YES, 0.5, NO)
    assert after == pytest.approx((125, 112, 107), abs=2)


def test_half_of_the_pictures_have_each_distortion():
    grey = Image.new("RGB", (2, 2), (100, 100, 100))
    changed = [np.asarray(photometric_distortion(grey, np.random.default_rng(seed)))[0, 0, 0] for seed in range(400)]
    # of grey, brightness and contrast alone are seen: a quarter stays
    assert 70 < sum(value == 100 for value in changed) < 135
    assert min(changed) < 60 and max(changed) > 140
