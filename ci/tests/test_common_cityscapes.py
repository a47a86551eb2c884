"""data/cityscapes.py: the label table, the pairs of a split, and what is said of a folder that does not fit."""

import re

import numpy as np
import pytest
from PIL import Image

from ci.tests.folders import parsed
from common.data import cityscapes_sets
from common.data.cityscapes import (
    CLASS_NAMES,
    KNOWN_LABEL_IDS,
    LABELS,
    NUM_CLASSES,
    PALETTE,
    TRAIN_ID_OF_LABEL_ID,
    Pair,
    find_pairs,
    left_out,
    read_pair,
)
from common.data.pairs import check_pairs as check_all
from common.errors import InputError


def check_pairs(pairs, decode_images=False):
    check_all(pairs, read_pair, decode_images)


# The published label table: name, label id, train id, colour
TABLE = """
unlabeled            |  0 | 255 |   0,  0,  0
ego vehicle          |  1 | 255 |   0,  0,  0
rectification border |  2 | 255 |   0,  0,  0
out of roi           |  3 | 255 |   0,  0,  0
static               |  4 | 255 |   0,  0,  0
dynamic              |  5 | 255 | 111, 74,  0
ground               |  6 | 255 |  81,  0, 81
road                 |  7 |   0 | 128, 64,128
sidewalk             |  8 |   1 | 244, 35,232
parking              |  9 | 255 | 250,170,160
rail track           | 10 | 255 | 230,150,140
building             | 11 |   2 |  70, 70, 70
wall                 | 12 |   3 | 102,102,156
fence                | 13 |   4 | 190,153,153
guard rail           | 14 | 255 | 180,165,180
bridge               | 15 | 255 | 150,100,100
tunnel               | 16 | 255 | 150,120, 90
pole                 | 17 |   5 | 153,153,153
polegroup            | 18 | 255 | 153,153,153
traffic light        | 19 |   6 | 250,170, 30
traffic sign         | 20 |   7 | 220,220,  0
vegetation           | 21 |   8 | 107,142, 35
terrain              | 22 |   9 | 152,251,152
sky                  | 23 |  10 |  70,130,180
person               | 24 |  11 | 220, 20, 60
rider                | 25 |  12 | 255,  0,  0
car                  | 26 |  13 |   0,  0,142
truck                | 27 |  14 |   0,  0, 70
bus                  | 28 |  15 |   0, 60,100
caravan              | 29 | 255 |   0,  0, 90
trailer              | 30 | 255 |   0,  0,110
train                | 31 |  16 |   0, 80,100
motorcycle           | 32 |  17 |   0,  0,230
bicycle              | 33 |  18 | 119, 11, 32
"""


def rows_of(table):
    for line in table.strip().splitlines():
        name, label_id, train_id, colour = line.split("|")
        yield name.strip(), int(label_id), int(train_id), tuple(int(value) for value in colour.split(","))


# ---- the table -------------------------------------------------------------------------------------------------------


def test_labels_are_those_of_the_published_table():
    assert [tuple(label) for label in LABELS] == list(rows_of(TABLE))
    assert sorted(KNOWN_LABEL_IDS) == list(range(34))


def test_names_and_colours_are_in_the_order_of_train_ids():
    by_train_id = {train_id: (name, colour) for name, _, train_id, colour in rows_of(TABLE) if train_id != 255}
    assert sorted(by_train_id) == list(range(NUM_CLASSES)) == list(range(19))
    assert [by_train_id[i] for i in range(19)] == list(zip(CLASS_NAMES, PALETTE, strict=True))
    assert (CLASS_NAMES[0], CLASS_NAMES[10], CLASS_NAMES[18]) == ("road", "sky", "bicycle")
    assert PALETTE[10] == (70, 130, 180)


def test_every_value_of_a_byte_has_a_train_id():
    expected = dict.fromkeys(range(256), 255) | {label_id: train_id for _, label_id, train_id, _ in rows_of(TABLE)}
    assert dict(enumerate(TRAIN_ID_OF_LABEL_ID.tolist())) == expected
    assert TRAIN_ID_OF_LABEL_ID.dtype == np.uint8


# ---- find_pairs ------------------------------------------------------------------------------------------------------


