"""common/scores/metrics.py against mmsegmentation, torchmetrics, cityscapesScripts and counting by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data.cityscapes import LABELS, TRAIN_ID_OF_LABEL_ID
from common.scores.metrics import ConfusionMatrix

GOLDEN = Path(__file__).parent / "golden"
MANIFEST = json.loads((GOLDEN / "metrics.json").read_text())
CONFUSION_CASES = [name for name in MANIFEST if name.startswith("confusion.")]


def golden_maps(case, *parts):
    with np.load(GOLDEN / "metrics.npz") as arrays:
        return [torch.from_numpy(arrays[f"{case}.{part}"].astype(np.int64)) for part in parts]


def golden_matrix(case):
    label, prediction = golden_maps(case, "label", "pred")
    matrix = ConfusionMatrix(MANIFEST[case]["num_classes"], MANIFEST[case]["ignore_index"])
    matrix.update(prediction, label)
    return matrix


def logits_that_choose(class_ids, num_classes):
    """Random logits [B, C, H, W] whose largest is that of the class."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.rand(class_ids.shape[0], num_classes, *class_ids.shape[1:], generator=generator)
    return logits.scatter_add(1, class_ids[:, None], torch.ones_like(logits[:, :1]))


def or_nan(values):
    return [math.nan if value is None else value for value in values]


@pytest.mark.parametrize("case", CONFUSION_CASES)
def test_counts_are_those_of_the_golden_matrix_with_truth_in_rows(case):
    assert golden_matrix(case).counts.tolist() == MANIFEST[case]["confusion_rows_label"]


@pytest.mark.parametrize("case", CONFUSION_CASES)
def test_scores_are_those_of_mmsegmentation(case):
    matrix, expected = golden_matrix(case), MANIFEST[case]["mmseg"]
    assert matrix.intersection().tolist() == expected["area_intersect"]
    assert matrix.union().tolist() == expected["area_union"]
    assert matrix.iou().tolist() == pytest.approx(or_nan(expected["IoU"]), rel=0, abs=1e-12, nan_ok=True)
    assert matrix.class_accuracy().tolist() == pytest.approx(or_nan(expected["Acc"]), rel=0, abs=1e-12, nan_ok=True)
    assert matrix.miou() == pytest.approx(expected["mIoU"], rel=0, abs=1e-12)
    assert matrix.mean_class_accuracy() == pytest.approx(expected["mAcc"], rel=0, abs=1e-12)
    assert matrix.pixel_accuracy() == pytest.approx(expected["aAcc"], rel=0, abs=1e-12)


@pytest.mark.parametrize("case", CONFUSION_CASES)
def test_scores_agree_with_torchmetrics(case):
    matrix, expected = golden_matrix(case), MANIFEST[case]["torchmetrics"]
    assert matrix.iou().nan_to_num(0).tolist() == pytest.approx(expected["jaccard_none"], abs=1e-6)
    assert matrix.miou() == pytest.approx(expected["jaccard_macro"], abs=1e-6)
    assert matrix.class_accuracy().nan_to_num(0).tolist() == pytest.approx(expected["accuracy_none"], abs=1e-6)
    assert matrix.pixel_accuracy() == pytest.approx(expected["accuracy_micro"], abs=1e-6)


@pytest.mark.parametrize("case", CONFUSION_CASES)
def test_the_reference_of_icnet_counts_absent_classes_as_zero_and_we_leave_them_out(case):
    matrix, expected = golden_matrix(case), MANIFEST[case]["icnet"]
    iou = matrix.iou()
    absent = int(iou.isnan().sum())
    assert iou.nan_to_num(0).mean().item() == pytest.approx(expected["mIoU"], abs=1e-6)
    assert matrix.pixel_accuracy() == pytest.approx(expected["pixAcc"], abs=1e-6)
    # one number follows from the other: the sum over classes is shared, the number of classes is not
    assert matrix.miou() * (len(iou) - absent) / len(iou) == pytest.approx(expected["mIoU"], abs=1e-6)
    assert absent == (MANIFEST[case]["absent_everywhere"] is not None)


def official_class_iou(counts):
    """cityscapesScripts: predictions on ignored truth do not count, predictions of ignored ids are misses."""
    scored = [label.label_id for label in LABELS if label.train_id != 255]
    iou = {}
    for c in scored:
        hits = counts[c][c]
        misses = sum(counts[c]) - hits
        false_alarms = sum(counts[truth][c] for truth in scored if truth != c)
        total = hits + misses + false_alarms
        iou[LABELS[c].name] = hits / total if total else math.nan
    return iou


