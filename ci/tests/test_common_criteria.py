"""common/step/criteria.py against sums over single pixels, written down from the papers."""

import math

import pytest
import torch
from torch.nn import functional as F

from ci.tests.operators import Operators
from common.step.criteria import LOSSES, Criterion, PixelOptions

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
