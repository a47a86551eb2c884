"""DeeplabV3/tools/convert_datasets/cityscapes.py: the train ids that it writes, and how it is used."""

import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import torch
from PIL import Image

from ci.tests.folders import ROOT
from ci.tests.runs import as_if_started
from ci.tests.test_common_cityscapes_sets import datasets
from ci.tests.test_common_crops import TRAIN_IDS
from common.errors import InputError
from DeeplabV3.tools.convert_datasets.cityscapes import convert, target_of

TOOL = ROOT / "DeeplabV3" / "tools" / "convert_datasets" / "cityscapes.py"
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
    before = datasets("DeeplabV3", root)
    expected = [before.train[0, 0], before.train[3, 1], before.val[0]]
    convert(root)
    for path in root.rglob("*_labelIds.png"):
        path.unlink()
    train_set, val_set, _ = datasets("DeeplabV3", root)
    assert val_set.pairs[0].label.name.endswith("_labelTrainIds.png")
    for ours, theirs in zip([train_set[0, 0], train_set[3, 1], val_set[0]], expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_command(tmp_path):
    root = lay_out(tmp_path / "cityscapes", with_ids=False, with_polygons=True)
    (root / "gtFine").rename(root / "gtCoarse")
    command = [sys.executable, TOOL, root, "--gt-dir=gtCoarse", "-o", tmp_path / "lists", "--nproc=2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "4 label files written, 0 were there; 3 in train.txt, 1 in val.txt\n"
    assert sorted(path.name for path in (tmp_path / "lists").iterdir()) == ["train.txt", "val.txt"]
    assert len(converted(root)) == 4


def test_the_command_says_in_one_line_what_is_wrong(tmp_path):
    (tmp_path / "file").touch()
    root = lay_out(tmp_path / "cityscapes", with_ids=True, with_polygons=False)
    for flags, message in (
        ([tmp_path / "nowhere"], "nowhere/gtFine"),
        ([root, "-o", tmp_path / "file" / "lists"], f"--out_dir {tmp_path}/file/lists cannot be made"),
        ([root, "-o", tmp_path / "file"], f"--out_dir {tmp_path}/file cannot be made"),
        ([root, "--color"], "--color"),
    ):
        done = as_if_started(TOOL, *flags)
        assert done.returncode == 2 and done.stdout == "", flags
        assert done.stderr.count("\n") == 1 and message in done.stderr, done.stderr


def test_what_the_converter_refuses(tmp_path):
    root = lay_out(tmp_path / "cityscapes", with_ids=True, with_polygons=False)
    with pytest.raises(InputError, match="--nproc 0"):
        convert(root, processes=0)
    with pytest.raises(InputError, match="no folder .*cityscapes/gtCoarse; .*--gt_dir"):
        convert(root, gt_dir="gtCoarse")
    assert not list(root.rglob("*TrainIds*"))


def test_a_process_that_is_killed_ends_the_conversion_in_one_line(tmp_path, monkeypatch):
    class Killed(ProcessPoolExecutor):
        def map(self, *_):
            raise BrokenProcessPool

    monkeypatch.setattr("DeeplabV3.tools.convert_datasets.cityscapes.ProcessPoolExecutor", Killed)
    root = lay_out(tmp_path / "cityscapes", with_ids=True, with_polygons=False)
    with pytest.raises(InputError, match="was killed.*the same command goes on.*--nproc 2"):
        convert(root, processes=2)
    assert not (root / "train.txt").exists()


def test_targets_are_beside_their_sources(tmp_path):
    assert target_of(tmp_path / "a_gtFine").name == "a_gtFine_labelTrainIds.png"
