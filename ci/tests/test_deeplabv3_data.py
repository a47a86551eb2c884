import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ci.tests.folders import ROOT
from common.cityscapes import EvalSet, find_pairs
from common.errors import InputError
from DeeplabV3.data import TrainSet, build_datasets, validation_images
from DeeplabV3.tools.convert_datasets.cityscapes import convert, target_of

TOOL = ROOT / "DeeplabV3" / "tools" / "convert_datasets" / "cityscapes.py"
# label id -> train id, by hand; every other id is ignored
TRAIN_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
TRAIN_IDS |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def undistorted(monkeypatch) -> None:
    monkeypatch.setattr("DeeplabV3.data.photometric_distortion", lambda image, rng: image)


# ---- training samples


def test_the_splits_have_their_pairs_and_only_what_is_asked_for(tiny_cityscapes):
    root = tiny_cityscapes(train=3, val=2)
    train_set, val_set = build_datasets(root, base_size=32, crop_size=(16, 16), seed=0)
    assert (len(train_set), len(val_set)) == (3, 2)
    assert build_datasets(root, 32, (16, 16), 0, train=False)[0] is None
    assert build_datasets(root, 32, (16, 16), 0, val=False)[1] is None
    assert [path.name for path in validation_images(root)] == [pair.image.name for pair in val_set.pairs]


def test_evaluation_alone_needs_no_training_split(tiny_cityscapes):
    root = tiny_cityscapes(train=0, val=1)
    assert len(build_datasets(root, 32, (16, 16), 0, train=False)[1]) == 1
    with pytest.raises(InputError, match="no split 'train'"):
        build_datasets(root, 32, (16, 16), 0)


@pytest.mark.parametrize("size", [(32, 48), (9, 70)])
@pytest.mark.parametrize("crop_size", [(16, 24), (80, 40)])
def test_training_samples_are_crops_of_float_images_and_integer_targets(tiny_cityscapes, size, crop_size):
    train_set = TrainSet(find_pairs(tiny_cityscapes(size=size), "train"), base_size=32, crop_size=crop_size, seed=0)
    seen = set()
    for epoch in range(10):
        image, target = train_set[epoch, epoch % 2]
        assert image.shape == (3, *crop_size) and image.dtype == torch.float32
        assert target.shape == crop_size and target.dtype == torch.int64
        assert image.isfinite().all() and image.min() > -2.2 and image.max() < 2.7  # of black and white, normalised
        seen |= set(target.unique().tolist())
    assert seen <= {*range(19), 255}
    assert len(seen) > 10


def test_the_index_chooses_the_picture(tiny_cityscapes, monkeypatch):
    undistorted(monkeypatch)
    pairs = find_pairs(tiny_cityscapes(train=3), "train")
    for grey, pair in zip((0, 100, 200), pairs, strict=True):
        Image.new("RGB", (48, 32), (grey,) * 3).save(pair.image)
    train_set = TrainSet(pairs, base_size=32, crop_size=(8, 8), seed=0)
    for grey, index in ((200, 2), (0, 0), (100, 1)):
        assert train_set[0, index][0][0].mean().item() == pytest.approx((grey / 255 - 0.485) / 0.229, abs=0.02)


def test_what_is_padded_is_ignored_and_of_the_mean_colour(tiny_cityscapes):
    pairs = find_pairs(tiny_cityscapes(size=(32, 64)), "train")
    train_set = TrainSet(pairs, base_size=16, crop_size=(80, 80), seed=0)
    for epoch in range(8):
        image, target = train_set[epoch, 0]
        assert (target[32:] == 255).all() and (target[:, 64:] == 255).all()
        padding = torch.cat([image[:, 32:].flatten(1), image[:, :32, 64:].flatten(1)], dim=1)
        assert padding.abs().max() < 0.5 / 255 / 0.224  # 0, to half a grey level
        assert image[:, 0, 0].abs().max() > 0.02, "the picture begins in the corner, mirrored or not"


def test_a_sample_depends_on_seed_epoch_and_index_alone(tiny_cityscapes):
    pairs = find_pairs(tiny_cityscapes(), "train")
    train_set = TrainSet(pairs, 32, (24, 24), seed=5)
    first = train_set[3, 1]
    np.random.default_rng(0).random(5)
    torch.rand(5)
    assert equal(train_set[3, 1], first)  # not on what was drawn before
    assert equal(TrainSet(pairs, 32, (24, 24), seed=5)[3, 1], first)
    for seed, key in ((5, (4, 1)), (6, (3, 1)), (5, (3, 0)), (5, (1, 1))):
        assert not equal(TrainSet(pairs, 32, (24, 24), seed)[key], first)


