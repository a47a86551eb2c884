"""common/scores/submission.py: predictions in the official forms of the data sets, scored there as they are here."""

import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ci.tests.common_workers import world
from ci.tests.folders import FOLDERS, module, parsed
from common.data.cityscapes import LABELS
from common.data.pictures import LabelledPictures, Source, SubmissionForm
from common.errors import InputError
from common.samples.layout import draw
from common.scores.evaluate import Evaluation
from common.scores.scored import Evaluator, Scored
from common.scores.submission import check_submission

BY_LAYOUT = {module(folder, "presets").LAYOUT: folder for folder in FOLDERS}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """drawn(layout) -> a folder of two training and three validation pictures of 40 x 56."""
    root = tmp_path_factory.mktemp("drawn")
    return lambda layout: draw(layout, root / layout, train_images=2, val_images=3, size=(40, 56))


def submitted(layout: str, root: Path, output: Path, **flags) -> tuple[LabelledPictures, Scored, list[Path]]:
    """(the data set, what a random network scores, the files of --submission below its folder)."""
    folder = BY_LAYOUT[layout]
    words = ["--preset=tiny", "--evaluate", "--checkpoint=x.pt", f"--data_path={root}", f"--submission={output}"]
    args = parsed(folder, *words, **flags)
    dataset = module(folder, "data").build_datasets(args).val
    torch.manual_seed(1)
    channels = dataset.info.num_classes
    model = nn.Sequential(nn.Conv2d(3, channels, 5, padding=2), nn.InstanceNorm2d(channels))  # each class is seen
    submission = check_submission(args, dataset)
    scored = Evaluator(Evaluation(world(), 2), None).score(model, dataset, print, submission)
    return dataset, scored, sorted(path.relative_to(output) for path in output.rglob("*") if path.is_file())


def official_iou(pairs: list[tuple[Path, Path]]) -> dict[str, float]:
    """By the rules of cityscapesScripts, of (label file, prediction file) of label ids."""
    truth, seen = (np.concatenate([np.array(Image.open(pair[k])).ravel() for pair in pairs]) for k in (0, 1))
    ignored = [label.label_id for label in LABELS if label.train_id == 255]
    scores = {}
    for label in LABELS:
        if label.label_id not in ignored:
            is_true, is_seen = truth == label.label_id, seen == label.label_id
            right, missed = (is_true & is_seen).sum(), (is_true & ~is_seen).sum()
            alarms = (is_seen & ~is_true & ~np.isin(truth, ignored)).sum()
            scores[label.name] = right / (right + missed + alarms) if right + missed + alarms else np.nan
    return scores


def test_cityscapes_files_score_officially_what_they_score_here(drawn, tmp_path):
    root = drawn("cityscapes")
    dataset, scored, files = submitted("cityscapes", root, tmp_path / "out")
    assert len(files) == 3 and all(str(file).endswith("_labelIds.png") for file in files)
    of_image = {image.name.removesuffix("_leftImg8bit.png"): label for image, label in dataset.pairs}
    pairs = [(of_image[file.name.removesuffix("_labelIds.png")], tmp_path / "out" / file) for file in files]
    expected = official_iou(pairs)
    assert scored.class_scores() == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert (
        scored.scores()["miou"] == pytest.approx(np.nanmean(list(expected.values())), abs=1e-6) and len(expected) == 19
    )
    assert scored.scores()["miou"] > 0.005
    assert {Image.open(path).mode for _, path in pairs} == {"L"}