def test_official_cityscapes_scores_follow_from_the_counts_of_label_ids():
    truth, prediction = golden_maps("cityscapes.pair", "gt_label_ids", "pred_label_ids")
    matrix = ConfusionMatrix(34)
    matrix.update(prediction[None], truth[None])
    expected = MANIFEST["cityscapes.pair"]["classScores"]
    iou = official_class_iou(matrix.counts.tolist())
    assert len(iou) == 19
    for name, value in iou.items():
        assert value == pytest.approx(or_nan([expected[name]])[0], rel=0, abs=1e-12, nan_ok=True), name
    mean = np.nanmean(list(iou.values()))
    assert mean == pytest.approx(MANIFEST["cityscapes.pair"]["averageScoreClasses"], rel=0, abs=1e-12)


def test_a_matrix_of_train_ids_gives_the_official_scores_when_only_the_19_classes_are_predicted():
    truth, prediction = golden_maps("cityscapes.pair", "gt_label_ids", "pred_label_ids")
    train_id = torch.from_numpy(TRAIN_ID_OF_LABEL_ID.astype(np.int64))
    label_id = torch.tensor([label.label_id for label in sorted(LABELS, key=lambda label: label.train_id)[:19]])
    prediction = torch.where(train_id[prediction] == 255, 10, train_id[prediction])  # what is not scored becomes sky

    by_label_id, by_train_id = ConfusionMatrix(34), ConfusionMatrix(19)
    by_label_id.update(label_id[prediction][None], truth[None])
    by_train_id.update(prediction[None], train_id[truth][None])

    official = official_class_iou(by_label_id.counts.tolist())
    ours = by_train_id.iou().tolist()
    assert ours == pytest.approx([official[LABELS[i].name] for i in label_id.tolist()], abs=1e-12, nan_ok=True)
    assert by_train_id.miou() == pytest.approx(np.nanmean(list(official.values())), abs=1e-12)


def test_scores_of_six_pixels_counted_by_hand():
    matrix = ConfusionMatrix(3)
    #                             hit  0 as 1 hit  1 as 0 hit  ignored
    matrix.update(torch.tensor([[[0, 1, 1], [0, 1, 2]]]), torch.tensor([[[0, 0, 1], [1, 1, 255]]]))
    assert matrix.counts.tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert matrix.iou().tolist() == pytest.approx([1 / 3, 2 / 4, math.nan], nan_ok=True)
    assert matrix.scores() == pytest.approx(
        {
            "miou": (1 / 3 + 1 / 2) / 2,
            "pixel_accuracy": 3 / 5,
            "mean_class_accuracy": (1 / 2 + 2 / 3) / 2,
            "frequency_weighted_iou": 2 / 5 * 1 / 3 + 3 / 5 * 1 / 2,
            "mean_dice": (2 / 4 + 4 / 6) / 2,
        }
    )
    assert next(iter(matrix.scores())) == "miou"  # the first score chooses the best checkpoint


