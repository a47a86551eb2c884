"""data/colours.py: blur against Pillow's, distortion against the standard library's HSV, and normalisation by hand."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from ci.tests.draws import Draws, a_picture, levels
from common.data.colours import (
    Distortion,
    blur,
    blur_weights,
    chunks,
    denormalize,
    distort_colours,
    draw_blur,
    draw_distortion,
    normalize,
    picture_to_input,
)

# ---- blur ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0.05, 0.3, 0.5, 0.66, 0.8, 0.999])
@pytest.mark.parametrize("size", [(40, 31), (1, 9), (2, 2)])
def test_blur_is_that_of_pillow(radius, size):
    """Pillow rounds after each of six passes, and repeats the rim in each; it gets a rim that is wide enough."""
    image = (
        np.array(a_picture(*size)) if size[0] > 4 else np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    )
    surrounded = Image.fromarray(np.pad(image, ((9, 9), (9, 9), (0, 0)), mode="edge"))
    expected = np.asarray(surrounded.filter(ImageFilter.GaussianBlur(radius)), np.float64)[9:-9, 9:-9]
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    for rows in (slice(0, size[0]), *(slice(a, min(a + 7, size[0])) for a in range(0, size[0], 7))):
        (got,) = blur(planes, rows, blur_weights(radius))
        assert got.shape == (3, rows.stop - rows.start, size[1]) and got.dtype == torch.float32
        difference = got.permute(1, 2, 0).numpy() - expected[rows]
        assert np.abs(difference).max() < 3.5 and abs(difference.mean()) < 0.7


def test_blur_weights_are_of_a_gaussian_of_that_radius():
    for radius in np.linspace(0.01, 0.999, 50):
        weights = np.array(blur_weights(radius))
        line = np.concatenate([weights[:0:-1], weights])
        offsets = np.arange(len(line)) - len(weights) + 1
        assert line.sum() == pytest.approx(1) and len(weights) <= 4
        assert (line * offsets**2).sum() == pytest.approx(radius**2, abs=0.02)  # but for what is left out


def test_half_of_the_pictures_are_blurred_by_a_radius_up_to_a_pixel():
    rng = np.random.default_rng(0)
    radii = np.array([draw_blur(rng) for _ in range(2000)])
    assert 900 < (radii == 0).sum() < 1100
    blurred = radii[radii > 0]
    assert blurred.max() < 1 and blurred.min() < 0.01 and blurred.mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (1000, 960), (3, 1 << 18)])
def test_chunks_are_all_rows_in_order(shape):
    parts = chunks(*shape, torch.device("cpu"))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(shape[0]))
    assert chunks(*shape, torch.device("meta")) == [slice(0, shape[0])]


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_normalize_is_the_plain_formula_in_every_channel():
    image = a_picture(5, 7)
    got = picture_to_input(image)
    assert got.shape == (3, 5, 7) and got.dtype == torch.float32 and got.is_contiguous()
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        for row in range(5):
            for column in range(7):
                expected = (image.getpixel((column, row))[channel] / 255 - mean) / std
                assert got[channel, row, column].item() == pytest.approx(expected, abs=2e-6)


def test_normalize_with_other_constants():
    image = Image.new("RGB", (1, 1), (255, 0, 51))
    got = picture_to_input(image, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.1)).flatten().tolist()
    assert got == pytest.approx([1, -2, -3], abs=1e-6)


def test_normalize_keeps_the_memory_layout_and_its_argument():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8))
    channels_last, contiguous = pixels.permute(0, 3, 1, 2), pixels.permute(0, 3, 1, 2).contiguous()
    before = pixels.clone()
    one, other = normalize(channels_last), normalize(contiguous)
    assert one.is_contiguous(memory_format=torch.channels_last) and other.is_contiguous()
    assert torch.equal(one, other) and torch.equal(pixels, before)
    floating = contiguous.float()
    assert torch.equal(normalize(floating), other) and torch.equal(floating, contiguous.float())
    assert torch.equal(normalize(channels_last[0][:, 1:3]), other[0][:, 1:3])


def test_denormalize_gives_back_every_value():
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    got = denormalize(picture_to_input(Image.fromarray(values)))
    assert got.dtype == np.uint8 and np.array_equal(got, values)
    half = denormalize(picture_to_input(Image.fromarray(values)).half())
    assert levels(half, values).max() <= 1
    assert denormalize(torch.tensor([99.0, -99.0, 0.0]).view(3, 1, 1)).flatten().tolist()[:2] == [255, 0]


# ---- photometric distortion ------------------------------------------------------------------------------------------

NO, YES = 0.9, 0.1  # draws of probabilities


def distorted(colour, *draws):
    rng = Draws(*draws)
    distortion = draw_distortion(rng)
    assert rng.values == []
    pixels = distort_colours(
        torch.tensor(colour, dtype=torch.float32).view(3, 1, 1).expand(3, 2, 3).clone(), distortion
    )
    assert pixels.shape == (3, 2, 3) and (pixels == pixels[:, :1, :1]).all()
    return tuple(pixels[:, 0, 0].tolist())


def test_each_distortion_by_hand():
    # brightness, contrast first?, contrast, saturation, hue
    assert distorted((10, 100, 250), NO, NO, NO, NO, NO) == (10, 100, 250)
    assert distorted((10, 100, 250), YES, 20.5, NO, NO, NO, NO) == (30.5, 120.5, 255)
    assert distorted((10, 100, 250), YES, -32, NO, NO, NO, NO) == (0, 68, 218)
    for contrast_first in (YES, NO):
        assert distorted((10, 101, 250), NO, contrast_first, YES, 1.5, NO, NO) == (15, 151.5, 255)
    assert distorted((200, 100, 100), NO, NO, NO, YES, 0.5, NO) == pytest.approx((200, 150, 150))
    assert distorted((200, 100, 100), NO, NO, NO, YES, 1.5, NO) == pytest.approx((200, 50, 50))
    # red by 36 degrees towards yellow: green rises by 36 / 60 of the chroma; the other way blue does
    assert distorted((200, 0, 0), NO, NO, NO, NO, YES, 36) == pytest.approx((200, 120, 0), abs=1e-3)
    assert distorted((200, 0, 0), NO, NO, NO, NO, YES, -36) == pytest.approx((200, 0, 120), abs=1e-3)


def test_contrast_comes_before_or_after_hue_and_saturation():
    """Cut off at 255 first, a colour loses its hue; turned grey first, it does not."""
    assert distorted((250, 200, 180), NO, YES, YES, 1.5, YES, 0.5, NO) == pytest.approx((255, 255, 255))
    assert distorted((100, 160, 40), NO, YES, YES, 1.5, YES, 0.5, NO) == pytest.approx((195, 240, 150))
    assert distorted((250, 200, 180), NO, NO, YES, 0.5, YES, 0.5, NO) == pytest.approx((125, 112.5, 107.5))


@pytest.mark.parametrize("hue_degrees", [0, 36, -36, 5])
@pytest.mark.parametrize("saturation", [0.5, 1, 1.5])
def test_hue_and_saturation_are_those_of_the_standard_library(hue_degrees, saturation):
    if hue_degrees == 0 and saturation == 1:
        return
    corners = np.array(np.meshgrid([0, 255], [0, 255], [0, 255])).reshape(3, -1)
    greys = np.tile(np.arange(0, 256, 51), (3, 1))
    ties = np.array([[200, 200, 10], [10, 200, 200], [200, 10, 200], [10, 10, 200], [1, 1, 0], [0, 0, 1]]).T
    colours = np.concatenate([np.random.default_rng(0).integers(0, 256, (3, 400)), corners, greys, ties], axis=1)
    pixels = torch.from_numpy(colours).float().view(3, 1, -1)
    got = distort_colours(pixels, Distortion(saturation=saturation, hue_degrees=hue_degrees)).view(3, -1).numpy()
    for colour, result in zip(colours.T, got.T, strict=True):
        hue, sat, value = colorsys.rgb_to_hsv(*(colour / 255))
        expected = colorsys.hsv_to_rgb((hue + hue_degrees / 360) % 1, min(1, sat * saturation), value)
        assert result == pytest.approx(255 * np.array(expected), abs=0.01), colour


def test_half_of_the_pictures_have_each_distortion():
    draws = np.array([draw_distortion(np.random.default_rng(seed)) for seed in range(1000)])
    for values, nothing, low, high in zip(
        draws.T[:4], (0, 1, 1, 0), (-32, 0.5, 0.5, -36), (32, 1.5, 1.5, 36), strict=True
    ):
        changed = values[values != nothing]
        assert 440 < len(changed) < 560
        assert low <= changed.min() < low + 0.05 * (high - low) and high - 0.05 * (high - low) < changed.max() <= high
        assert changed.mean() == pytest.approx((low + high) / 2, abs=0.05 * (high - low))
    assert 440 < draws[:, 4].sum() < 560
    assert np.abs(np.corrcoef((draws != (0, 1, 1, 0, 0)).T) - np.eye(5)).max() < 0.15
