"""common/data/survey.py and common/tools/check.py: what is in a data set, and what is wrong with it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.labels import MaskFiles
from common.data.pairs import PairReader, check_pairs
from common.data.survey import look_at, split_message
from common.errors import InputError
from common.tools import check

SIZE = (8, 12)  # height, width


class Voc:
    """A small VOCdevkit folder; `label` and `picture` are drawn over to make it worse."""

    def __init__(self, root: Path):
        self.root, self.voc = root, root / "VOC2012"
        lists = self.voc / "ImageSets" / "Segmentation"
        for folder in (lists, self.voc / "JPEGImages", self.voc / "SegmentationClass"):
            folder.mkdir(parents=True)
        for split, names in (("train", "ab"), ("val", "cd")):
            (lists / f"{split}.txt").write_text("\n".join(names))
            for name in names:
                self.picture(name, seed=ord(name))
                ids = np.zeros(SIZE, np.uint8)
                ids[2:5], ids[0] = 15, 255
                self.label(name, ids)

    def image(self, name: str) -> Path:
        return self.voc / "JPEGImages" / f"{name}.jpg"

    def mask(self, name: str) -> Path:
        return self.voc / "SegmentationClass" / f"{name}.png"

    def picture(self, name: str, seed: int) -> None:
        noise = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)
        Image.fromarray(noise).save(self.image(name))

    def label(self, name: str, values) -> None:
        Image.fromarray(np.asarray(values, np.uint8)).save(self.mask(name))


@pytest.fixture
def voc(tmp_path) -> Voc:
    return Voc(tmp_path / "data")


def checked(data: Voc, capsys, *flags: str) -> tuple[int, str, dict]:
    """Exit code, what was printed, and the JSON of a check."""
    file = data.root.parent / "found.json"
    code = check.main(["--model", "DynamicUNet", "--data_path", str(data.root), "--json", str(file), *flags])
    return code, capsys.readouterr().out, json.loads(file.read_text())


def test_a_good_data_set_is_described(voc, capsys):
    code, text, found = checked(voc, capsys)
    assert code == 0 and found["problems"] == [] and text.endswith("nothing is wrong\n")
    train = found["splits"]["train"]
    assert (train["pictures"], train["sizes"], train["ignored_share"]) == (2, {"12x8": 2}, 1 / 8)
    shares = {kind["name"]: (kind["share"], kind["pictures"]) for kind in train["classes"] if kind["pictures"]}
    assert shares == {"background": (4 / 7, 2), "person": (3 / 7, 2)}
    assert "train: 2 pictures; published: 1,464 or 10,582" in text
    assert "   15 person                42.86%  in 2 labels" in text


def test_each_bad_file_is_listed_and_none_ends_the_search(voc, capsys):
    voc.image("a").write_bytes(voc.image("a").read_bytes()[:-2])
    voc.label("b", np.full(SIZE, 77))
    voc.mask("c").write_bytes(b"")
    Image.new("RGB", (5, 5)).save(voc.image("d"))
    code, text, found = checked(voc, capsys)
    assert code == 2 and "problems: 4, warnings: " in text
    listed = {Path(problem["files"][0]).name: problem for problem in found["problems"] if problem["serious"]}
    assert list(listed) == ["a.jpg", "b.png", "c.png", "d.png"]
    assert "the end mark of a JPEG is missing" in listed["a.jpg"]["reason"]
    assert listed["a.jpg"]["remedy"] == "unpack or download it again"
    assert "[77]" in listed["b.png"]["reason"] and listed["b.png"]["remedy"] == "give the original label files"
    assert "(it is empty)" in listed["c.png"]["reason"] and "same size" in listed["d.png"]["remedy"]


def test_both_files_of_a_pair_are_looked_at(voc, capsys):
    voc.image("a").write_bytes(b"")
    voc.mask("a").write_bytes(b"")
    assert [Path(p["files"][0]).name for p in checked(voc, capsys)[2]["problems"]] == ["a.jpg", "a.png"]


def test_a_picture_of_two_splits_is_a_problem_in_whatever_kind_of_file(voc, capsys):
    Image.open(voc.image("a")).save(voc.image("c"), "PNG")  # the same pixels, not the same bytes
    code, _, found = checked(voc, capsys)
    (problem,) = found["problems"]
    assert code == 2 and "more than one split: 1;" in problem["reason"]
    assert problem["files"] == [str(voc.image("a")), str(voc.image("c"))]


def test_a_picture_twice_in_a_split_is_a_warning(voc, capsys):
    voc.picture("b", seed=ord("a"))
    code, _, found = checked(voc, capsys)
    assert code == 0 and ["several times" in problem["reason"] for problem in found["problems"]] == [True]


def test_a_class_that_is_scored_and_never_trained_is_named(voc, capsys):
    voc.label("c", np.tile([0, 1], (8, 6)))
    code, _, found = checked(voc, capsys)
    assert code == 0 and ["aeroplane; their IoU" in problem["reason"] for problem in found["problems"]] == [True]


def test_masks_of_0_and_255_are_not_class_ids(voc, capsys):
    for name in "abcd":
        voc.label(name, np.tile([0, 255], (8, 6)))
    code, _, found = checked(voc, capsys)
    assert code == 2 and sum("as masks of 0 and 255" in problem["reason"] for problem in found["problems"]) == 2
    pairs, read = [(voc.image("a"), voc.mask("a"))], check.importlib.import_module("DynamicUNet.voc").read_pair
    with pytest.raises(InputError, match=r"all 1 labels, .*a\.png for one, hold class 0 and ignored pixels"):
        check_pairs(pairs, read)
    voc.label("b", np.zeros(SIZE))  # one without anything to see is no class either
    with pytest.raises(InputError, match=r"all 2 labels, .* hold class 0 and ignored pixels"):
        check_pairs([*pairs, (voc.image("b"), voc.mask("b"))], read)
    check_pairs(pairs[:0], read)  # none is not all


def test_labels_that_are_ignored_everywhere_are_refused_before_training(voc, capsys):
    voc.label("a", np.full(SIZE, 255))
    pairs, read = [(voc.image("a"), voc.mask("a"))], check.importlib.import_module("DynamicUNet.voc").read_pair
    with pytest.raises(InputError, match=r"all 1 labels, .*a\.png for one, hold ignored pixels \(255\) alone"):
        check_pairs(pairs, read)
    voc.label("b", np.full(SIZE, 255))
    code, _, found = checked(voc, capsys)
    assert code == 2 and "2 of 2 labels of train hold ignored pixels alone" in found["problems"][0]["reason"]
    voc.label("b", np.full(SIZE, 3))
    check_pairs([*pairs, (voc.image("b"), voc.mask("b"))], read)
    assert "hold class 3 alone: of the others nothing can be learned or scored\n" in capsys.readouterr().out


def test_labels_of_one_class_alone_are_said(voc, capsys):
    voc.label("a", np.zeros(SIZE))
    code, _, found = checked(voc, capsys)
    (problem,) = found["problems"]
    assert code == 0 and "1 of 2 labels of train hold a single class (background)" in problem["reason"]
    voc.label("b", np.zeros(SIZE))
    code, _, found = checked(voc, capsys)
    assert code == 2 and "all labelled pixels of train are of one class (background)" in found["problems"][0]["reason"]


def test_a_split_that_cannot_be_opened_does_not_hide_the_other(voc, capsys):
    voc.image("c").unlink()
    code, text, found = checked(voc, capsys)
    assert code == 2 and list(found["splits"]) == ["train"]
    assert "1 of 2 listed images are not in" in found["problems"][0]["reason"]
    voc.image("a").unlink()
    with pytest.raises(SystemExit) as end:
        check.main(["--model", "DynamicUNet", "--data_path", str(voc.root)])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and "listed images are not in" in said


def test_a_json_that_cannot_be_written_is_named(voc, capsys):
    (voc.root / "taken").write_text("a file")
    with pytest.raises(SystemExit) as end:
        check.main(["--model", "DynamicUNet", "--data_path", str(voc.root), "--json", str(voc.root / "taken" / "f")])
    said = capsys.readouterr()
    assert end.value.code == 2 and "--json: the folder" in said.err and said.out == "", "before the data are read"


def test_nothing_of_the_data_is_changed(voc, capsys):
    before = {path: path.stat().st_mtime_ns for path in voc.root.rglob("*")}
    checked(voc, capsys)
    assert {path: path.stat().st_mtime_ns for path in voc.root.rglob("*")} == before


def test_greys_in_a_mask_are_measured_and_classes_counted_above_the_threshold(tmp_path):
    picture, mask = tmp_path / "a.png", tmp_path / "m.png"
    Image.new("RGB", (4, 1)).save(picture)
    Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(mask)
    look = look_at((picture, mask), PairReader(lambda path: MaskFiles()))
    assert look.counts[:3].tolist() == [2, 2, 0] and look.soft_share == 1 / 4 and look.errors == ()


def test_an_error_is_taken_apart_at_its_last_semicolon():
    assert split_message("a (b; c); do d") == ("a (b; c)", "do d")
    assert split_message("only this") == ("only this", "mend the file, or leave it out")