def test_a_later_epoch_is_no_shifted_copy_of_an_earlier_one(tiny_cityscapes):
    pairs = find_pairs(tiny_cityscapes(train=1), "train") * 4  # one picture under four indices
    train_set = TrainSet(pairs, 32, (24, 24), seed=0)
    samples = [train_set[epoch, index][0] for epoch in range(4) for index in range(4)]
    assert not any(torch.equal(a, b) for i, a in enumerate(samples) for b in samples[:i])


def test_images_in_training_are_flipped_and_scaled(tiny_cityscapes, monkeypatch):
    undistorted(monkeypatch)
    pair = find_pairs(tiny_cityscapes(train=1, size=(40, 80)), "train")[0]
    columns = np.arange(80, dtype=np.uint8).repeat(3).reshape(1, 80, 3).repeat(40, 0)
    Image.fromarray(columns * 3).save(pair.image)  # brighter from left to right
    train_set = TrainSet([pair], base_size=40, crop_size=(20, 20), seed=0)
    slopes = np.array(
        [(image[0, 10, 14] - image[0, 10, 5]).item() for image, _ in (train_set[e, 0] for e in range(80))]
    )
    scales = 9 * (3 / 255 / 0.229) / np.abs(slopes)
    assert 20 < (slopes < 0).sum() < 60
    assert 0.45 < scales.min() < 0.7 and 1.5 < scales.max() < 2.2
    assert 15 < (scales < 1).sum() < 40  # uniform in 0.5 .. 2: a third


def test_labels_move_with_their_images(tiny_cityscapes, monkeypatch):
    """A picture whose brightness is its class: after every augmentation the two still fit together."""
    undistorted(monkeypatch)
    pair = find_pairs(tiny_cityscapes(train=1, size=(64, 128)), "train")[0]
    ids = np.kron(np.random.default_rng(0).choice([7, 33], (4, 8)), np.ones((16, 16))).astype(np.uint8)
    Image.fromarray(ids).save(pair.label)
    Image.fromarray(np.where(ids == 7, 20, 220).astype(np.uint8)).convert("RGB").save(pair.image)
    train_set = TrainSet([pair], base_size=64, crop_size=(32, 48), seed=0)
    for epoch in range(10):
        image, target = train_set[epoch, 0]
        is_bright = (image[1] * 0.224 + 0.456) * 255 > 120
        assert (is_bright == (target == 18))[target != 255].float().mean() > 0.9  # the borders are blurred


def test_most_training_images_are_distorted_and_no_target(tiny_cityscapes, monkeypatch):
    """Each of the four distortions with a chance of one half: one image in sixteen has none."""
    train_set = TrainSet(find_pairs(tiny_cityscapes(train=1), "train"), base_size=32, crop_size=(24, 24), seed=0)
    samples = [train_set[epoch, 0] for epoch in range(64)]
    undistorted(monkeypatch)
    plain = [train_set[epoch, 0] for epoch in range(64)]
    assert all(torch.equal(target, same) for (_, target), (_, same) in zip(samples, plain, strict=True))
    assert 52 <= sum(not torch.equal(image, other) for (image, _), (other, _) in zip(samples, plain, strict=True)) < 64


@pytest.mark.parametrize("cat_max_ratio, few", [(0.75, True), (1.0, False)])
def test_crops_of_one_class_are_avoided(tiny_cityscapes, cat_max_ratio, few):
    pair = find_pairs(tiny_cityscapes(train=1, size=(64, 128)), "train")[0]
    ids = np.full((64, 128), 7, np.uint8)
    ids[::2, 96:] = 8  # a varied quarter at the right
    Image.fromarray(ids).save(pair.label)
    train_set = TrainSet([pair], 64, (24, 24), seed=0, scales=(1.0, 1.0), cat_max_ratio=cat_max_ratio)
    targets = [train_set[epoch, 0][1] for epoch in range(60)]
    dull = sum((target == 0).float().mean().item() >= 0.75 for target in targets)
    assert dull <= 15 if few else dull > 30


def test_values_that_make_no_sense_are_refused(tiny_cityscapes):
    root = tiny_cityscapes()
    for scales in ((0.0, 2.0), (2.0, 0.5)):
        with pytest.raises(InputError, match="--min_scale .* 0 < min <= max"):
            build_datasets(root, base_size=32, crop_size=(16, 16), seed=0, scales=scales)
    with pytest.raises(InputError, match="less than a pixel"):
        build_datasets(root, base_size=1, crop_size=(16, 16), seed=0)
    with pytest.raises(InputError, match="--cat_max_ratio 0"):
        build_datasets(root, base_size=32, crop_size=(16, 16), seed=0, cat_max_ratio=0.0)