def touch(root, *names):
    """Empty files of `train`: 'aachen/a' makes the picture and the label of a in the city aachen."""
    for name in names:
        for part, ending in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
            path = root / part / "train" / f"{name}_{ending}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def test_pairs_belong_together_and_come_sorted_by_city_and_name(tmp_path):
    names = ["zurich/zurich_000000_000019", "aachen/aachen_000002_000019", "aachen/aachen_000000_000019", "ulm/ulm_1"]
    touch(tmp_path, *names)
    pairs = find_pairs(tmp_path, "train")
    assert pairs == [
        Pair(
            tmp_path / "leftImg8bit" / "train" / f"{name}_leftImg8bit.png",
            tmp_path / "gtFine" / "train" / f"{name}_gtFine_labelIds.png",
        )
        for name in sorted(names)
    ]
    assert find_pairs(str(tmp_path), "train") == pairs


def test_other_files_of_the_data_set_are_no_pairs(tmp_path):
    touch(tmp_path, "aachen/a")
    for other in ("a_gtFine_color.png", "a_gtFine_instanceIds.png", "a_gtFine_polygons.json", "a_gtFine_labelIds.txt"):
        (tmp_path / "gtFine" / "train" / "aachen" / other).touch()
    (tmp_path / "leftImg8bit" / "train" / "aachen" / "Thumbs.db").touch()
    assert len(find_pairs(tmp_path, "train")) == 1


def test_hidden_files_are_no_pairs(tmp_path):
    touch(tmp_path, "aachen/a", "aachen/._a", ".trash/b")
    (tmp_path / "leftImg8bit" / "train" / "aachen" / "._c_leftImg8bit.png").touch()  # notes about a file of macOS
    assert [pair.image.name for pair in find_pairs(tmp_path, "train")] == ["a_leftImg8bit.png"]


def test_equal_names_in_two_cities_are_two_pairs(tmp_path):
    touch(tmp_path, "aachen/0001", "zurich/0001")
    pairs = find_pairs(tmp_path, "train")
    assert [pair.image.parent.name for pair in pairs] == ["aachen", "zurich"]
    assert all(pair.image.parent.name == pair.label.parent.name for pair in pairs)


def test_train_ids_are_taken_where_there_are_no_label_ids(tmp_path):
    touch(tmp_path, "aachen/a")
    folder = tmp_path / "gtFine" / "train" / "aachen"
    (folder / "a_gtFine_labelTrainIds.png").touch()
    assert [pair.label.name for pair in find_pairs(tmp_path, "train")] == ["a_gtFine_labelIds.png"]
    (folder / "a_gtFine_labelIds.png").unlink()
    assert [pair.label.name for pair in find_pairs(tmp_path, "train")] == ["a_gtFine_labelTrainIds.png"]


def test_label_ids_and_train_ids_are_read_alike(tiny_cityscapes):
    pair = find_pairs(tiny_cityscapes(), "val")[0]
    image, train_ids = read_pair(pair)
    converted = Pair(pair.image, pair.label.with_name("x_gtFine_labelTrainIds.png"))
    Image.fromarray(train_ids).save(converted.label)
    assert np.array_equal(read_pair(converted)[1], train_ids)
    assert set(np.unique(train_ids)) <= {*range(19), 255}
    check_pairs([converted])
    Image.fromarray(np.full((32, 48), 19, np.uint8)).save(converted.label)
    for use in (read_pair, lambda pair: check_pairs([pair])):
        with pytest.raises(InputError, match=r"19.*not in the label table \(0\.\.18, and 255 for what is ignored\)"):
            use(converted)


def no_folder(root):
    pass


def empty_folder(root):
    root.mkdir()


def unpacked_nowhere(root):
    root.mkdir()
    (root / "leftImg8bit_trainvaltest.zip").touch()


def without_labels_folder(root):
    touch(root, "aachen/a")
    (root / "gtFine").rename(root / "gtCoarse")


def images_folder_is_a_file(root):
    touch(root, "aachen/a")
    (root / "leftImg8bit").rename(root / "other")
    (root / "leftImg8bit").touch()


def one_level_too_deep(root):
    touch(root.parent, "aachen/a")
    (root.parent / "leftImg8bit").rename(root)


def only_another_split(root):
    (root / "leftImg8bit" / "val").mkdir(parents=True)
    (root / "gtFine" / "val").mkdir(parents=True)


def labels_of_another_split(root):
    (root / "leftImg8bit" / "train").mkdir(parents=True)
    (root / "gtFine").mkdir()


def no_images(root):
    touch(root, "aachen/a")
    (root / "leftImg8bit" / "train" / "aachen" / "a_leftImg8bit.png").unlink()


def images_outside_city_folders(root):
    touch(root, "a")


def no_labels(root):
    touch(root, "aachen/a")
    (root / "gtFine" / "train" / "aachen" / "a_gtFine_labelIds.png").unlink()


