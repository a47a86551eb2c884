"""The embedded sample: layout, contents, determinism, and what happens when it is asked for again or by several."""

import hashlib
import json
import multiprocessing
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.cityscapes import KNOWN_LABEL_IDS, NUM_CLASSES, TRAIN_ID_OF_LABEL_ID, check_pairs, find_pairs
from common.errors import InputError
from common.sample import CITIES, STAMP, draw_cityscapes
from common.street import draw_scene

SMALL = {"train_images": 6, "val_images": 6, "size": (64, 128)}


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    return draw_cityscapes(tmp_path_factory.mktemp("drawn") / "sample", **SMALL)


def digest(root: Path) -> str:
    """One hash over the names and pixels of all pictures under `root`."""
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.png")):
        total.update(str(path.relative_to(root)).encode())
        total.update(np.asarray(Image.open(path)).tobytes())
    return total.hexdigest()


def values(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.array(image)


def test_the_layout_is_the_one_of_cityscapes(sample):
    name = r"([a-z]+)/[a-z]+_\d{6}_\d{6}"
    patterns = (
        rf"leftImg8bit/(train|val)/{name}_leftImg8bit\.png",
        rf"gtFine/(train|val)/{name}_gtFine_label(Train)?Ids\.png",
    )
    files = [path.relative_to(sample).as_posix() for path in sample.rglob("*") if path.is_file()]
    assert sorted(files, key=len)[0] == STAMP
    assert len(files) == 1 + 3 * (6 + 6)
    assert all(re.fullmatch("|".join(patterns), file) for file in files if file != STAMP)
    assert not set(CITIES["train"]) & set(CITIES["val"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_our_own_reader_accepts_it(sample, split):
    pairs = find_pairs(sample, split)
    check_pairs(pairs)
    assert len(pairs) == 6
    for pair in pairs:
        with Image.open(pair.image) as image:
            assert (image.mode, image.size) == ("RGB", (128, 64))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_few_pictures_hold_all_classes_and_ignored_pixels(sample, split):
    counts = sum(np.bincount(values(pair.label).ravel(), minlength=256) for pair in find_pairs(sample, split))
    per_class = np.zeros(256, int)
    np.add.at(per_class, TRAIN_ID_OF_LABEL_ID, counts)
    assert (per_class[:NUM_CLASSES] > 20).all(), per_class[:NUM_CLASSES]
    assert counts[1] and counts[3]  # ego vehicle, out of roi
    assert 0.02 < per_class[255] / counts.sum() < 0.25


def test_labels_hold_ids_of_the_table_and_their_train_ids(sample):
    for path in sample.rglob("*_labelIds.png"):
        ids = values(path)
        assert set(np.unique(ids).tolist()) <= KNOWN_LABEL_IDS
        train_ids = values(path.with_name(path.name.replace("_labelIds", "_labelTrainIds")))
        assert (train_ids == TRAIN_ID_OF_LABEL_ID[ids]).all()


def test_every_picture_is_another_one(sample):
    pictures = {np.asarray(Image.open(path)).tobytes() for path in sample.rglob("*_leftImg8bit.png")}
    assert len(pictures) == 12


def test_the_same_arguments_draw_the_same_pixels(sample, tmp_path):
    assert digest(draw_cityscapes(tmp_path / "again", **SMALL)) == digest(sample)
    assert digest(draw_cityscapes(tmp_path / "other", **SMALL, seed=1)) != digest(sample)


def test_a_picture_does_not_depend_on_how_many_are_drawn(sample, tmp_path):
    fewer = draw_cityscapes(tmp_path / "fewer", 1, 1, SMALL["size"])
    for path in fewer.rglob("*.png"):
        assert (np.asarray(Image.open(path)) == np.asarray(Image.open(sample / path.relative_to(fewer)))).all()


@pytest.mark.parametrize("size", [(32, 64), (96, 96), (128, 320)])
def test_any_size_shows_the_same_street(size):
    picture, label_ids = draw_scene(size, np.random.default_rng(3), 0)
    assert (picture.shape, picture.dtype) == ((*size, 3), np.uint8)
    assert (label_ids.shape, label_ids.dtype) == (size, np.uint8)
    middle = label_ids[:, size[1] // 4 : -size[1] // 4]
    assert (middle[: size[0] // 8] != 7).all()  # no road at the top
    assert (middle[-size[0] // 3 :] == 7).mean() > 0.1  # but at the bottom


def test_one_colour_is_many_classes(tmp_path):
    """What is seen must be told by shape, texture and place: the nearest mean colour of a class finds few pixels."""
    colours, labels = [], []
    for index in range(12):
        picture, label_ids = draw_scene((64, 128), np.random.default_rng(index), index)
        colours.append(picture.reshape(-1, 3).astype(np.float32))
        labels.append(TRAIN_ID_OF_LABEL_ID[label_ids].ravel())
    colours, labels = np.concatenate(colours), np.concatenate(labels)
    means = np.stack([colours[labels == c].mean(0) for c in range(NUM_CLASSES)])  # [19, 3]
    nearest = ((colours[:, None] - means) ** 2).sum(-1).argmin(1)
    valid = labels != 255
    hits = np.array([((nearest == c) & (labels == c)).sum() for c in range(NUM_CLASSES)])
    unions = np.array([(((nearest == c) & valid) | (labels == c)).sum() for c in range(NUM_CLASSES)])
    assert (hits / unions).mean() < 0.25


def test_a_drawn_sample_is_left_as_it_is(sample):
    before = {path: path.stat().st_mtime_ns for path in sample.rglob("*")}
    assert draw_cityscapes(sample, **SMALL) == sample
    assert {path: path.stat().st_mtime_ns for path in sample.rglob("*")} == before


def test_other_arguments_and_missing_files_are_drawn_anew(tmp_path):
    root = draw_cityscapes(tmp_path / "sample", 2, 1, (32, 64))
    draw_cityscapes(root, 1, 1, (32, 64))
    assert [len(find_pairs(root, split)) for split in ("train", "val")] == [1, 1]
    assert json.loads((root / STAMP).read_text())["train"] == 1
    find_pairs(root, "val")[0].label.unlink()
    draw_cityscapes(root, 1, 1, (32, 64))
    assert len(find_pairs(root, "val")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]  # nothing is left beside it


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    assert len(find_pairs(draw_cityscapes(tmp_path / "empty", 1, 1, (32, 64)), "train")) == 1


@pytest.mark.parametrize("content", [{"photo.jpg": "mine"}, {STAMP: "not json"}, {"leftImg8bit": "a file"}])
def test_somebody_elses_folder_is_refused_and_kept(tmp_path, content):
    root = tmp_path / "theirs"
    root.mkdir()
    for name, text in content.items():
        (root / name).write_text(text)
    with pytest.raises(InputError, match=f"{re.escape(str(root))}.*[^\n]*") as error:
        draw_cityscapes(root, 1, 1, (32, 64))
    assert "\n" not in str(error.value)
    assert {path.name: path.read_text() for path in root.iterdir()} == content


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file"):
        draw_cityscapes(tmp_path / "file", 1, 1, (32, 64))


def test_a_killed_process_leaves_no_half_sample(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("common.sample._write_cityscapes", killed)
        with pytest.raises(KeyboardInterrupt):
            draw_cityscapes(tmp_path / "sample", 1, 1, (32, 64))
    assert not (tmp_path / "sample").exists()
    assert find_pairs(draw_cityscapes(tmp_path / "sample", 1, 1, (32, 64)), "train")


def test_processes_that_start_together_share_one_sample(tmp_path):
    context = multiprocessing.get_context("spawn")
    root, arguments = tmp_path / "sample", (4, 2, (32, 64))
    draw_cityscapes(root, 1, 1, (32, 64))  # an older one that both want to replace
    processes = [context.Process(target=draw_cityscapes, args=(root, *arguments)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert digest(root) == digest(draw_cityscapes(tmp_path / "alone", *arguments))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "sample"]
