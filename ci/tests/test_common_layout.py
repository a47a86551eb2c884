"""The embedded sample: layout, contents, determinism, and what happens when it is asked for again or by several."""

import hashlib
import json
import multiprocessing
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ci.tests.common_workers import world
from ci.tests.folders import module, parsed
from common.data.cityscapes import KNOWN_LABEL_IDS, NUM_CLASSES, TRAIN_ID_OF_LABEL_ID, find_pairs, read_pair
from common.data.pairs import check_pairs
from common.errors import InputError
from common.samples.layout import CITIES, LAYOUTS, STAMP, draw, draw_cityscapes, draw_isic, draw_voc, embedded
from common.samples.lesion import draw_lesion
from common.samples.objects import CLASS_NAMES, draw_objects
from common.samples.street import draw_scene
from common.scores.evaluate import Evaluation, evaluate

SMALL = {"train_images": 6, "val_images": 6, "size": (64, 128)}


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    return draw_cityscapes(tmp_path_factory.mktemp("drawn") / "sample", **SMALL)


@pytest.fixture(scope="module")
def voc(tmp_path_factory) -> Path:
    return draw_voc(tmp_path_factory.mktemp("drawn") / "VOCdevkit", 22, 21, (80, 104))


@pytest.fixture(scope="module")
def isic(tmp_path_factory) -> Path:
    return draw_isic(tmp_path_factory.mktemp("drawn") / "isic", 12, 4, (72, 96), test_images=5)


def digest(root: Path) -> str:
    """One hash over the names and pixels of all pictures under `root`."""
    total = hashlib.sha256()
    for path in images(root):
        total.update(str(path.relative_to(root)).encode())
        total.update(np.asarray(Image.open(path)).tobytes())
    return total.hexdigest()


def images(root: Path) -> list[Path]:
    return sorted([*root.rglob("*.png"), *root.rglob("*.jpg")])


def values(path: Path, mode: str = "L") -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == mode
        return np.array(image)


def voc_labels(root: Path, split: str) -> list[np.ndarray]:
    stems = (root / f"VOC2012/ImageSets/Segmentation/{split}.txt").read_text().split()
    return [values(root / f"VOC2012/SegmentationClass/{stem}.png", "P") for stem in stems]


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
    check_pairs(pairs, read_pair)
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
        patch.setattr("common.samples.layout._save", killed)
        with pytest.raises(KeyboardInterrupt):
            draw_cityscapes(tmp_path / "sample", 1, 1, (32, 64))
    assert not (tmp_path / "sample").exists()
    assert find_pairs(draw_cityscapes(tmp_path / "sample", 1, 1, (32, 64)), "train")


