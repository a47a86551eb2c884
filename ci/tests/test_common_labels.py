"""common/data/labels.py: no label is taken for another, whatever its file has been through."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.cityscapes import LABEL_IDS, TRAIN_IDS
from common.data.labels import LabelTable, MaskFiles, read_label
from common.errors import InputError
from common.samples.layout import voc_palette
from DynamicUNet.voc import MASKS as VOC

FLAT = voc_palette()
COLOURS = [tuple(FLAT[3 * index : 3 * index + 3]) for index in range(256)]
IDS = np.zeros((6, 8), np.uint8)  # a person, an aeroplane and a border
IDS[1:4, 2:6], IDS[5, :3], IDS[0] = 15, 1, 255


def palette_png(path: Path, indices: np.ndarray, colours) -> Path:
    image = Image.fromarray(indices)
    image.putpalette([value for colour in colours for value in colour])
    image.save(path)
    return path


def sorted_anew(path: Path, ids: np.ndarray, order: list[int], colours=COLOURS) -> Path:
    """The picture of a palette file, with the colours of the ids in `order` as the first ones of its palette."""
    indices = np.zeros_like(ids)
    for place, value in enumerate(order):
        indices[ids == value] = place
    return palette_png(path, indices, [colours[value] for value in order])


def png_of_samples(path: Path, samples: np.ndarray, bits: int) -> Path:
    """A grey PNG of few bits, written by hand: Pillow writes none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b""
    for row in samples:
        binary = "".join(format(int(value), f"0{bits}b") for value in row)
        rows += b"\0" + int(binary, 2).to_bytes(len(binary) // 8, "big")
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def refusal(read, path: Path) -> str:
    with pytest.raises(InputError) as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


# ---- palettes


def test_indices_of_the_published_palette_are_the_ids(tmp_path):
    assert VOC.read(palette_png(tmp_path / "a.png", IDS, COLOURS)) == (pytest.approx(IDS), "")


@pytest.mark.parametrize("order", [[0, 255, 15, 1], [15, 1, 0, 255], [1, 0, 255, 15]])
def test_a_palette_that_was_sorted_anew_is_read_by_its_colours(tmp_path, order):
    """The published colour of the border, 255, is no more than one more colour of the table."""
    colours = [*COLOURS[:255], (224, 224, 192)]
    label = VOC.read(sorted_anew(tmp_path / "a.png", IDS, order, colours))
    assert np.array_equal(label.values, IDS) and label.note == ""


def test_the_colours_of_one_class_alone_are_enough(tmp_path):
    ids = np.where(IDS == 15, 15, 0).astype(np.uint8)
    assert np.array_equal(read_label(sorted_anew(tmp_path / "a.png", ids, [15, 0]), VOC), ids)


@pytest.mark.parametrize(
    "border", [(0, 0, 0), (255, 255, 255), None], ids=["black", "white", "beyond the end of the palette"]
)
def test_a_border_without_its_colour_is_a_border_among_published_ones(tmp_path, border):
    colours = COLOURS[:21] if border is None else [*COLOURS[:21], *[(9, 9, 9)] * 234, border]
    assert np.array_equal(read_label(palette_png(tmp_path / "a.png", IDS, colours), VOC), IDS)


@pytest.mark.parametrize(
    "colours",
    [
        [(value, value, value) for value in range(256)],
        [(0, 0, 0)] * 256,
        [(0, 0, 0), *((250, value, 83) for value in range(255))],
        [(7, value, 9) for value in range(256)],
    ],
    ids=["grey", "all black", "of a tool", "of a tool, and no black"],
)
def test_a_palette_without_published_colours_says_nothing_and_that_is_said(tmp_path, colours):
    label = VOC.read(palette_png(tmp_path / "a.png", IDS, colours))
    assert np.array_equal(label.values, IDS)
    assert "a.png has none of the published colours" in label.note or colours[0] == colours[-1]
    assert "its indices are taken for the ids" in label.note


def test_colours_of_which_some_are_published_are_refused(tmp_path):
    colours = [COLOURS[0], COLOURS[15], (1, 2, 3)]
    indices = np.array([[0, 1, 2]], np.uint8)
    assert "index 2 has the colour (1, 2, 3)" in refusal(VOC.read, palette_png(tmp_path / "a.png", indices, colours))


def test_two_indices_of_one_published_colour_are_two_things(tmp_path):
    path = palette_png(tmp_path / "a.png", np.array([[0, 1, 2]], np.uint8), [COLOURS[0], COLOURS[15], COLOURS[0]])
    assert "fits neither its indices nor the published colours" in refusal(VOC.read, path)


def test_grey_ids_in_a_palette_are_not_taken_for_its_indices(tmp_path):
    """What an optimiser makes of a grey file of ids, where that is shorter: levels 0, 15, 255 at 0, 1, 2."""
    path = sorted_anew(tmp_path / "a.png", np.where(IDS == 1, 0, IDS), [0, 15, 255], [(v, v, v) for v in range(256)])
    assert "give the original label files, or 8-bit grey" in refusal(VOC.read, path)


def test_a_colour_of_two_ids_is_read_where_both_count_alike_and_else_refused(tmp_path):
    """Black is five ids of Cityscapes, all ignored; a pole and a group of poles have one colour, and one counts."""
    colours = {label: LABEL_IDS.colours.get(label, (1, 1, 1)) for label in range(256)}
    ids = np.array([[7, 7, 0, 26]], np.uint8)
    path = sorted_anew(tmp_path / "a.png", ids, [26, 7, 0], colours)
    assert read_label(path, LABEL_IDS).tolist() == [[0, 0, 255, 13]]
    path = sorted_anew(tmp_path / "b.png", np.array([[7, 17]], np.uint8), [17, 7], colours)
    assert "(153, 153, 153)" in refusal(LABEL_IDS.read, path)


def test_train_ids_have_colours_of_their_own(tmp_path):
    ids = np.array([[0, 10, 18, 255]], np.uint8)
    path = sorted_anew(tmp_path / "a.png", ids, [255, 18, 10, 0], {**TRAIN_IDS.colours})
    assert np.array_equal(read_label(path, TRAIN_IDS), ids)


def test_a_table_without_colours_takes_indices(tmp_path):
    table = LabelTable(np.arange(256, dtype=np.uint8), frozenset({0, 1, 15, 255}))
    assert table.read(palette_png(tmp_path / "a.png", IDS, COLOURS)).note == ""
    assert np.array_equal(read_label(sorted_anew(tmp_path / "a.png", IDS, [0, 1]), table)[1:5], IDS[1:5] * 0)


# ---- samples


@pytest.mark.parametrize("bits", [2, 4])
def test_samples_of_few_bits_are_the_ids(tmp_path, bits):
    samples = np.arange(16, dtype=np.uint8).reshape(2, 8) % (1 << bits)
    assert np.array_equal(read_label(png_of_samples(tmp_path / "a.png", samples, bits), VOC), samples)


def test_a_single_bit_may_be_an_id_or_a_mask_and_is_refused_as_ids(tmp_path):
    path = png_of_samples(tmp_path / "a.png", IDS[1:] // 15, 1)
    assert "labels are 8-bit single-channel files" in refusal(VOC.read, path)
    assert np.array_equal(MaskFiles().read(path).values, IDS[1:] // 15 * 255)


@pytest.mark.parametrize("bits", [2, 4])
def test_samples_of_a_mask_are_grey(tmp_path, bits):
    samples = np.full((2, 8), (1 << bits) - 1, np.uint8)
    samples[0] = 0
    mask = MaskFiles().read(png_of_samples(tmp_path / "a.png", samples, bits)).values
    assert mask.tolist() == [[0] * 8, [255] * 8]


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "JPEG2000"])
def test_labels_of_kinds_that_change_values_are_refused_whatever_their_name(tmp_path, kind):
    Image.fromarray(IDS).save(tmp_path / "a.png", format=kind)
    for read in (VOC.read, MaskFiles().read):
        assert f"it is a {kind} file, whatever its name" in refusal(read, tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["BMP", "TIFF"])
def test_labels_of_other_kinds_that_keep_values_are_read(tmp_path, kind):
    Image.fromarray(IDS).save(tmp_path / "a.png", format=kind)
    assert np.array_equal(read_label(tmp_path / "a.png", VOC), IDS)


def test_of_a_gif_the_palette_is_looked_at_too(tmp_path):
    """Its writers keep the levels that occur, as the first ones of a palette."""
    Image.fromarray(IDS).save(tmp_path / "a.png", "GIF")
    assert "fits neither its indices nor the published colours" in refusal(VOC.read, tmp_path / "a.png")
    palette_png(tmp_path / "b.png", IDS, [*COLOURS[:255], (224, 224, 192)])
    Image.open(tmp_path / "b.png").save(tmp_path / "c.png", "GIF")
    assert np.array_equal(read_label(tmp_path / "c.png", VOC), IDS)


def test_a_tiff_in_jpeg_compression_is_lossy(tmp_path):
    Image.fromarray(np.kron(IDS, np.ones((4, 4), np.uint8))).save(tmp_path / "a.png", "TIFF", compression="jpeg")
    assert "it is a TIFF file, whatever" in refusal(VOC.read, tmp_path / "a.png")


def test_a_tiff_whose_black_is_white_is_refused(tmp_path):
    Image.fromarray(IDS).save(tmp_path / "a.png", "TIFF", tiffinfo={262: 0})
    assert "of few bits or inverted" in refusal(VOC.read, tmp_path / "a.png")


def test_labels_of_several_pages_are_refused(tmp_path):
    pages = [Image.fromarray(IDS), Image.fromarray(IDS[::-1])]
    for kind in ("TIFF", "PNG"):
        pages[0].save(tmp_path / "a.png", kind, save_all=True, append_images=pages[1:])
        assert "it holds 2 pictures" in refusal(VOC.read, tmp_path / "a.png")


def test_a_label_that_says_how_to_turn_it_is_read_as_asked(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 3
    Image.fromarray(IDS).save(tmp_path / "a.png", exif=exif)
    assert "EXIF orientation is 3" in refusal(lambda path: VOC.read(path, None), tmp_path / "a.png")
    assert np.array_equal(VOC.read(tmp_path / "a.png", "turn").values, IDS[::-1, ::-1])
    assert np.array_equal(VOC.read(tmp_path / "a.png", "ignore").values, IDS)


@pytest.mark.parametrize("share", [0.6, 0.9, 0.99])
def test_a_label_whose_end_never_arrived_is_damaged(tmp_path, share):
    path = palette_png(tmp_path / "a.png", np.random.default_rng(0).integers(0, 21, (60, 60), np.uint8), COLOURS)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)].ljust(len(data), b"\0"))
    assert "unpack or download it again" in refusal(VOC.read, path)