def test_cityscapes_scripts_say_the_same(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # which NumPy 2.4 has no more
    official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    dataset, scored, _ = submitted("cityscapes", drawn("cityscapes"), tmp_path / "out")
    settings = official.args
    settings.evalInstLevelScore, settings.quiet, settings.JSONOutput = False, True, False
    settings.predictionPath, settings.predictionWalk = str(tmp_path / "out"), None
    labels = [str(label) for _, label in dataset.pairs]
    found = official.evaluateImgLists([official.getPrediction(settings, label) for label in labels], labels, settings)
    assert scored.scores()["miou"] == pytest.approx(found["averageScoreClasses"], abs=1e-6)


def test_a_split_without_labels_is_predicted_and_not_scored(drawn, tmp_path):
    root = tmp_path / "cityscapes"
    shutil.copytree(drawn("cityscapes") / "leftImg8bit" / "val", root / "leftImg8bit" / "test")
    dataset, scored, files = submitted("cityscapes", root, tmp_path / "out", eval_split="test")
    assert scored.metric is None and len(files) == 3
    assert scored.details()["protocol"]["labelled"] is False
    with pytest.raises(InputError, match="no labels here.*--submission FOLDER"):
        check_submission(Namespace(submission="", evaluate=True), dataset)

    root = shutil.copytree(drawn("voc"), tmp_path / "voc")
    lists = root / "VOC2012" / "ImageSets" / "Segmentation"
    shutil.copy(lists / "val.txt", lists / "test.txt")
    shutil.rmtree(root / "VOC2012" / "SegmentationClass")
    (root / "VOC2012" / "SegmentationClass").mkdir()
    _, scored, files = submitted("voc", root, tmp_path / "voc_out", eval_split="test")
    assert scored.metric is None and len(files) == 3 and {file.parts[-2] for file in files} == {"comp6_test_cls"}

    root = shutil.copytree(drawn("isic"), tmp_path / "isic")
    shutil.rmtree(root / "test_GT", ignore_errors=True)
    shutil.rmtree(root / "test", ignore_errors=True)
    (root / "valid").rename(root / "test")
    _, scored, files = submitted("isic", root, tmp_path / "isic_out", eval_split="test")
    assert scored.metric is None and len(files) == 3


def test_voc_masks_have_the_colours_and_places_of_its_archive(drawn, tmp_path):
    dataset, scored, files = submitted("voc", drawn("voc"), tmp_path / "out")
    assert {file.parent for file in files} == {Path("results/VOC2012/Segmentation/comp6_val_cls")}
    right = total = 0
    for (image, mask), file in zip(dataset.pairs, files, strict=True):
        written = Image.open(tmp_path / "out" / file)
        assert written.mode == "P" and written.size == Image.open(image).size and file.stem == image.stem
        assert written.getpalette()[: 3 * 21] == [part for colour in dataset.info.palette for part in colour]
        ids, truth = np.array(written), np.array(Image.open(mask))
        right, total = right + ((ids == truth) & (truth != 255)).sum(), total + (truth != 255).sum()
    assert scored.scores()["pixel_accuracy"] == pytest.approx(right / total, abs=1e-12)


def test_isic_masks_are_black_and_white_at_the_size_of_the_picture(drawn, tmp_path):
    dataset, _, files = submitted("isic", drawn("isic"), tmp_path / "out")
    assert dataset.scored_size == (64, 64)
    for (image, _), file in zip(dataset.pairs, files, strict=True):
        written = Image.open(tmp_path / "out" / file)
        assert str(file) == f"{image.stem}_segmentation.png" and written.size == Image.open(image).size == (56, 40)
        assert written.mode == "L" and set(np.unique(written)) == {0, 255}


def test_names_that_meet_are_refused():
    info = module(FOLDERS[0], "data").INFO._replace(submission=None)
    pictures = LabelledPictures(Source([(Path("a/x.png"), None), (Path("b/x.png"), None)], lambda _: None, info))
    pictures.read = type("Reader", (), {"exif": None})()
    with pytest.raises(InputError, match=r"a/x.png and b/x.png would both be x.png"):
        check_submission(Namespace(submission="out", evaluate=True), pictures)
    pictures.info = info._replace(submission=SubmissionForm(lambda image, _: image, None))
    with pytest.raises(InputError, match="without --evaluate"):
        check_submission(Namespace(submission="out", evaluate=False), pictures)