@pytest.mark.parametrize("case", CONFUSION_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_count_like_the_class_ids_of_their_largest(case, dtype):
    label, prediction = golden_maps(case, "label", "pred")
    matrix = ConfusionMatrix(MANIFEST[case]["num_classes"])
    matrix.update(logits_that_choose(prediction, matrix.num_classes).to(dtype), label)
    assert matrix.counts.tolist() == MANIFEST[case]["confusion_rows_label"]


def test_maps_of_eight_bits_do_not_overflow():
    label, prediction = golden_maps("cityscapes.pair", "gt_label_ids", "pred_label_ids")
    wide, narrow = ConfusionMatrix(34), ConfusionMatrix(34)
    wide.update(prediction[None], label[None])
    narrow.update(prediction[None].byte(), label[None].byte())
    assert narrow.counts.tolist() == wide.counts.tolist()


@pytest.mark.parametrize("case", CONFUSION_CASES)
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_neither_order_nor_batch_size_changes_the_counts(case, batch_size):
    label, prediction = golden_maps(case, "label", "pred")
    order = list(reversed(range(len(label))))
    matrix = ConfusionMatrix(MANIFEST[case]["num_classes"])
    for start in range(0, len(order), batch_size):
        matrix.update(prediction[order[start : start + batch_size]], label[order[start : start + batch_size]])
    assert matrix.counts.tolist() == MANIFEST[case]["confusion_rows_label"]


@pytest.mark.parametrize("ignore_index", [255, -1, 2])
def test_ignored_pixels_do_not_count_whatever_their_value(ignore_index):
    matrix = ConfusionMatrix(4, ignore_index)
    matrix.update(torch.tensor([[[0, 1, 2, 3]]]), torch.tensor([[[0, ignore_index, ignore_index, 3]]]))
    assert matrix.counts.nonzero().tolist() == [[0, 0], [3, 3]]
    assert matrix.counts.sum() == 2


@pytest.mark.parametrize("case", CONFUSION_CASES)
def test_pixels_are_those_that_are_counted(case):
    """The scores of a batch that is counted twice are the same; the number of pixels tells."""
    label, prediction = golden_maps(case, "label", "pred")
    once, twice = golden_matrix(case), golden_matrix(case)
    twice.update(prediction, label)
    assert once.pixels() == (label != MANIFEST[case]["ignore_index"]).sum().item() > 0
    assert twice.pixels() == 2 * once.pixels()
    assert twice.scores() == pytest.approx(once.scores())


def test_without_a_labelled_pixel_every_score_is_nan():
    matrix = ConfusionMatrix(3)
    matrix.update(torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), 255))
    assert all(math.isnan(score) for score in matrix.scores().values())
    assert matrix.pixels() == 0


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 8, 8).long(), r"\[1, 4, 4\].*\[1, 8, 8\].*resize the logits"),
        (torch.zeros(2, 4, 4).long(), torch.zeros(1, 4, 4).long(), r"\[2, 4, 4\].*\[1, 4, 4\]"),
        (torch.zeros(1, 5, 4, 4), torch.zeros(1, 4, 4).long(), r"\[1, 5, 4, 4\].*3 classes"),
        (torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4).long(), r"\[1, 2, 4, 4\].*3 classes"),
        (torch.zeros(3, 4, 4), torch.zeros(3, 4).long(), r"\[3, 4, 4\]"),
    ],
)
def test_wrong_shapes_are_refused(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(3).update(prediction, target)


def counted_pixel_by_pixel(prediction, target, num_classes, ignore_index):
    counts = [[0] * num_classes for _ in range(num_classes)]
    for predicted, true in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
        if true != ignore_index:
            counts[true][predicted] += 1
    return counts


@pytest.mark.parametrize("num_classes, ignore_index", [(19, 255), (2, 255), (5, -1), (5, 2)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
def test_counts_are_those_of_a_loop_over_the_pixels(num_classes, ignore_index, dtype):
    generator = torch.Generator().manual_seed(4)
    matrix, expected = ConfusionMatrix(num_classes, ignore_index), torch.zeros(num_classes, num_classes).long()
    for size in ((2, 7, 11), (1, 5, 3)):
        prediction, target = torch.randint(0, num_classes, (2, *size), generator=generator).to(dtype)
        target[torch.rand(size, generator=generator) < 0.2] = ignore_index
        matrix.update(prediction, target)
        expected += torch.tensor(counted_pixel_by_pixel(prediction, target, num_classes, ignore_index))
    assert matrix.counts.dtype == torch.int64
    assert matrix.counts.tolist() == expected.tolist()


def test_counts_beyond_the_whole_numbers_of_float32():
    """As they are after a whole data set: 2^24 + 1 is no float32."""
    matrix = ConfusionMatrix(2)
    matrix.bins += 2**24
    matrix.bins[-1] = 0
    matrix.update(torch.ones(1, 1, 1).long(), torch.ones(1, 1, 1).long())
    assert matrix.counts.tolist() == [[2**24, 2**24], [2**24, 2**24 + 1]]


READINGS = ["counts", "scores", "class_scores", "iou", "pixel_accuracy", "pixels"]


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("label, prediction", [(3, 0), (3, 2), (7, 0), (254, 2), (-1, 1), (0, 3), (1, -1), (2, 255)])
def test_an_id_that_is_no_class_is_refused_and_not_counted_elsewhere(label, prediction, reading):
    """When the counts are read: looking at a batch would be waiting for it."""
    matrix = ConfusionMatrix(3, class_names=("a", "b", "c"))
    matrix.update(torch.tensor([[[0, prediction]]]), torch.tensor([[[0, label]]]))
    with pytest.raises(ValueError, match=r"beyond 2.*0\.\.2.*255"):
        value = getattr(matrix, reading)
        value()
    assert matrix.bins.nonzero().flatten().tolist() == [0, len(matrix.bins) - 1]


def test_an_id_that_is_no_class_is_refused_by_every_process(monkeypatch):
    """Were it one of them alone, the others would wait for it."""
    ours, theirs = ConfusionMatrix(3), ConfusionMatrix(3)
    theirs.update(torch.zeros(1, 1, 1).long(), torch.full((1, 1, 1), 7))
    monkeypatch.setattr("common.scores.metrics.sum_over_ranks", lambda bins: bins.add_(theirs.bins))
    ours.sum_over_ranks()
    with pytest.raises(ValueError, match="beyond 2"):
        ours.scores()