# ---- masks

LESION = np.where(IDS == 15, 255, 0).astype(np.uint8)


def test_a_mask_in_the_transparency_is_refused(tmp_path):
    white = np.full((*LESION.shape, 4), 255, np.uint8)
    white[..., 3] = LESION
    Image.fromarray(white).save(tmp_path / "a.png")
    assert "has transparency, in which the mask may be" in refusal(MaskFiles().read, tmp_path / "a.png")
    Image.fromarray(white[..., 2:]).save(tmp_path / "b.png")
    assert "has transparency" in refusal(MaskFiles().read, tmp_path / "b.png")


def test_transparency_that_says_the_same_as_the_grey_is_no_doubt(tmp_path):
    Image.fromarray(np.repeat(LESION[..., None], 4, -1)).save(tmp_path / "a.png")
    assert np.array_equal(MaskFiles().read(tmp_path / "a.png").values, LESION)


@pytest.mark.parametrize("channel", range(3))
def test_masks_in_any_one_colour_are_refused_alike(tmp_path, channel):
    pixels = np.zeros((*LESION.shape, 3), np.uint8)
    pixels[..., channel] = LESION
    Image.fromarray(pixels).save(tmp_path / "a.png")
    palette_png(tmp_path / "b.png", LESION // 255, [(0, 0, 0), tuple(np.eye(3, dtype=int)[channel] * 255)])
    for name in ("a.png", "b.png"):
        assert "is a mask in colour; masks are grey" in refusal(MaskFiles().read, tmp_path / name)


# ---- what the first rules read otherwise


def test_what_the_first_rules_read_alike_is_known_by_the_header(tmp_path):
    plain, path = MaskFiles(), tmp_path / "a.png"
    for write, ids, mask in (
        (lambda: Image.fromarray(IDS).save(path), True, True),
        (lambda: palette_png(path, IDS, COLOURS), True, False),
        (lambda: sorted_anew(path, IDS, [0, 255, 15, 1]), False, False),
        (lambda: png_of_samples(path, IDS // 17, 4), False, True),
        (lambda: Image.fromarray(IDS).save(path, "JPEG"), False, False),
        (lambda: Image.fromarray(np.zeros((2, 2, 4), np.uint8)).save(path), False, False),
    ):
        write()
        assert (VOC.reads_as_before(path), plain.reads_as_before(path)) == (ids, mask)