def some_labels_missing(root):
    touch(root, *(f"aachen/{i}" for i in range(5)))
    for i in range(4):
        (root / "gtFine" / "train" / "aachen" / f"{i}_gtFine_labelIds.png").unlink()


def three_labels_missing(root):
    touch(root, *(f"aachen/{i}" for i in range(4)))
    for i in range(3):
        (root / "gtFine" / "train" / "aachen" / f"{i}_gtFine_labelIds.png").unlink()


def an_image_missing(root):
    touch(root, "aachen/a", "aachen/b")
    (root / "leftImg8bit" / "train" / "aachen" / "b_leftImg8bit.png").unlink()


def label_in_another_city(root):
    touch(root, "aachen/a", "ulm/b")
    (root / "gtFine" / "train" / "ulm" / "b_gtFine_labelIds.png").rename(
        root / "gtFine" / "train" / "aachen" / "b_gtFine_labelIds.png"
    )


@pytest.mark.parametrize(
    ("make", "given", "needed"),
    [
        (no_folder, "no folder ROOT", "--data_path must name the folder that holds leftImg8bit/ and gtFine/"),
        (empty_folder, "ROOT is empty", "--data_path must name the folder"),
        (unpacked_nowhere, "no leftImg8bit/ in ROOT (it holds leftImg8bit_trainvaltest.zip)", "--data_path must name"),
        (without_labels_folder, "no gtFine/ in ROOT (it holds gtCoarse, leftImg8bit)", "--data_path must name"),
        (images_folder_is_a_file, "no leftImg8bit/ in ROOT", "--data_path must name the folder"),
        (one_level_too_deep, "no leftImg8bit/ in ROOT (it holds train)", "--data_path must name the folder"),
        (only_another_split, "no split 'train' in ROOT/leftImg8bit (it holds val)", "training needs train, val"),
        (labels_of_another_split, "no split 'train' in ROOT/gtFine (it holds no folder)", "training needs train, val"),
        (no_images, "no *_leftImg8bit.png in the city folders of ROOT/leftImg8bit/train", "--data_path must hold"),
        (images_outside_city_folders, "no *_leftImg8bit.png in the city folders", "leftImg8bit/train/<city>/"),
        (no_labels, "no *_gtFine_labelIds.png in the city folders of ROOT/gtFine/train", "unpack gtFine_trainvaltest"),
        (some_labels_missing, "4 of 5 images of ROOT", "aachen/2_leftImg8bit.png, ...; add the missing files"),
        (three_labels_missing, "3 of 4 images of ROOT", "aachen/2_leftImg8bit.png; add the missing files"),
        (an_image_missing, "1 of 2 label files of ROOT", "aachen/b_gtFine_labelIds.png; add the missing files"),
        (label_in_another_city, "1 of 2 images of ROOT", "ulm/b_leftImg8bit.png; add the missing files"),
    ],
)
def test_a_folder_that_does_not_fit_is_explained_in_one_line(tmp_path, make, given, needed):
    root = tmp_path / "data"
    make(root)
    with pytest.raises(InputError) as error:
        find_pairs(root, "train")
    message = str(error.value)
    assert given.replace("ROOT", str(root)) in message
    assert needed in message
    assert "\n" not in message


# ---- check_pairs -----------------------------------------------------------------------------------------------------


