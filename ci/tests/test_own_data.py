"""One's own pictures and masks, from the folder to a trained network that predicts by its checkpoint alone."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ci.tests.narrow import narrow_networks
from common.args import parse_args
from common.data.own import find_own
from common.data.own_files import find_files
from common.data.pairs import PairReader
from common.data.transforms import Cropping, turned
from common.errors import InputError
from common.scores.predict import parse_predict_args, predict
from common.start import carry_out

COLOURS = ((0, 0, 0), (128, 64, 0), (0, 200, 100))  # of the masks of colours here
VOC = ((0, 0, 0), (128, 0, 0), (0, 128, 0))


def picture(path: Path, number: int = 0, size=(64, 80)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def ids_of(number: int, classes: int = 3, size=(64, 80)) -> np.ndarray:
    """[H, W]: stripes of all classes, at another place in each picture."""
    return np.tile((np.arange(size[1]) // 7 + number) % classes, (size[0], 1)).astype(np.uint8)


def mask(path: Path, number: int = 0, classes: int = 3, kind="ids") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = ids_of(number, classes)
    image = Image.fromarray(np.array(COLOURS, np.uint8)[ids] if kind == "colours" else ids)
    if kind == "levels":
        image = Image.merge("RGB", [image] * 3)
    if kind == "palette":
        image.putpalette([value for colour in VOC for value in colour])
    image.save(path)
    return path


def folder_of(root: Path, count=6, classes=3, ending="_mask.png", images="images", masks="masks", kind="ids") -> Path:
    for number in range(count):
        picture(root / images / f"p{number}.png", number)
        mask(root / masks / f"p{number}{ending}", number, classes, kind)
    return root


def names(pairs) -> list[str]:
    return [pair.image.stem for pair in pairs]


@pytest.mark.parametrize("ending", [".png", "_mask.png", "_gt.png", "_segmentation.png", "_labelIds.png", ".png.png"])
def test_masks_have_the_usual_endings(tmp_path, ending):
    found = find_files(folder_of(tmp_path, ending=ending))
    assert sorted([*names(found.train), *names(found.val)]) == [f"p{number}" for number in range(6)]
    assert all(pair.mask.name == pair.image.stem + ending for pair in (*found.train, *found.val))
    assert len(found.val) == 1


def test_a_split_that_is_drawn_stays_when_pictures_come(tmp_path):
    before = find_files(folder_of(tmp_path, count=40))
    after = find_files(folder_of(tmp_path, count=50))
    assert (len(before.val), len(after.val)) == (8, 10)
    assert len(set(names(before.val)) & set(names(after.val))) >= 6 and not set(before.val) & set(before.train)


def test_splits_that_are_there_are_taken(tmp_path):
    small = ["{0}/images {0}/masks", "images/{0} masks/{0}", "{0} {0}"]
    for root, parts in zip("abcde", [*small, "{1}/Images {1}/Masks", "Images/{1} Masks/{1}"], strict=True):
        for split, count in (("train", 3), ("valid", 2)):
            images, masks = parts.format(split, split.title()).split()
            folder_of(tmp_path / root, count, images=images, masks=masks)
        found = find_files(tmp_path / root)
        assert (len(found.train), len(found.val)) == (3, 2), root


def test_lists_split_and_name_their_line_when_they_are_wrong(tmp_path):
    root = folder_of(tmp_path)
    (root / "train.txt").write_text("\ufeffp3\nimages/p1.png\n\n", encoding="utf-8")
    (root / "val.txt").write_text("p2\n")
    found = find_files(root)
    assert (names(found.train), names(found.val)) == (["p1", "p3"], ["p2"])
    (root / "val.txt").write_text("p2\nP5\n")
    with pytest.raises(InputError, match=r"val\.txt, line 2: no picture P5; there is p5"):
        find_files(root)
    (root / "val.txt").write_text("p3\n")
    with pytest.raises(InputError, match=r"both name p3\.png"):
        find_files(root)


def test_what_does_not_fit_together_is_named(tmp_path):
    root = folder_of(tmp_path)
    extra = picture(root / "images" / "alone.png")
    (root / "masks" / ".DS_Store").touch()
    with pytest.raises(InputError, match=r"1 of 7 pictures of .* have no mask .*: alone\.png \(there are p0_mask\.png"):
        find_files(root)
    extra.unlink()
    extra = mask(root / "masks" / "p1_gt.png")
    with pytest.raises(InputError, match="could both be the mask of p1"):
        find_files(root)
    extra.unlink()
    extra = mask(root / "masks" / "other.png")
    with pytest.raises(InputError, match=r"1 of 7 masks of .* have no picture"):
        find_files(root)
    for wrong in (tmp_path / "missing", extra, root / "images"):
        with pytest.raises(InputError, match="--data_path must name a folder that holds images/ and masks/"):
            find_files(wrong)


# ---- exports of annotation tools, as their documents show them


def cvat(root: Path) -> None:
    """Segmentation mask 1.1: a picture that nobody has annotated yet has no mask, and stands in no list."""
    folder_of(root, images="JPEGImages", masks="SegmentationClass", ending=".png", kind="colours")
    folder_of(root, images="JPEGImages", masks="SegmentationObject", ending=".png", kind="colours")
    lines = [
        f"{name}:{','.join(map(str, colour))}::" for name, colour in zip(("background", "b", "c"), COLOURS, strict=True)
    ]
    (root / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines]) + "\n")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, numbers in (("Train", range(4)), ("Validation", range(4, 6))):  # subsets, as their owner calls them
        (lists / f"{name}.txt").write_text("\n".join(f"p{number}" for number in numbers))
    picture(root / "JPEGImages" / "later.png")


def labelme(root: Path) -> None:
    """labelme2voc: indices of PASCAL VOC's palette, 255 for __ignore__; class_names.txt ends without a new line."""
    folder_of(root, images="JPEGImages", masks="SegmentationClass", ending=".png", kind="palette")
    (root / "SegmentationClassVisualization").mkdir()
    (root / "SegmentationClassNpy").mkdir()
    (root / "class_names.txt").write_text("_background_\nb\nc")


