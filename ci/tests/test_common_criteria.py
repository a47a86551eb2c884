"""common/step/criteria.py against sums over single pixels, written down from the papers."""

import argparse
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from ci.tests.folders import FOLDERS, module, parsed
from ci.tests.operators import Operators
from ci.tests.test_common_crops import TRAIN_IDS
from common.errors import InputError
from common.step.class_weights import chosen_criterion
from common.step.criteria import LOSSES, Criterion, PixelOptions
from common.values import LOSS_NAMES, loss_terms

CLASSES = 4
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0])
every_loss = pytest.mark.parametrize("name", LOSSES)


@pytest.fixture
def batch():
    """Logits [2, 4, 6, 8] float64 and labels of three of the four classes, a third of them ignored."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, CLASSES - 1, (2, 6, 8), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = 255
    return 2 * torch.randn(2, CLASSES, 6, 8, generator=generator, dtype=torch.float64), labels


def pixels(logits, labels) -> list[tuple[list[float], int]]:
    """(probabilities, true class) of every labelled pixel."""
    found = []
    for image, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for y, row in enumerate(label):
            for x, truth in enumerate(row):
                if truth != 255:
                    powers = [math.exp(channel[y][x]) for channel in image]
                    found.append(([power / sum(powers) for power in powers], truth))
    return found


def by_hand(name, logits, labels, weights=(1.0,) * CLASSES, smoothing=0.0) -> float:
    found = pixels(logits, labels)

    def entropy(probabilities, truth):
        parts = [weights[c] * -math.log(p) for c, p in enumerate(probabilities)]
        return (1 - smoothing) * parts[truth] + smoothing / CLASSES * sum(parts)

    if name == "ohem":
        count = labels.numel() // 16
        hard = [pixel for pixel in found if pixel[0][pixel[1]] <= 0.7]
        found = hard if len(hard) >= count else sorted(found, key=lambda pixel: pixel[0][pixel[1]])[:count]
    if name in ("ce", "ohem"):
        return sum(entropy(*pixel) for pixel in found) / sum(weights[truth] for _, truth in found)
    if name == "focal":
        terms = ((1 - p[t]) ** 2 * weights[t] * -math.log(p[t]) for p, t in found)
        return sum(terms) / sum(weights[truth] for _, truth in found)
    present = {truth for _, truth in found}
    scores = []
    for c in present:
        if name == "dice":
            overlap = sum(p[c] for p, truth in found if truth == c)
            scores.append(1 - 2 * overlap / (sum(p[c] for p, _ in found) + sum(truth == c for _, truth in found)))
        else:  # the Lovasz extension: errors in falling order, each by what its pixel adds to |M| / |Y or M|
            true = {i for i, (_, truth) in enumerate(found) if truth == c}
            errors = {i: abs((truth == c) - p[c]) for i, (p, truth) in enumerate(found)}
            wrong, before, score = set(), 0.0, 0.0
            for i in sorted(errors, key=errors.get, reverse=True):
                wrong.add(i)
                jaccard = len(wrong) / len(true | wrong)
                score, before = score + errors[i] * (jaccard - before), jaccard
            scores.append(score)
    return sum(scores) / len(scores)


@every_loss
@pytest.mark.parametrize("scale", [0.2, 1.0, 4.0])  # of 4, few pixels are hard
def test_a_loss_is_what_its_paper_says(name, scale, batch):
    logits, labels = batch
    assert Criterion({name: 1.0})(scale * logits, labels).item() == pytest.approx(by_hand(name, scale * logits, labels))


@pytest.mark.parametrize("name", ["ce", "ohem", "focal"])
def test_class_weights_and_smoothing(name, batch):
    logits, labels = batch
    weighted = Criterion({name: 1.0}, PixelOptions(WEIGHTS))(logits, labels).item()
    assert weighted == pytest.approx(by_hand(name, logits, labels, WEIGHTS.tolist()))
    if name != "focal":
        smooth = Criterion({name: 1.0}, PixelOptions(WEIGHTS, 0.1))(logits, labels).item()
        assert smooth == pytest.approx(by_hand(name, logits, labels, WEIGHTS.tolist(), 0.1))


def test_cross_entropy_is_torchs(batch):
    logits, labels = batch
    options = {"weight": WEIGHTS.double(), "label_smoothing": 0.2, "ignore_index": 255}
    ours = Criterion({"ce": 1.0}, PixelOptions(WEIGHTS, 0.2))(logits, labels)
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, **options))
    over_all = Criterion({"ce": 1.0}, PixelOptions(over_all_pixels=True))(logits, labels).item()
    assert over_all == pytest.approx(by_hand("ce", logits, labels) * (labels != 255).sum().item() / labels.numel())


@every_loss
def test_gradients_are_those_of_small_differences(name, batch):
    logits, labels = batch
    part = logits[:1, :, :3, :4].clone().requires_grad_()
    if name == "ohem":  # it is not differentiable where a pixel becomes hard; none is near that here
        assert all(abs(p[t] - 0.7) > 1e-3 for p, t in pixels(part, labels[:1, :3, :4]))
    assert torch.autograd.gradcheck(lambda x: Criterion({name: 1.0})(x, labels[:1, :3, :4]), part)


@every_loss
def test_all_ignored_is_zero_with_gradients_of_zero(name):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    weights = PixelOptions(torch.ones(3)) if name in ("ce", "ohem", "focal") else PixelOptions()
    loss = Criterion({name: 1.0}, weights)(logits, torch.full((1, 4, 4), 255))
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


@every_loss
def test_mixed_precision_and_float32_agree_and_nothing_waits_for_the_device(name, batch):
    logits, labels = batch
    expected = Criterion({name: 1.0})(logits, labels).item()
    half = (logits * 8).round().div(8).half()  # exact in 16 bits
    exact = Criterion({name: 1.0})(half.double(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16), Operators() as operators:
        loss = Criterion({name: 1.0})(half, labels)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert Criterion({name: 1.0})(logits.float(), labels).item() == pytest.approx(expected, rel=1e-5)
    assert not operators.unwanted
    # the same operators on a device without values: no shape depends on the labels
    assert Criterion({name: 1.0})(half.to("meta"), labels.to("meta")).shape == ()


def test_a_sum_of_losses_and_logits_of_another_size(batch):
    logits, labels = batch
    small = logits[:, :, ::2, ::2]
    large = F.interpolate(small, size=labels.shape[1:], mode="bilinear")
    both = Criterion({"ce": 1.0, "dice": 0.5})(small, labels).item()
    assert both == pytest.approx(by_hand("ce", large, labels) + 0.5 * by_hand("dice", large, labels))


# ---- in the folders, and by flags


@pytest.mark.parametrize("folder", FOLDERS)
def test_cross_entropy_by_its_name_is_the_loss_of_every_recipe(folder):
    """With the heads, their weights and the sizes of the labels as the folder has them."""
    training_loss = module(folder, "model").training_loss
    channels, strides = {
        "ICNet": (3, (4, 8, 16)), "DeeplabV3": (3, (8, 8)), "BiSeNetv1": (3, (8, 8, 16)),
        "DynamicUNet": (3, (1,)), "AttentionUNet": (1, (1,)),
    }[folder]  # fmt: skip
    outputs = [torch.randn(2, channels, 48 // stride, 64 // stride) for stride in strides]
    target = torch.randint(0, max(2, channels), (2, 48, 64))
    target[:, :9] = 255
    own = training_loss(outputs, target)
    criterion = Criterion({"ce": 1.0}, PixelOptions(over_all_pixels=folder in ("DeeplabV3", "BiSeNetv1")))
    named = training_loss(outputs, target, criterion=criterion)
    assert named.keys() == own.keys()
    alike = torch.full((max(2, channels),), 20.0)
    weighted = criterion._replace(options=criterion.options._replace(class_weights=alike))
    for name, value in own.items():
        torch.testing.assert_close(named[name], value)
        # only the proportions of class weights count: a loss 20 times as large would want another rate
        torch.testing.assert_close(training_loss(outputs, target, criterion=weighted)[name], value)
    assert not torch.allclose(sum(training_loss(outputs, target, criterion=Criterion({"dice": 1.0})).values()), value)


@pytest.fixture
def chosen(tiny_cityscapes, tmp_path, monkeypatch):
    """chosen(loss=..., ...) -> the criterion of an ICNet run with these flags."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tiny_cityscapes(train=3)

    def choose(**flags) -> Criterion | None:
        args = parsed("ICNet", data_path=root, evaluate=0, **flags)
        return chosen_criterion(args, module("ICNet", "data").build_datasets(args).train)

    return choose


