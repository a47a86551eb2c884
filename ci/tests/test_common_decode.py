import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from common.data import decode
from common.data.decode import check_sizes, open_image, picture_size, read_image, read_label
from common.errors import InputError


@pytest.fixture(params=["imagecodecs", "cv2", "Pillow"], autouse=True)
def decoder(request, monkeypatch):
    """Everything holds with each of the decoders."""
    if request.param != "Pillow" and importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    for name in {"imagecodecs", "cv2"} - {request.param}:
        monkeypatch.setitem(sys.modules, name, None)  # its import raises ImportError
    decode._png_decoder.cache_clear()
    assert decode.decoder_name() == request.param
    yield request.param
    decode._png_decoder.cache_clear()


def saved(picture, path):
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path)
    return path


def pixels_of(path):
    image = read_image(path)
    assert image.dtype == np.uint8 and image.flags.writeable
    assert np.array_equal(image, np.asarray(open_image(path)))
    return image.tolist()


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
        assert label.dtype == np.uint8
        assert label.tolist() == [[0, 1], [255, 0]]


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


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 48)])
def test_every_decoder_gives_the_bytes_that_were_written(tmp_path, size, decoder):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    values = rng.integers(0, 20, size, dtype=np.uint8)
    for options in ({}, {"optimize": True}, {"compress_level": 0}):
        Image.fromarray(pixels).save(tmp_path / "image.png", **options)
        Image.fromarray(values).save(tmp_path / "label.png", **options)
        assert np.array_equal(read_image(tmp_path / "image.png"), pixels)
        assert np.array_equal(
            read_label(tmp_path / "label.png", np.arange(256, dtype=np.uint8), frozenset(range(20))), values
        )
    assert (decode._decode_png(tmp_path / "image.png", decode._RGB) is None) == (decoder == "Pillow")


def test_the_orientation_in_a_file_turns_no_training_picture(tmp_path):
    """A label has none, and the two must lie on each other."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (8, 4), (1, 2, 3)).save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png").shape == (4, 8, 3)


def test_a_transparent_colour_changes_nothing(tmp_path):
    path = tmp_path / "see_through.png"
    Image.new("RGB", (3, 2), (10, 20, 30)).save(path, transparency=(10, 20, 30))
    assert pixels_of(path) == [[[10, 20, 30]] * 3] * 2


def smooth(height, width):
    rows, columns = np.indices((height, width))
    waves = [127 + 100 * np.sin(rows / a) * np.cos(columns / b) for a, b in ((31, 47), (53, 29), (41, 61))]
    return np.stack(waves, axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (None, (240, 320)),
        ((240, 320), (240, 320)),
        ((121, 160), (240, 320)),
        ((120, 160), (120, 160)),
        ((60, 90), (120, 160)),
        ((60, 80), (60, 80)),
        ((30, 40), (30, 40)),
        ((5, 5), (30, 40)),
    ],
)
def test_a_jpeg_is_decoded_at_the_smallest_fraction_that_is_large_enough(tmp_path, wanted, expected):
    path = tmp_path / "picture.jpg"
    Image.fromarray(smooth(240, 320)).save(path, quality=95)
    image = read_image(path, wanted)
    assert image.shape == (*expected, 3)
    averaged = Image.fromarray(smooth(240, 320)).resize(expected[::-1], Image.Resampling.BOX)
    assert np.abs(image.astype(int) - np.asarray(averaged)).mean() < 2
    assert picture_size(path) == (240, 320)


def test_other_files_are_decoded_whole(tmp_path):
    path = saved(smooth(240, 320), tmp_path / "picture.png")
    assert read_image(path, (5, 5)).shape == (240, 320, 3)


def test_the_size_of_what_is_no_picture(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="text.png"):
        picture_size(tmp_path / "text.png")


def test_sizes_that_differ_are_told_as_people_write_them(tmp_path):
    check_sizes(tmp_path / "a", tmp_path / "b", (3, 4), (3, 4))
    with pytest.raises(
        InputError, match=r"a\.png is 4x3 and its label .*b\.png is 5x3 pixels; .* must have the same size"
    ):
        check_sizes(tmp_path / "a.png", tmp_path / "b.png", (3, 4), (3, 5))


@pytest.mark.parametrize("broken", ["does not import", "is too old"])
def test_a_decoder_that_does_not_work_is_none(tmp_path, monkeypatch, broken):
    """OpenCV without libGL.so.1, as in a small container; and before it could give RGB."""
    code = "raise OSError('libGL.so.1: cannot open shared object file')" if broken == "does not import" else ""
    (tmp_path / "cv2.py").write_text(code)
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.setitem(sys.modules, "imagecodecs", ModuleType("imagecodecs"))
    monkeypatch.syspath_prepend(tmp_path)
    decode._png_decoder.cache_clear()
    assert decode.decoder_name() == "Pillow"
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(read_image(saved(picture, tmp_path / "a.png")), picture)