# ---- tools/convert_datasets/cityscapes.py

# rectangles (label, left, top, right, bottom), both ends included; later ones cover earlier ones
SCENE = (
    ("sky", 0, 0, 59, 19),
    ("building", 10, 5, 30, 25),
    ("road", 0, 26, 59, 38),  # the last row stays empty
    ("cargroup", 12, 24, 25, 34),
    ("license plate", 14, 30, 18, 32),
    ("polegroup", 40, 0, 42, 30),
    ("parking", 45, 30, 55, 36),
    ("bicycle", 50, 20, 57, 33),
)
LABEL_IDS = {"sky": 23, "building": 11, "road": 7, "cargroup": 26, "polegroup": 18, "parking": 9, "bicycle": 33}


def objects() -> list[dict]:
    corners = [
        {"label": name, "polygon": [[left, top], [right, top], [right, bottom], [left, bottom]]}
        for name, left, top, right, bottom in SCENE
    ]
    return [*corners, {**corners[0], "label": "no such thing", "deleted": 1}]


def label_ids() -> np.ndarray:
    """What the download's labelIds file of the scene holds."""
    ids = np.zeros((40, 60), np.uint8)
    for name, left, top, right, bottom in SCENE:
        if name in LABEL_IDS:
            ids[top : bottom + 1, left : right + 1] = LABEL_IDS[name]
    return ids


def lay_out(root, with_ids: bool, with_polygons: bool, train: int = 3, val: int = 1):
    """A folder of scenes: each is the one above, with a number written into its corner."""
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            folder = root / "gtFine" / split / "aachen"
            folder.mkdir(parents=True, exist_ok=True)
            stem = folder / f"aachen_{index:06d}_000019_gtFine"
            ids = label_ids()
            ids[0, : index + 1] = 24
            corner = {"label": "person", "polygon": [[0, 0], [index, 0], [index, 0], [0, 0]]}
            if with_ids:
                Image.fromarray(ids).save(f"{stem}_labelIds.png")
            if with_polygons:
                annotation = {"imgWidth": 60, "imgHeight": 40, "objects": [*objects(), corner]}
                (folder / f"{stem.name}_polygons.json").write_text(json.dumps(annotation))
    return root


def converted(root) -> dict[str, list]:
    return {
        str(path.relative_to(root)): np.asarray(Image.open(path)).tolist()
        for path in sorted(root.rglob("*_labelTrainIds.png"))
    }


def expected_train_ids() -> dict[str, list]:
    result = {}
    for split, count in (("train", 3), ("val", 1)):
        for index in range(count):
            ids = label_ids()
            ids[0, : index + 1] = 24
            name = f"gtFine/{split}/aachen/aachen_{index:06d}_000019_gtFine_labelTrainIds.png"
            result[name] = [[TRAIN_IDS.get(value, 255) for value in row] for row in ids.tolist()]
    return result