def test_processes_that_start_together_share_one_sample(tmp_path):
    layout = "isic"  # the others go the same way
    context = multiprocessing.get_context("spawn")
    root, arguments = tmp_path / "sample", (4, 2, (32, 64))
    draw(layout, root, 1, 1, (32, 64))  # an older one that both want to replace
    processes = [context.Process(target=draw, args=(layout, root, *arguments)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert digest(root) == digest(draw(layout, tmp_path / "alone", *arguments))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "sample"]


# ---- PASCAL VOC 2012 and ISIC 2018 -----------------------------------------------------------------------------------


def test_the_layout_is_the_one_of_voc(voc):
    files = {path.relative_to(voc).as_posix() for path in voc.rglob("*") if path.is_file()}
    lists = {name: (voc / f"VOC2012/ImageSets/Segmentation/{name}.txt").read_text() for name in ("train", "val")}
    train, val = lists["train"].split(), lists["val"].split()
    assert (len(train), len(val)) == (22, 21)
    assert (voc / "VOC2012/ImageSets/Segmentation/trainval.txt").read_text().split() == train + val
    assert not set(train) & set(val)
    assert all(re.fullmatch(r"20\d\d_\d{6}", stem) for stem in train + val)
    expected = {f"VOC2012/ImageSets/Segmentation/{name}.txt" for name in ("train", "val", "trainval")}
    for stem in train + val:
        expected |= {f"VOC2012/JPEGImages/{stem}.jpg", f"VOC2012/SegmentationClass/{stem}.png"}
    assert files == expected | {STAMP}


def test_voc_pictures_are_colour_jpegs_of_both_formats_and_labels_fit(voc):
    sizes = set()
    for path in (voc / "VOC2012/JPEGImages").iterdir():
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            sizes.add(image.size)
            assert values(voc / f"VOC2012/SegmentationClass/{path.stem}.png", "P").shape == image.size[::-1]
    assert sizes == {(104, 80), (80, 104)}


def test_voc_labels_have_the_palette_of_voc(voc):
    with Image.open(next((voc / "VOC2012/SegmentationClass").iterdir())) as image:
        palette = np.array(image.getpalette()).reshape(256, 3)
    known = {"background": (0, 0, 0), "aeroplane": (128, 0, 0), "cow": (64, 128, 0), "person": (192, 128, 128)}
    known |= {"pottedplant": (0, 64, 0), "train": (128, 192, 0), "tvmonitor": (0, 64, 128)}
    for name, colour in known.items():
        assert tuple(palette[CLASS_NAMES.index(name)]) == colour
    assert tuple(palette[255]) == (224, 224, 192)


@pytest.mark.parametrize("split", ["train", "val"])
def test_twenty_voc_pictures_hold_all_classes_and_nothing_else(voc, split):
    counts = sum(np.bincount(labels.ravel(), minlength=256) for labels in voc_labels(voc, split))
    assert (counts[:21] > 50).all(), counts[:21]
    assert not counts[21:255].any()
    assert 0.02 < counts[255] / counts.sum() < 0.2
    assert counts[0] / counts.sum() > 0.4


def test_every_object_has_a_void_border(voc):
    for labels in voc_labels(voc, "trainval"):
        for one, other in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
            assert ((one == other) | (one == 255) | (other == 255)).all()


def test_every_class_is_seen_in_both_splits_of_the_default_size():
    """The split is the second part of the key of a picture's generator."""
    for split in range(2):
        seen = np.zeros(256, int)
        for index in range(20):
            rng = np.random.Generator(np.random.PCG64([0, split, index]))
            size = (96, 128) if rng.random() < 0.75 else (128, 96)
            seen += np.bincount(draw_objects(size, rng, index)[1].ravel(), minlength=256) > 100
        assert seen[:21].all()


def test_colour_alone_does_not_tell_the_things_apart():
    """The mean colours of the 20 classes are nearest to few of their own pixels."""
    colours, labels = [], []
    for index in range(60):
        picture, class_ids = draw_objects((80, 104), np.random.default_rng(index), index)
        thing = (class_ids > 0) & (class_ids < 255)
        colours.append(picture[thing].astype(np.float32))
        labels.append(class_ids[thing] - 1)
    colours, labels = np.concatenate(colours), np.concatenate(labels)
    means = np.stack([colours[labels == c].mean(0) for c in range(20)])
    nearest = np.concatenate([((part[:, None] - means) ** 2).sum(-1).argmin(1) for part in np.array_split(colours, 20)])
    assert np.mean([(nearest == c)[labels == c].mean() for c in range(20)]) < 0.25


def test_the_layout_is_the_one_of_isic(isic):
    files = [path.relative_to(isic).as_posix() for path in isic.rglob("*") if path.is_file() and path.name != STAMP]
    assert len(files) == 2 * (12 + 4 + 5)
    stems = {}
    for split, count in (("train", 12), ("valid", 4), ("test", 5)):
        stems[split] = {path.stem for path in (isic / split).iterdir()}
        masks = {path.name for path in (isic / f"{split}_GT").iterdir()}
        assert masks == {f"{stem}_segmentation.png" for stem in stems[split]}
        assert len(stems[split]) == count
        assert all(re.fullmatch(r"ISIC_\d{7}", stem) for stem in stems[split])
    assert len(set.union(*stems.values())) == 12 + 4 + 5


def test_isic_masks_are_black_and_white_and_as_large_as_lesions_are(isic):
    for path in isic.rglob("*.jpg"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (96, 72))
        mask = values(path.parent.with_name(f"{path.parent.name}_GT") / f"{path.stem}_segmentation.png")
        assert mask.shape == (72, 96)
        assert set(np.unique(mask)) == {0, 255}
        assert 0.05 < (mask > 0).mean() < 0.45


def test_lesions_are_darker_than_the_skin_beside_them_but_not_the_only_dark():
    """A threshold on brightness finds the lesion roughly in some pictures and not at all in others."""
    overlaps = []
    for index in range(24):
        picture, mask = draw_lesion((72, 96), np.random.default_rng(index), index)
        grey, lesion = picture.mean(-1), mask > 0
        middle = np.hypot(*(np.mgrid[:72, :96] - np.array([36, 48]).reshape(2, 1, 1))) < 40  # not the dark corners
        assert grey[lesion & middle].mean() < grey[~lesion & middle].mean()
        dark = grey < np.quantile(grey, lesion.mean())
        overlaps.append((dark & lesion).sum() / (dark | lesion).sum())
    assert min(overlaps) < 0.5 < max(overlaps)


def test_without_a_number_the_test_split_is_as_large_as_valid(tmp_path):
    root = draw_isic(tmp_path / "isic", 1, 2, (32, 48))
    assert len(list((root / "test").iterdir())) == 2


@pytest.mark.parametrize("draw_it", [draw_objects, draw_lesion])
@pytest.mark.parametrize("size", [(32, 48), (96, 96), (120, 90)])
def test_things_and_lesions_come_in_any_size(draw_it, size):
    for index in range(5):
        picture, labels = draw_it(size, np.random.default_rng(index), index)
        assert (picture.shape, picture.dtype) == ((*size, 3), np.uint8)
        assert (labels.shape, labels.dtype) == (size, np.uint8)
        assert len(np.unique(labels)) > 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_a_function_of_its_arguments(tmp_path, layout):
    root = draw(layout, tmp_path / "sample", 3, 2, (32, 64))
    pictures = {path.relative_to(root): np.asarray(Image.open(path)).tobytes() for path in images(root)}
    assert digest(draw(layout, tmp_path / "again", 3, 2, (32, 64))) == digest(root)
    assert digest(draw(layout, tmp_path / "other", 3, 2, (32, 64), seed=1)) != digest(root)
    fewer = draw(layout, tmp_path / "fewer", 1, 1, (32, 64))
    for path in images(fewer):
        assert np.asarray(Image.open(path)).tobytes() == pictures[path.relative_to(fewer)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_kept_replaced_or_refused(tmp_path, layout):
    root = draw(layout, tmp_path / "sample", 2, 1, (32, 64))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    draw(layout, root, 2, 1, (32, 64))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    count = len(images(root))
    draw(layout, root, 1, 1, (32, 64))
    assert 0 < len(images(root)) < count
    images(root)[0].unlink()
    draw(layout, root, 1, 1, (32, 64))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "photo.jpg").write_text("mine")
    with pytest.raises(InputError, match=re.escape(str(theirs))):
        draw(layout, theirs, 1, 1, (32, 64))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sample", "theirs"]


def test_a_missing_list_of_voc_is_written_again(tmp_path):
    root = draw_voc(tmp_path / "VOCdevkit", 1, 1, (32, 48))
    (root / "VOC2012/ImageSets/Segmentation/val.txt").unlink()
    assert len(voc_labels(draw_voc(root, 1, 1, (32, 48)), "val")) == 1


def test_the_sample_of_another_layout_is_replaced(tmp_path):
    root = draw("isic", tmp_path / "sample", 1, 1, (32, 48))
    draw("voc", root, 1, 1, (32, 48))
    assert sorted(path.name for path in root.iterdir()) == ["VOC2012", STAMP]


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(InputError, match="cityscapes, voc, isic"):
        draw("coco", tmp_path / "sample")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_embedded_sample_has_its_place_in_the_repository(layout, monkeypatch):
    asked = []
    monkeypatch.setattr("common.samples.layout._draw", lambda *arguments: asked.append(arguments))
    embedded(layout)
    (_, root, counts, _, seed) = asked[0]
    assert root.parts[-3:] == ("data", "sample", layout)
    assert (list(counts.values())[:2], seed) == ([1464 if layout == "voc" else 160, 32], 0)


@pytest.mark.parametrize("folder, images, size", [("ICNet", 6, (128, 256)), ("DynamicUNet", 4, (64, 80))])
def test_an_untrained_network_scores_next_to_nothing(folder, images, size, tmp_path):
    """What the sample teaches is learnt: initial weights find none of it."""
    layout = module(folder, "presets").LAYOUT
    root = draw(layout, tmp_path / "sample", train_images=1, val_images=images, size=size)
    args = parsed(folder, "--preset=tiny", "--evaluate", data_path=root)
    val_set = module(folder, "data").build_datasets(args).val
    torch.manual_seed(0)
    model = module(folder, "model").build_model(backbone=args.backbone)
    metric = val_set.metric(world())
    assert evaluate(model, val_set, metric, Evaluation(world(), batch_size=1)).miou() < 0.1