def labelme_before(root: Path) -> None:
    """The same of earlier versions: arrays are in SegmentationClass, and the masks in a folder of their own."""
    labelme(root)
    (root / "SegmentationClass").rename(root / "SegmentationClassPNG")
    (root / "SegmentationClass").mkdir()
    (root / "SegmentationClass" / "p0.npy").write_bytes(b"an array")


def supervisely(root: Path) -> None:
    """Export as masks: a folder for each data set; machine masks are RGB files of grey levels."""
    for name, kind in (("masks_machine", "levels"), ("masks_human", "colours")):
        folder_of(root / "dataset 1", images="img", masks=name, ending=".png", kind=kind)
    (root / "dataset 1" / "ann").mkdir()
    (root / "obj_class_to_machine_color.json").write_text(json.dumps({"b": [1, 1, 1], "c": [2, 2, 2]}))
    (root / "meta.json").write_text("{}")


def roboflow(root: Path) -> None:
    """PNG masks, semantic: pictures and masks side by side, called by what they were and a hash."""
    for split, count in (("train", 4), ("valid", 2), ("test", 1)):
        folder_of(root, count, images=split, masks=split)
        for path in (root / split).iterdir():
            name, _, ending = path.name.partition("." if path.name.count("_") == 0 else "_")
            ending = f"_{ending}" if "_" in path.name else f".{ending}"
            path.rename(path.with_name(f"{name}_jpg.rf.c0ffee{ending}"))
        (root / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, b\n2, c\n")
    (root / "README.roboflow.txt").write_text("about the project")


@pytest.mark.parametrize("tool", [cvat, labelme, labelme_before, supervisely, roboflow])
def test_exports_of_annotation_tools_are_read_as_they_come(tmp_path, tool):
    tool(tmp_path)
    data = find_own(tmp_path)
    assert [name.strip("_") for name in data.classes.names] == ["background", "b", "c"]
    read = PairReader(lambda path: data.classes.table())
    pairs = [*data.files.train, *data.files.val]
    assert len(pairs) == 6
    for pair in pairs:
        assert (read(pair)[1] == ids_of(int(pair.image.stem[1]))).all()
    assert ("1 pictures of JPEGImages without a mask are left out" in data.note) == (tool is cvat)
    assert len(data.files.val) == (2 if tool in (cvat, roboflow) else 1)


def test_an_export_without_pictures_and_masks_with_loss_are_named(tmp_path):
    folder_of(tmp_path / "data", images="JPEGImages", masks="SegmentationClass", ending=".png")
    (tmp_path / "data" / "JPEGImages").rename(tmp_path / "away")
    with pytest.raises(InputError, match="masks alone are no data: export them with their pictures"):
        find_files(tmp_path / "data")
    root = folder_of(tmp_path / "other", ending=".png")
    for path in (root / "masks").iterdir():
        path.rename(path.with_suffix(".jpg"))
    with pytest.raises(InputError, match=r"keeps each value .*, and p0\.jpg is not; give the original masks, as PNG"):
        find_files(root)


# ---- training


def run_of(folder: str, root: Path, output: Path, *words: str):
    presets, train = import_module(f"{folder}.presets"), import_module(f"{folder}.train")
    args = parse_args(
        presets,
        ["--dataset=folder", f"--data_path={root}", f"--output_dir={output}", "--device=cpu", "--workers=0", *words],
    )
    return carry_out(train.main, train.build, args, presets)


def predicted(folder: str, checkpoint: Path, source: Path, output: Path) -> None:
    """predict.py with no word but where the weights and the pictures are."""
    data, model, weights = (import_module(f"{folder}.{name}") for name in ("data", "model", "weights"))
    presets = import_module(f"{folder}.presets")
    options = {"image_size": presets.BASE["image_size"]} if folder == "AttentionUNet" else {}
    args = parse_predict_args(options, "", [f"--checkpoint={checkpoint}", f"--input={source}", f"--output={output}"])
    predict(args, model.build_model, weights.from_reference, data.INFO, getattr(data, "to_input", None))


SMALL = {"AttentionUNet": ["--base_channels=8", "--image_size=64"]}


@pytest.mark.parametrize("folder", ["ICNet", "DeeplabV3", "BiSeNetv1", "DynamicUNet", "AttentionUNet"])
@pytest.mark.parametrize("classes", [2, 3])
@narrow_networks()
def test_every_folder_trains_on_a_folder_and_predicts_by_its_checkpoint_alone(tmp_path, folder, classes):
    root, output = folder_of(tmp_path / "data", classes=classes), tmp_path / "run"
    words = ["--preset=tiny", "--max_steps=1", *SMALL.get(folder, [])]
    result = run_of(folder, root, output, *words)
    binary = {"jaccard", "foreground_iou"} & set(result["scores"])
    assert bool(binary) == (classes == 2) and "dice" in result["scores"] or classes > 2
    content = torch.load(output / "checkpoints" / "last.pt", weights_only=True)
    assert content["data"]["class_names"] == [f"class_{number}" for number in range(classes)]
    assert content["data"]["trained_size"] == [64, 64]
    predicted(folder, output / "checkpoints" / "last.pt", root / "images" / "p0.png", tmp_path / "seen")
    ids = np.array(Image.open(tmp_path / "seen" / "p0_ids.png"))
    seen = np.array(Image.open(tmp_path / "seen" / "p0_color.png"))
    assert ids.shape == (64, 80) and ids.max() < classes
    assert (seen == np.array(content["data"]["palette"], np.uint8)[ids]).all()


def test_a_new_head_takes_the_other_weights_and_names_what_it_does_not(tmp_path, capsys):
    words = ["--preset=tiny", "--max_steps=1", *SMALL["AttentionUNet"]]
    run_of("AttentionUNet", folder_of(tmp_path / "two", classes=2), tmp_path / "first", *words)
    last = tmp_path / "first" / "checkpoints" / "last.pt"
    root = folder_of(tmp_path / "three", classes=3)
    with pytest.raises(InputError, match=r"2 of another shape: classifier\.bias .*, classifier\.weight "):
        run_of("AttentionUNet", root, tmp_path / "refused", *words, f"--load_from={last}")
    capsys.readouterr()
    run_of("AttentionUNet", root, tmp_path / "second", *words, f"--load_from={last}", "--new_head", "--lr=0")
    assert "2 (classifier.weight, classifier.bias) newly initialised\n" in capsys.readouterr().out
    before, after = (
        torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["model"]
        for folder in (tmp_path / "first", tmp_path / "second")
    )
    same = [name for name in before if name.endswith("weight") and before[name].shape == after[name].shape]
    assert len(same) > 20 and all(torch.equal(before[name], after[name]) for name in same)


@pytest.mark.parametrize("folder", ["ICNet", "DeeplabV3", "BiSeNetv1", "DynamicUNet", "AttentionUNet"])
def test_a_new_head_is_all_that_depends_on_the_classes(folder):
    model = import_module(f"{folder}.model")
    with torch.device("meta"):
        two, three = (model.build_model(num_classes=number).state_dict() for number in (2, 3))
        names = [name for name in two if two[name].shape != three[name].shape]
        heads = model.build_model().classifiers
    assert names == [name for name in two if name.startswith(heads)]


def test_a_checkpoint_is_not_scored_on_other_classes(tmp_path):
    words = ["--preset=tiny", "--max_steps=1", *SMALL["AttentionUNet"]]
    root = folder_of(tmp_path / "data")
    run_of("AttentionUNet", root, tmp_path / "run", *words)
    named = [{"name": name, "ids": [number]} for number, name in enumerate("abc")]
    (root / "classes.json").write_text(json.dumps({"classes": named}))
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    with pytest.raises(InputError, match="tells class_0, class_1, class_2 apart, and the data has a, b, c"):
        run_of("AttentionUNet", root, tmp_path / "eval", *words, "--evaluate", f"--checkpoint={last}")


# ---- augmentation by flag

IMAGE = np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)
LABEL = np.arange(120, dtype=np.uint8).reshape(12, 10)