def test_without_flags_the_recipe_keeps_its_own_loss(chosen):
    assert chosen() is None and chosen(loss="ce") is None
    assert chosen(loss="ce:2").terms == {"ce": 2.0}
    assert chosen(loss="ce:1,dice:0.5").terms == {"ce": 1.0, "dice": 0.5}
    assert chosen(label_smoothing=0.1).options == PixelOptions(label_smoothing=0.1)


def test_automatic_weights_are_those_of_the_shares_of_the_pixels(chosen, tmp_path, monkeypatch):
    counts = dict.fromkeys(range(19), 0)
    for path in sorted((tmp_path / "cityscapes" / "gtFine" / "train").rglob("*_labelIds.png")):
        for value in np.asarray(Image.open(path)).ravel().tolist():
            if value in TRAIN_IDS:
                counts[TRAIN_IDS[value]] += 1
    total = sum(counts.values())
    expected = [1 / math.log(1.02 + counts[c] / total) for c in range(19)]
    found = chosen(class_weights="auto").options.class_weights
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr("common.step.class_weights._count", None)  # counted once
    assert torch.equal(chosen(class_weights="auto").options.class_weights, found)


def test_weights_of_a_file(chosen, tmp_path):
    names = module("ICNet", "data").INFO.class_names
    path = tmp_path / "weights.json"
    path.write_text(json.dumps({name: number for number, name in enumerate(names)}))
    assert chosen(class_weights=path).options.class_weights.tolist() == list(range(19))
    for content, match in (
        ("{", "it is no JSON"),
        ("[1, 2]", "does not name the classes"),
        (json.dumps(dict.fromkeys(names[:-1], 1)), f"{names[-1]} in one alone"),
        (json.dumps(dict.fromkeys(names, -1)), "at least 0"),
        (json.dumps(dict.fromkeys(names, 0)), "not all 0"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=match):
            chosen(class_weights=path)


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"loss": "dice", "class_weights": "auto"}, "--class_weights is for ce, ohem, focal"),
        ({"loss": "focal", "label_smoothing": 0.1}, "--label_smoothing is for ce, ohem"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, match, chosen):
    with pytest.raises(InputError, match=match):
        chosen(**flags)


@pytest.mark.parametrize("text", ["", "mse", "ce,ce", "ce:0", "ce:x", "ce:nan"])
def test_text_that_is_no_loss_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="loss"):
        loss_terms(text)


def test_every_name_has_its_loss():
    assert tuple(LOSSES) == LOSS_NAMES
