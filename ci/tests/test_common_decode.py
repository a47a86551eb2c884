import importlib.util
import io
import struct
import sys
import zlib
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, features

from common.data import decode
from common.data.decode import check_header, check_sizes, open_image, picture_size, read_image
from common.data.files import check_whole
from common.data.labels import LabelTable, read_label
from common.errors import InputError

IDS = LabelTable(np.arange(256, dtype=np.uint8), frozenset(range(34)))


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
        label = read_label(path, LabelTable(train_id, known))
        assert label.dtype == np.uint8
        assert label.tolist() == [[0, 1], [255, 0]]


def test_unknown_label_values_are_named_with_their_file(tmp_path):
    path = saved(np.array([[7, 77, 200]], np.uint8), tmp_path / "odd_labelIds.png")
    with pytest.raises(InputError, match=r"odd_labelIds\.png.*\[77, 200\].*label table.*give"):
        read_label(path, IDS)


@pytest.mark.parametrize(
    ("pixels", "held"),
    [
        (np.zeros((2, 2, 3), np.uint8), r"colours \(RGB\)"),
        (np.zeros((2, 2), np.uint16), "whole numbers of more than 8 bits"),
        (np.zeros((2, 2), bool), "values of one bit"),
    ],
)
def test_labels_that_are_not_8_bit_single_channel_are_refused(tmp_path, pixels, held):
    with pytest.raises(InputError, match=rf"label\.png holds {held}; .*8-bit"):
        read_label(saved(pixels, tmp_path / "label.png"), IDS)


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
    for read in (read_image, lambda path: read_label(path, IDS)):
        with pytest.raises(InputError, match="damaged.png") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_a_picture_too_large_for_pillow_is_named_too(tmp_path, monkeypatch):
    path = saved(np.zeros((20, 20), np.uint8), tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(InputError, match=r"huge\.png .it has more than 20 pixels, the most that is decoded.; cut it"):
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
        assert np.array_equal(read_label(tmp_path / "label.png", IDS), values)
    data = (tmp_path / "image.png").read_bytes()
    assert (decode.decode_plain_png(data, check_whole(data), decode.RGB) is None) == (decoder == "Pillow")


# ---- orientation

SHOWN = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10  # [2, 4]: as people see it
TURNS = {  # orientation -> how it lies in the file
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}  # fmt: skip


def turned(path, number, kind="PNG"):
    exif = Image.Exif()
    exif[0x0112] = number
    Image.fromarray(np.ascontiguousarray(TURNS.get(number, TURNS[1])(SHOWN))).save(path, kind, exif=exif)
    return path


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("number", range(2, 9))
def test_a_picture_is_turned_as_exif_says_or_not_or_refused(tmp_path, number, kind):
    path = turned(tmp_path / "a", number, kind)
    for read in (read_image, picture_size):
        with pytest.raises(InputError, match=rf"/a is to be shown turned .*EXIF orientation is {number}.*--exif turn"):
            read(path)
    upright = read_image(path, exif="turn")
    assert picture_size(path, "turn") == upright.shape[:2] == (2, 4)
    assert np.array_equal(np.asarray(open_image(path)), upright), "prediction turns"
    if kind == "PNG":
        assert np.array_equal(upright, SHOWN)
    if kind == "TIFF":
        with pytest.raises(InputError, match="a TIFF is always turned"):
            read_image(path, exif="ignore")
    else:
        lies = np.asarray(TURNS[number](upright))
        assert np.abs(read_image(path, exif="ignore").astype(int) - lies).max() <= (0 if kind == "PNG" else 60)
        assert picture_size(path, "ignore") == lies.shape[:2]


def test_exif_behind_the_pixels_turns_too(tmp_path):
    """Some programs append it; a look at the header alone does not find it."""
    path = turned(tmp_path / "a.png", 3)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    path.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    assert np.array_equal(read_image(path, exif="turn"), SHOWN)
    with pytest.raises(InputError, match="EXIF orientation is 3"):
        read_image(path)


def test_the_size_of_a_picture_is_known_without_decoding_it(tmp_path, monkeypatch):
    path = saved(np.zeros((20, 30, 3), np.uint8), tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    assert picture_size(path) == check_header(path) == (20, 30)


@pytest.mark.parametrize("number", [0, 1, 9, 65535])
def test_an_orientation_that_says_nothing_turns_nothing(tmp_path, number):
    path = turned(tmp_path / "a.png", number)
    for exif in (None, "turn", "ignore"):
        assert np.array_equal(read_image(path, exif=exif), SHOWN)


def test_exif_that_is_damaged_turns_nothing(tmp_path):
    Image.fromarray(SHOWN).save(tmp_path / "a.jpg", exif=b"Exif\0\0no such thing")
    assert read_image(tmp_path / "a.jpg").shape == (2, 4, 3)


@pytest.mark.parametrize(("number", "wanted", "expected"), [(3, (60, 90), (120, 160)), (6, (90, 60), (160, 120))])
def test_a_photograph_is_decoded_at_a_fraction_of_the_size_that_is_shown(tmp_path, number, wanted, expected):
    exif = Image.Exif()
    exif[0x0112] = number
    Image.fromarray(smooth(240, 320)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", wanted, "turn").shape == (*expected, 3)


# ---- ranges and pages


@pytest.mark.parametrize("highest", [255, 1023, 4095, 16383])
@pytest.mark.parametrize(("dtype", "suffix"), [(np.uint16, "png"), (np.uint16, "tif"), (np.int32, "tif")])
def test_numbers_of_fewer_bits_than_their_file_are_no_black_picture(tmp_path, highest, dtype, suffix):
    path = saved(np.array([[0, highest]], dtype), tmp_path / f"a.{suffix}")
    with pytest.raises(
        InputError, match=rf"a\.{suffix} .*whole numbers up to {highest}, and black to white is 0 to 65535"
    ):
        read_image(path)


@pytest.mark.parametrize("values", [[-1, 9], [0, 65536]])
def test_numbers_beyond_16_bits_are_refused(tmp_path, values):
    path = saved(np.array([values], np.int32), tmp_path / "a.tif")
    with pytest.raises(InputError, match=f"whole numbers from {values[0]} to {values[1]}"):
        read_image(path)


def rgb_of_16_bits(path, highest):
    """Pillow writes none."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + struct.pack(">6H", 0, 0, 0, highest, 0, highest)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def test_colours_of_16_bits_have_their_range_looked_at_too(tmp_path):
    assert read_image(rgb_of_16_bits(tmp_path / "a.png", 65535)).tolist() == [[[0, 0, 0], [255, 0, 255]]]
    with pytest.raises(InputError, match="whole numbers under 16384"):
        read_image(rgb_of_16_bits(tmp_path / "a.png", 4095))


def test_a_black_picture_of_16_bits_is_black(tmp_path):
    assert not read_image(saved(np.zeros((2, 2), np.uint16), tmp_path / "a.png")).any()


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG", "WEBP"])
def test_several_pages_and_animations_are_refused(tmp_path, kind):
    pages = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (0, 100, 200)]
    pages[0].save(tmp_path / "a", kind, save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="it holds 3 pictures.; save the one that is meant"):
        read_image(tmp_path / "a")


def test_the_small_copies_in_a_tiff_are_no_pages(tmp_path):
    page, small = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (4, 4))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[small], tiffinfo={254: 1})
    tag, data = struct.pack("<HHI", 254, 4, 1), (tmp_path / "a.tif").read_bytes()
    assert data.count(tag + struct.pack("<I", 1)) == 2
    (tmp_path / "a.tif").write_bytes(data.replace(tag + struct.pack("<I", 1), tag + struct.pack("<I", 0), 1))
    assert read_image(tmp_path / "a.tif").tolist() == [[[200, 0, 0]] * 8] * 8


def test_the_second_photograph_of_a_telephone_is_passed_over(tmp_path):
    pages = [Image.new("RGB", (8, 8), (value, value, value)) for value in (200, 0)]
    pages[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=pages[1:])
    assert read_image(tmp_path / "a.jpg").min() > 190


# ---- words


@pytest.mark.parametrize("start", [b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b"\0\0\0\x18ftypmp42", b"<html>"])
def test_what_is_no_picture_that_can_be_read_is_not_called_damaged(tmp_path, start):
    (tmp_path / "a.heic").write_bytes(start)
    with pytest.raises(
        InputError, match=r"a\.heic .it is no kind of picture that can be read here.; convert it to PNG"
    ):
        read_image(tmp_path / "a.heic")


WITH_AVIF = ["AVIF"] if features.check("avif") else []  # Pillow has it since 11.3


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "GIF", "BMP", "JPEG", "PNG", *WITH_AVIF])
def test_whatever_is_wrong_with_a_file_is_told_in_one_line_with_its_name(tmp_path, kind):
    """Pillow raises errors of a dozen kinds: each byte of a small file is wrong once."""
    file, path = io.BytesIO(), tmp_path / "a"
    Image.new("RGB", (3, 2)).save(file, kind)
    whole, refused = file.getvalue(), 0
    for place in range(min(len(whole), 120)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        for read in (read_image, check_header):
            try:
                read(path)
            except InputError as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 10


def test_a_damaged_header_is_called_that(tmp_path):
    (tmp_path / "a.webp").write_bytes(b"RIFF" + b"x" * 99)
    with pytest.raises(InputError, match=r"a\.webp .its header is damaged.; unpack or download it again"):
        read_image(tmp_path / "a.webp")


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "it is empty"), (bytes(99), "nothing but zeros"), (b"\xff\xd8\xff\xe0", "cut off")]
)
def test_the_size_of_what_is_left_of_a_picture_is_refused_with_the_reason(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        picture_size(tmp_path / "a.jpg")


def test_a_picture_that_is_missing_or_a_folder_is_called_that(tmp_path):
    with pytest.raises(InputError, match=r"the image .*/a .No such file or directory."):
        picture_size(tmp_path / "a")
    with pytest.raises(InputError, match=r"the image .*/\w+ .Is a directory."):
        picture_size(tmp_path)


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