@pytest.mark.parametrize("with_ids, with_polygons", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("processes", [1, 2])
def test_label_ids_and_polygons_give_the_same_train_ids(tmp_path, with_ids, with_polygons, processes):
    root = lay_out(tmp_path, with_ids, with_polygons)
    assert convert(root, processes=processes) == ("4 label files written, 0 were there; 3 in train.txt, 1 in val.txt")
    assert converted(root) == expected_train_ids()
    assert all(Image.open(path).mode == "L" for path in root.rglob("*_labelTrainIds.png"))
    assert (root / "train.txt").read_text() == "".join(f"aachen/aachen_{i:06d}_000019\n" for i in range(3))
    assert (root / "val.txt").read_text() == "aachen/aachen_000000_000019\n"
    assert not (root / "test.txt").exists()


def test_polygons_are_for_pictures_without_label_ids(tmp_path):
    root = lay_out(tmp_path, with_ids=True, with_polygons=True)
    (first, *_) = sorted(root.rglob("*_polygons.json"))
    first.write_text("{}")  # is not read
    next(root.rglob("*_000001_*_labelIds.png")).unlink()  # the polygons are
    convert(root)
    assert converted(root) == expected_train_ids()


def test_an_interrupted_conversion_goes_on(tmp_path):
    root = lay_out(tmp_path, with_ids=False, with_polygons=True)
    second = sorted(root.rglob("*_polygons.json"))[1]
    whole = second.read_text()
    second.write_text(whole[:50])
    with pytest.raises(InputError, match="aachen_000001_000019_gtFine_polygons.json") as raised:
        convert(root)
    assert "\n" not in str(raised.value)
    (done,) = root.rglob("*_labelTrainIds.png")
    assert not list(root.rglob("train.txt")) and not list(root.rglob(".*"))
    Image.new("L", (3, 3)).save(done)  # would be seen if it were written again
    second.write_text(whole)
    assert convert(root).startswith("3 label files written, 1 were there")
    names = expected_train_ids()
    assert converted(root) == {**names, str(done.relative_to(root)): [[0] * 3] * 3}
    assert convert(root).startswith("0 label files written, 4 were there")


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"objects": [{"label": "tree", "polygon": [[0, 0], [5, 0], [5, 5]]}]},
            "label 'tree' is not in the label table",
        ),
        ({"objects": [{"label": "group", "polygon": [[0, 0], [5, 0], [5, 5]]}]}, "label '' is not in"),
        ({"objects": [{"label": "car", "polygon": [[0, 0]]}]}, "cannot draw"),
        ({"objects": [{"label": "car"}]}, "no 'polygon'"),
        ({"objects": 5}, "cannot draw"),
        ({"imgWidth": "60"}, "cannot draw"),
    ],
)
def test_polygons_that_cannot_be_drawn_name_their_file(tmp_path, change, message):
    root = lay_out(tmp_path, with_ids=False, with_polygons=True, train=1, val=0)
    (path,) = root.rglob("*_polygons.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message) as raised:
        convert(root)
    assert str(path) in str(raised.value)


def test_label_ids_beyond_the_table_name_their_file(tmp_path):
    root = lay_out(tmp_path, with_ids=True, with_polygons=False, train=1, val=0)
    (path,) = root.rglob("*_labelIds.png")
    Image.fromarray(np.full((4, 4), 99, np.uint8)).save(path)
    with pytest.raises(InputError, match=r"labelIds\.png holds the values \[99\]"):
        convert(root, processes=2)


def test_the_train_ids_train_and_score_as_the_label_ids_do(tiny_cityscapes):
    root = tiny_cityscapes(train=2, val=1)
    before = build_datasets(root, 32, (16, 16), 0)
    expected = [before[0][0, 0], before[0][3, 1], before[1][0]]
    convert(root)
    for path in root.rglob("*_labelIds.png"):
        path.unlink()
    train_set, val_set = build_datasets(root, 32, (16, 16), 0)
    assert val_set.pairs[0].label.name.endswith("_labelTrainIds.png")
    assert all(equal(a, b) for a, b in zip([train_set[0, 0], train_set[3, 1], val_set[0]], expected, strict=True))
    assert isinstance(val_set, EvalSet)


def run_tool(*flags) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, TOOL, *map(str, flags)], capture_output=True, text=True, cwd="/")


def test_the_command(tmp_path):
    root = lay_out(tmp_path / "cityscapes", with_ids=False, with_polygons=True)
    (root / "gtFine").rename(root / "gtCoarse")
    done = run_tool(root, "--gt-dir", "gtCoarse", "-o", tmp_path / "lists", "--nproc", 2)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "4 label files written, 0 were there; 3 in train.txt, 1 in val.txt\n"
    assert sorted(path.name for path in (tmp_path / "lists").iterdir()) == ["train.txt", "val.txt"]
    assert len(converted(root)) == 4


def test_the_command_says_in_one_line_what_is_wrong(tmp_path):
    (tmp_path / "file").touch()
    root = lay_out(tmp_path / "cityscapes", with_ids=True, with_polygons=False)
    for flags, message in (
        ([tmp_path / "nowhere"], "nowhere/gtFine"),
        ([root, "-o", tmp_path / "file" / "lists"], "file"),
        ([root, "--color"], "--color"),
    ):
        done = run_tool(*flags)
        assert done.returncode == 2 and done.stdout == "", flags
        assert done.stderr.count("\n") == 1 and message in done.stderr, done.stderr


def test_what_the_converter_refuses(tmp_path):
    root = lay_out(tmp_path / "cityscapes", with_ids=True, with_polygons=False)
    with pytest.raises(InputError, match="--nproc 0"):
        convert(root, processes=0)
    with pytest.raises(InputError, match="cityscapes/gtCoarse.*--gt_dir"):
        convert(root, gt_dir="gtCoarse")
    assert not list(root.rglob("*TrainIds*"))


def test_targets_are_beside_their_sources(tmp_path):
    assert target_of(tmp_path / "a_gtFine").name == "a_gtFine_labelTrainIds.png"
