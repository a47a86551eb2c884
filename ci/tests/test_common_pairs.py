"""common/data/pairs.py: a picture and its label are read together, and looked at before anything is trained."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ci.tests.folders import FOLDERS, module, parsed
from common.data.cache import CachedReader
from common.data.cityscapes import find_pairs, read_pair
from common.data.pairs import PairReader, check_pairs
from common.data.pictures import DatasetInfo, Datasets, LabelledPictures, Source
from common.errors import InputError
from common.samples.layout import draw

COLOURS = [(value, 255 - value, 7) for value in range(256)]  # none is a colour of Cityscapes


@pytest.fixture
def pairs(tiny_cityscapes):
    return find_pairs(tiny_cityscapes(train=3, size=(16, 24)), "train")


def say_turned(path: Path, number: int) -> None:
    """Have EXIF say how to turn a picture that is there."""
    exif = Image.Exif()
    exif[0x0112] = number
    with Image.open(path) as image:
        image.save(path, image.format, exif=exif)


def give_palette(label: Path) -> None:
    indices = Image.open(label).copy()
    indices.putpalette([value for colour in COLOURS for value in colour])
    indices.save(label)


# ---- before training


def test_what_is_read_by_indices_is_said_once_for_all_files(pairs, capsys):
    check_pairs(pairs, read_pair)
    assert capsys.readouterr().out == ""
    for pair in pairs[1:]:
        give_palette(pair.label)
    check_pairs(pairs, read_pair)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and str(pairs[1].label) in said
    assert "its indices are taken for the ids (and so for 1 other label files)" in said


@pytest.mark.parametrize("decode_images", [False, True])
@pytest.mark.parametrize("which", ["image", "label"])
def test_a_file_whose_end_never_arrived_is_found_before_training(pairs, which, decode_images):
    path = getattr(pairs[1], which)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10].ljust(len(data), b"\0"))
    with pytest.raises(InputError, match=f"{path} .*; unpack or download it again"):
        check_pairs(pairs, read_pair, decode_images)


def test_pages_are_found_before_training(pairs):
    pages = [Image.new("RGB", (24, 16), (value, 0, 0)) for value in (0, 200)]
    pages[0].save(pairs[1].image, save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="it holds 2 pictures"):
        check_pairs(pairs, read_pair)


@pytest.mark.parametrize("decode_images", [False, True])
def test_turned_pictures_are_refused_until_somebody_says_what_labels_fit(pairs, decode_images):
    say_turned(pairs[1].image, 3)
    with pytest.raises(InputError, match=r"EXIF orientation is 3.*--exif turn .* --exif ignore"):
        check_pairs(pairs, read_pair, decode_images)
    for exif in ("turn", "ignore"):
        check_pairs(pairs, read_pair._replace(exif=exif), decode_images)
    as_it_lies, label = read_pair._replace(exif="ignore")(pairs[1])
    turned, same_label = read_pair._replace(exif="turn")(pairs[1])
    assert np.array_equal(turned, as_it_lies[::-1, ::-1]) and np.array_equal(label, same_label)


def test_a_quarter_turn_must_fit_the_label_too(pairs):
    say_turned(pairs[1].image, 6)
    check_pairs(pairs, read_pair._replace(exif="ignore"))
    for decode_images in (False, True):
        with pytest.raises(InputError, match="is 16x24 and its label .* is 24x16 pixels"):
            check_pairs(pairs, read_pair._replace(exif="turn"), decode_images)


def test_pictures_that_are_shrunk_as_they_are_decoded_are_turned_with_their_labels(tmp_path):
    from AttentionUNet.isic import read_pair as read_lesion

    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((320, 640, 3), np.uint8)
    pixels[:, :320] = 255
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    mask = np.rot90(pixels[..., 0], -1)  # as people see it
    Image.fromarray(np.ascontiguousarray(mask)).save(tmp_path / "a.png")
    image, label = read_lesion._replace(exif="turn", width=40)((tmp_path / "a.jpg", tmp_path / "a.png"))
    assert image.shape[:2] == label.shape == (80, 40)
    assert ((image[..., 0] > 127) == (label > 127)).mean() > 0.95


def test_a_label_must_fit_a_picture_that_is_shrunk_too(tmp_path):
    from AttentionUNet.isic import read_pair as read_lesion

    Image.new("RGB", (640, 320)).save(tmp_path / "a.jpg")
    Image.new("L", (160, 80)).save(tmp_path / "a.png")  # as the picture is after it was shrunk
    with pytest.raises(InputError, match="is 640x320 and its label .* is 160x80 pixels"):
        read_lesion._replace(width=80)((tmp_path / "a.jpg", tmp_path / "a.png"))


def test_a_data_set_says_what_it_leaves_out_and_checks_what_a_cache_would_give(pairs, tmp_path, capsys):
    info = DatasetInfo(("a",), ((0, 0, 0),))
    for read in (read_pair, CachedReader(tmp_path, read_pair, "c")):
        LabelledPictures(Source(pairs, read, info, "2 pictures are left out")).check(decode_images=True)
        assert capsys.readouterr().out == "note: 2 pictures are left out\n"
    pairs[0].image.write_bytes(b"")
    with pytest.raises(InputError, match="it is empty"):
        LabelledPictures(Source(pairs, read, info)).check(decode_images=True)


# ---- --exif


@pytest.mark.parametrize("name", FOLDERS)
def test_every_folder_hands_the_flag_to_all_its_readers(name, tmp_path):
    presets = module(name, "presets")
    given = {"preset": "tiny", "data_path": draw(presets.LAYOUT, tmp_path / "data", 2, 1, size=(48, 64))}
    for exif in (None, "turn", "ignore"):
        flags = {**given, "exif": exif} if exif else given
        used = module(name, "data").build_datasets(parsed(name, **flags)).used
        assert len(used) >= 2 and all(isinstance(dataset.read, PairReader) for dataset in used)
        assert {dataset.read.exif for dataset in used} == {exif}
        cached = module(name, "data").build_datasets(parsed(name, **flags, cache=tmp_path / "cache")).used
        ways = {dataset.read.contents.partition("exif ")[2] for dataset in cached}
        assert ways == {exif or ""}, "what was turned is not taken for what was not"


# ---- pictures that a network does not take


class Picky(torch.nn.Module):
    """A network that needs 40 columns, and two images to train on."""

    def check_shape(self, shape):
        if shape[3] < 40:
            raise InputError(f"images have the shape {list(shape)}; 40 columns are needed")
        if shape[0] < 2:
            raise InputError("one image is not enough")


@pytest.mark.parametrize("name", ["BiSeNetv1", "DeeplabV3", "DynamicUNet", "ICNet"])
def test_a_validation_picture_that_the_network_does_not_take_is_named_before_training(name, tmp_path):
    layout = module(name, "presets").LAYOUT
    root = draw(layout, tmp_path / "data", 2, 2, size=(64, 64))
    args = parsed(name, preset="tiny", data_path=root)
    data, model = module(name, "data").build_datasets(args), Picky()
    assert data.with_network(model) == (data, model)
    narrow = data.val.pairs[1][0]
    Image.new("RGB", (39, 50)).save(narrow)
    with pytest.raises(InputError, match=rf"{narrow} cannot be evaluated: .*\[2, 3, 50, 39\]; 40 columns"):
        data.with_network(model)
    Datasets(data.train, None).with_network(model)  # nothing is scored


def test_a_run_ends_before_training_when_a_picture_is_too_small(tmp_path):
    from ci.tests.folders import built

    root = draw("cityscapes", tmp_path / "data", 2, 1, size=(64, 128))
    (pair,) = find_pairs(root, "val")
    Image.new("RGB", (20, 1)).save(pair.image)
    Image.new("L", (20, 1)).save(pair.label)
    flags = ["--preset=tiny", f"--data_path={root}", f"--output_dir={tmp_path / 'run'}", "--device=cpu"]
    with pytest.raises(InputError, match=rf"{pair.image} cannot be evaluated: .*ICNet needs sides"):
        built("ICNet", *flags)