def test_pictures_are_turned_upside_down_with_their_labels():
    cropping = Cropping(12, (12, 10), flip_vertical=True)
    seen = set()
    for seed in range(10):
        image, label = turned(IMAGE, LABEL, np.random.default_rng(seed), cropping)
        flipped = bool((image[0] == IMAGE[-1]).all())
        assert (label == (LABEL[::-1] if flipped else LABEL)).all()
        seen.add(flipped)
    assert seen == {True, False}


def test_pictures_are_turned_with_their_labels_and_what_comes_in_is_ignored():
    size = (40, 40)
    label = np.zeros(size, np.uint8)
    label[:, 20:] = 1
    image = np.repeat(label[..., None] * 200 + 20, 3, axis=2).astype(np.uint8)
    image, label = turned(image, label, np.random.default_rng(2), Cropping(40, size, rotate=45.0))
    assert label[0, 0] == 255 and image[0, 0].max() == 0
    assert 0.02 < (label == 255).mean() < 0.25
    assert (image[label == 1] > 100).mean() > 0.95 and (image[label == 0] < 100).mean() > 0.95


def test_nothing_more_is_drawn_where_nothing_more_is_asked_for():
    rng, untouched = np.random.default_rng(3), np.random.default_rng(3)
    image, label = turned(IMAGE, LABEL, rng, Cropping(12, (12, 10)))
    assert image is IMAGE and label is LABEL and rng.random() == untouched.random()


