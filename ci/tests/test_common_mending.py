"""common/data/mending.py: `check --fix` writes a data set that can be used beside one that cannot."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ci.tests.test_common_survey import SIZE, Voc
from common import terminal as terminal_module
from common.data.cityscapes import LABEL_IDS
from common.data.labels import MaskFiles, shown_values
from common.data.mending import _as_stored, _mask_of, read_stored
from common.tools import check
from DynamicUNet.voc import PALETTE

IDS = np.zeros(SIZE, np.uint8)
IDS[2:5], IDS[0] = 15, 255


def snapshot(root: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in root.rglob("*") if path.is_file()}


def fixed(model: str, root: Path, target: Path, *words: str) -> tuple[int, dict]:
    """Exit code and JSON of a check with --fix; nothing of the data is changed."""
    before, file = snapshot(root), target.with_suffix(".json")
    flags = ["--model", model, "--data_path", str(root), "--fix", str(target), "--json", str(file), *words]
    code = check.main(flags)
    assert snapshot(root) == before
    assert sorted(path.name for path in target.parent.glob(f".{target.name}*")) == []
    return code, json.loads(file.read_text())["fixed"]


def palette_of(path: Path, order: list[int]) -> None:
    """IDS with the palette sorted anew: the colours are the published ones, and the indices are places in `order`."""
    indices = np.zeros(SIZE, np.uint8)
    for place, class_id in enumerate(order):
        indices[class_id == IDS] = place
    image = Image.fromarray(indices)
    colours = [(224, 224, 192) if class_id == 255 else PALETTE[class_id] for class_id in order]
    image.putpalette([part for colour in colours for part in colour])
    image.save(path)


def test_a_published_data_set_is_written_without_what_is_wrong(tmp_path, capsys):
    voc = Voc(tmp_path / "data")
    lists = voc.voc / "ImageSets" / "Segmentation"
    for name in "efg":
        voc.picture(name, seed=ord(name))
        voc.label(name, IDS)
    palette_of(voc.mask("a"), [0, 255, 15])
    voc.image("b").write_bytes(voc.image("b").read_bytes()[:-2])
    Image.fromarray(IDS).save(voc.mask("e"), format="JPEG")
    Image.open(voc.image("c")).save(voc.image("f"), "PNG")  # in train and in val
    (lists / "train.txt").write_text("a\nb\ne\nf\ng\n")
    (lists / "trainval.txt").write_text("a\nb\nc\nd\ne\nf\ng\n")
    target = tmp_path / "new" / "mended"
    code, done = fixed("DynamicUNet", voc.root, target)
    assert code == 4 and done["problems"] == [] and done["labels_anew"] == {"palettes": 1}
    left_out = {Path(one["image"]).stem: (one["split"], one["reason"]) for one in done["left_out"]}
    assert set(left_out) == {"b", "e", "f"} and "JPEG" in left_out["e"][1]
    assert left_out["f"] == ("train", f"the same pixels as {voc.image('c')}")
    assert (target / "excluded.txt").read_text().count("\n") == 3
    new = target / "VOC2012"
    assert (new / "ImageSets" / "Segmentation" / "train.txt").read_text() == "a\ng\n"
    assert (new / "ImageSets" / "Segmentation" / "trainval.txt").read_text() == "a\nc\nd\ng\n"
    label = Image.open(new / "SegmentationClass" / "a.png")
    assert label.mode == "P" and (np.array(label) == IDS).all() and tuple(label.getpalette()[45:48]) == PALETTE[15]
    assert (new / "JPEGImages" / "a.jpg").resolve() == voc.image("a").resolve()
    assert (new / "SegmentationClass" / "c.png").is_symlink()
    said = capsys.readouterr().out
    assert f"python3 DynamicUNet/train.py --data_path={target}" in said and "nothing is wrong" in said


def test_ids_are_those_of_the_label_table(tmp_path):
    train_ids = np.array([[0, 13, 18, 255]], np.uint8)
    image = _as_stored(LABEL_IDS, train_ids)
    assert np.array(image).tolist() == [[7, 26, 33, 0]]
    image.save(tmp_path / "a.png")
    assert (LABEL_IDS.read(tmp_path / "a.png").values == train_ids).all()
    assert LABEL_IDS.reads_as_before(tmp_path / "a.png")


def own(root: Path, masks: dict[str, np.ndarray]) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for name, values in masks.items():
        noise = np.random.default_rng(ord(name)).integers(0, 256, (*SIZE, 3), np.uint8)
        Image.fromarray(noise).save(root / "images" / f"{name}.png")
        Image.fromarray(values).save(root / "masks" / f"{name}_mask.bmp")
    return root


def test_ones_own_colours_become_ids_and_classes_are_written(tmp_path):
    colours = np.array([(0, 0, 0), (9, 200, 9), (200, 9, 9)], np.uint8)
    ids = np.tile([0, 1, 2], (SIZE[0], SIZE[1] // 3))
    root = own(tmp_path / "data", dict.fromkeys("abcdef", colours[ids]))
    (root / "masks" / "f_mask.bmp").write_bytes(b"")  # does not hide what the others show
    code, done = fixed("ICNet", root, tmp_path / "mended", "--preset=own")
    assert (code, done["pictures"], done["labels_anew"], len(done["left_out"])) == (4, 5, {"colours": 5}, 1)
    mask = tmp_path / "mended" / "masks" / "a_mask.png"
    assert (np.array(Image.open(mask)) == ids).all()
    listed = json.loads((tmp_path / "mended" / "classes.json").read_text())
    assert [one["colour"] for one in listed["classes"]] == colours.tolist()


def test_masks_of_0_and_255_become_the_second_of_two_classes(tmp_path, terminal, monkeypatch):
    screen, shown = terminal
    monkeypatch.setattr(terminal_module, "DELAY_S", 0)
    monkeypatch.setattr(sys, "stderr", screen)
    root = own(tmp_path / "data", dict.fromkeys("abcd", np.tile(np.array([0, 255], np.uint8), (8, 6))))
    named = [{"name": name, "ids": [number]} for number, name in enumerate(("rest", "road"))]
    (root / "classes.json").write_text(json.dumps({"classes": named}))
    code, done = fixed("ICNet", root, tmp_path / "mended", "--preset=own")
    assert (code, done["labels_anew"]) == (0, {"masks of 0 and 255": 4})
    assert shown_values(tmp_path / "mended" / "masks" / "a_mask.png") == ({0, 1}, set())
    assert "writing train:" in shown()


def test_masks_that_are_said_in_another_way_become_0_and_255(tmp_path):
    truth = np.where(IDS == 15, 255, 0).astype(np.uint8)
    red, clear = np.zeros((*SIZE, 3), np.uint8), np.full((*SIZE, 4), 255, np.uint8)
    red[..., 0], clear[..., 3] = truth, truth
    for number, pixels in enumerate((truth // 255, red, clear)):
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        assert (_mask_of(read_stored(path, None)) == truth).all()
    blue = red.copy()
    blue[0, 0] = (0, 0, 255)
    Image.fromarray(blue).save(tmp_path / "two.png")
    assert _mask_of(read_stored(tmp_path / "two.png", None)) is None
    for split in ("train", "valid"):
        for folder in (split, f"{split}_GT"):
            (tmp_path / "isic" / folder).mkdir(parents=True)
        noise = np.zeros((*SIZE, 3), np.uint8)  # the same in both splits: to train on what is scored is meant then
        Image.fromarray(noise).save(tmp_path / "isic" / split / "a.png")
        Image.fromarray(red).save(tmp_path / "isic" / f"{split}_GT" / "a_segmentation.png")
    code, done = fixed("AttentionUNet", tmp_path / "isic", tmp_path / "mended")
    assert (code, done["labels_anew"], done["left_out"]) == (2, {"colours": 2}, [])
    assert ["more than one split: 1;" in problem["reason"] for problem in done["problems"]] == [True]
    assert (MaskFiles().read(tmp_path / "mended" / "valid_GT" / "a_segmentation.png").values == truth).all()


@pytest.mark.parametrize("given", ["inside", "taken", "below a file", "hopeless"])
def test_nothing_is_written_where_it_cannot_be_used(tmp_path, given, capsys):
    voc = Voc(tmp_path / "data")
    target = {"inside": voc.root / "new", "taken": voc.voc, "hopeless": tmp_path / "new"}.get(
        given, voc.image("a") / "new"
    )
    if given == "hopeless":
        for name in "ab":
            voc.mask(name).write_bytes(b"")
    before = snapshot(tmp_path)
    with pytest.raises(SystemExit) as end:
        check.main(["--model", "DynamicUNet", "--data_path", str(voc.root), "--fix", str(target)])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and ": error: --fix" in said
    assert snapshot(tmp_path) == before and not (tmp_path / "new").exists()


def test_classes_are_written_into_ones_own_data_when_that_is_asked_for(tmp_path, capsys):
    root = own(tmp_path / "data", dict.fromkeys("abcd", np.tile(np.array([0, 3], np.uint8), (8, 6))))
    words = ["--model", "ICNet", "--preset=own", f"--data_path={root}"]
    assert check.main(words) == 0 and not (root / "classes.json").exists()
    assert check.main([*words, "--write_classes"]) == 0
    assert [one["ids"] for one in json.loads((root / "classes.json").read_text())["classes"]] == [[0], [3]]
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        check.main([*words, "--write_classes"])
    assert end.value.code == 2 and "already exists" in capsys.readouterr().err