def refusal(pairs):
    with pytest.raises(InputError) as error:
        check_pairs(pairs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def pairs(tiny_cityscapes):
    return find_pairs(tiny_cityscapes(train=4, size=(16, 24)), "train")


def test_good_pairs_pass(pairs):
    check_pairs(pairs)
    check_pairs([])


def test_label_ids_in_a_palette_pass(pairs):
    palette = Image.new("P", (24, 16), 33)
    palette.putpalette([1, 2, 3] * 34)
    palette.save(pairs[1].label)
    check_pairs(pairs)


def test_values_outside_the_table_are_named_with_their_file(pairs):
    values = np.full((16, 24), 7, np.uint8)
    values[3, 4], values[5, 6] = 34, 255
    Image.fromarray(values).save(pairs[2].label)
    message = refusal(pairs)
    assert str(pairs[2].label) in message
    assert "the values [34, 255], which" in message and "(0..33)" in message and "give the original" in message


def test_many_unknown_values_are_cut_short(pairs):
    Image.fromarray(np.arange(384).reshape(16, 24).clip(0, 255).astype(np.uint8)).save(pairs[0].label)
    assert "the values [34, 35, 36, 37, 38]," in refusal(pairs)


@pytest.mark.parametrize(
    ("mode", "dtype", "held"),
    [
        ("RGB", None, r"colours \(RGB\)"),
        ("RGBA", None, r"colours \(RGBA\)"),
        ("1", None, "values of one bit"),
        ("I;16", np.uint16, "whole numbers of more than 8 bits"),
    ],
)
def test_labels_of_another_mode_are_refused(pairs, mode, dtype, held):
    label = Image.fromarray(np.zeros((16, 24), dtype)) if dtype else Image.new(mode, (24, 16))
    label.save(pairs[3].label)
    assert re.search(rf"{re.escape(str(pairs[3].label))} holds {held}; labels are 8-bit", refusal(pairs))


def test_sizes_that_differ_are_given_as_width_and_height(pairs):
    Image.new("L", (20, 10), 7).save(pairs[0].label)
    message = refusal(pairs)
    assert f"{pairs[0].image} is 24x16" in message and f"{pairs[0].label.name} is 20x10" in message
    assert "must have the same size" in message


@pytest.mark.parametrize("which", ["label", "image"])
@pytest.mark.parametrize("keep_bytes", [0, 20])
def test_a_file_without_a_whole_header_is_named(pairs, which, keep_bytes):
    path = getattr(pairs[1], which)
    path.write_bytes(path.read_bytes()[:keep_bytes])
    message = refusal(pairs)
    assert f"cannot decode the {'label file' if which == 'label' else 'image'} {path}" in message
    assert "unpack or download it again" in message


@pytest.mark.parametrize("spoil", [lambda data: data[:-30], lambda data: data[:60] + bytes(8) + data[68:]])
def test_a_damaged_label_is_named(pairs, spoil):
    path = pairs[1].label
    path.write_bytes(spoil(path.read_bytes()))
    assert f"cannot decode the label file {path}" in refusal(pairs)


def test_a_picture_of_another_kind_is_named(pairs):
    pairs[0].image.write_text("<html>sign in to download</html>")
    assert f"cannot decode the image {pairs[0].image}" in refusal(pairs)


def test_the_first_of_several_problems_is_reported(pairs):
    for pair in pairs[1:]:
        pair.label.write_bytes(b"")
    assert str(pairs[1].label) in refusal(pairs)


def test_pictures_are_decoded_where_that_is_asked_for(tiny_cityscapes):
    pairs = find_pairs(tiny_cityscapes(val=2), "val")
    whole = pairs[1].image.read_bytes()
    pairs[1].image.write_bytes(whole.replace(b"IDAT", b"IDAX"))  # its header and its end are there
    message = f"cannot decode the image {re.escape(str(pairs[1].image))} .*wrong checksum"
    with pytest.raises(InputError, match=message):
        check_pairs(pairs, decode_images=True)


def test_pictures_that_lack_the_ending_or_the_city_are_counted(tmp_path):
    touch(tmp_path, "aachen/a", "aachen/._b")
    folder = tmp_path / "leftImg8bit" / "train"
    assert left_out(tmp_path, "train") == ""
    for name in ("aachen/c.png", "aachen/d_leftImg8bit.jpg", "aachen/notes.txt", "aachen/._e.png", "f_leftImg8bit.png"):
        (folder / name).touch()
    names = "aachen/c.png, aachen/d_leftImg8bit.jpg, f_leftImg8bit.png"
    expected = f"3 pictures in {folder} are left out, being no <city>/*_leftImg8bit.png: {names}"
    assert left_out(tmp_path, "train") == expected


def test_a_city_may_be_a_link(tmp_path):
    touch(tmp_path / "elsewhere", "aachen/a")
    touch(tmp_path / "data", "ulm/b")
    for part in ("leftImg8bit", "gtFine"):
        target = tmp_path / "elsewhere" / part / "train" / "aachen"
        (tmp_path / "data" / part / "train" / "aachen").symlink_to(target)
    assert [pair.image.parent.name for pair in find_pairs(tmp_path / "data", "train")] == ["aachen", "ulm"]


@pytest.mark.parametrize("split", ["train", "val"])
def test_what_is_left_out_reaches_the_data_sets(tiny_cityscapes, split):
    root = tiny_cityscapes()
    (root / "leftImg8bit" / split / "aachen" / "more.png").touch()
    args = parsed("ICNet", preset="tiny", data_path=root)
    notes = {"train": cityscapes_sets.blurred_datasets(args).train.note}
    notes["val"] = cityscapes_sets.blurred_datasets(args).val.note
    assert "aachen/more.png" in notes.pop(split) and set(notes.values()) == {""}