def test_plain_crops_are_the_pictures_as_they_are(tmp_path):
    for folder in ("ICNet", "DeeplabV3"):
        root = folder_of(tmp_path / folder)
        presets, data = import_module(f"{folder}.presets"), import_module(f"{folder}.data")
        flags = ["--preset=tiny", "--dataset=folder", f"--data_path={root}", "--no_augment", "--crop_size=64x80"]
        train = data.build_datasets(parse_args(presets, flags)).train
        for epoch in range(4):
            image, label, draws = train[epoch, 0]
            assert (image.numpy() == np.array(Image.open(train.pairs[0][0]))).all()
            assert (label.numpy() == np.array(Image.open(train.pairs[0][1]))).all()
            finished = train.finish(image.permute(2, 0, 1)[None], draws[None])
            assert torch.allclose(finished, train.normalized(image.permute(2, 0, 1)[None]), atol=1e-5)
        with pytest.raises(InputError, match="--no_augment and --flip_vertical"):
            data.build_datasets(parse_args(presets, [*flags, "--flip_vertical"]))


# ---- what the preset leaves open


@pytest.mark.parametrize("folder", ["ICNet", "DeeplabV3", "BiSeNetv1", "DynamicUNet", "AttentionUNet"])
def test_the_preset_own_is_fitted_to_the_pictures(tmp_path, folder):
    root = folder_of(tmp_path, count=10)
    presets, data = import_module(f"{folder}.presets"), import_module(f"{folder}.data")
    args = parse_args(presets, ["--preset=own", f"--data_path={root}", "--device=cpu"])
    train, val, _ = data.build_datasets(args)
    assert train.trained_size == (64, 64) and args.device_batch_size == 4
    steps = args.epochs * (len(train) // 4) if args.epochs else args.total_steps
    assert steps == 400 and "class_0, class_1, class_2" in train.note and len(val) == 2
    lasting = parse_args(
        presets, ["--preset=own", f"--data_path={root}", "--device=cpu", "--device_batch_size=2", "--epochs=7"]
    )
    data.build_datasets(lasting)
    assert (lasting.device_batch_size, lasting.epochs) == (2, 7)  # what is given stays
