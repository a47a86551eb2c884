"""common/scores/views.py: windows, scales and mirrored pictures, by loops over pixels in NumPy."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ci.tests.common_workers import Scenes, seeded_model, world
from common.errors import InputError
from common.scores import evaluate as evaluate_module
from common.scores.evaluate import Evaluation, evaluate
from common.scores.images import ImageScores, ranked
from common.scores.metrics import ConfusionMatrix, class_ids
from common.scores.views import Views


class Uneven(torch.nn.Module):
    """Three classes, which depend on what is around a pixel; `sizes`: of what it was given."""

    def __init__(self, channels: int = 3):
        super().__init__()
        torch.manual_seed(4)
        self.layer, self.sizes = torch.nn.Conv2d(3, channels, 3, padding=1), []

    def forward(self, images):
        self.sizes.append(tuple(images.shape[-2:]))
        return 3 * self.layer(images) + images.mean((1, 2, 3), keepdim=True)  # of the whole window


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def images(height=13, width=17) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(7))


def test_what_is_the_whole_picture_is_exactly_that():
    model, shown = Uneven(), images()
    plain = model(shown)
    for views in (Views(), Views((13, 17)), Views((40, 50), (1, 1)), Views(scales=(1.0,))):
        assert torch.equal(views(model, shown), plain)


def test_the_logits_of_a_pixel_are_the_mean_over_its_windows():
    model, shown = Uneven(), images()
    found = Views((6, 8), (5, 4))(model, shown)
    assert set(model.sizes) == {(6, 8)}
    total, counts = np.zeros((2, 3, 13, 17)), np.zeros((13, 17))
    for top in (0, 5, 7):  # the last window ends with the picture
        for left in (0, 4, 8, 9):
            part = model(shown[..., top : top + 6, left : left + 8]).numpy()
            total[..., top : top + 6, left : left + 8] += part
            counts[top : top + 6, left : left + 8] += 1
    assert np.allclose(found.numpy(), total / counts, atol=1e-5) and counts.max() > 2
    assert not np.allclose(found.numpy(), model(shown).numpy(), atol=1e-2)


@pytest.mark.parametrize("channels", [3, 1])
def test_probabilities_are_averaged_over_scales_and_mirrored_pictures(channels):
    model, shown = Uneven(channels), images()

    def probabilities(logits):
        if channels == 1:
            return 1 / (1 + np.exp(-logits))
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    expected = []
    for scale, size in ((0.75, (10, 13)), (1.0, (13, 17)), (2.0, (26, 34))):  # 9.75, 12.75
        view = F.interpolate(shown, size=size, mode="bilinear") if scale != 1 else shown
        for mirrored in (False, True):
            logits = model(view.flip(-1)).flip(-1) if mirrored else model(view)
            expected.append(probabilities(F.interpolate(logits, size=(13, 17), mode="bilinear").numpy()))
    found = Views(scales=(0.75, 1.0, 2.0), flip=True)(model, shown).numpy()
    assert np.allclose(probabilities(found), np.mean(expected, axis=0), atol=1e-5)


def test_what_is_seen_in_a_symmetric_picture_is_symmetric():
    half = images(9, 6)
    symmetric = torch.cat([half, half.flip(-1)], dim=-1)
    views = Views(scales=(1.0, 2.0), flip=True)
    seen = views(Uneven(), symmetric)
    assert torch.equal(class_ids(seen), class_ids(seen).flip(-1))
    assert torch.allclose(seen, seen.flip(-1), rtol=0, atol=1e-6)  # the logarithm of a vector's last numbers is another
    assert not torch.equal(class_ids(Uneven()(symmetric)), class_ids(Uneven()(symmetric)).flip(-1))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"stride": (9, 9)}, "without --window"),
        ({"window": (8, 8), "stride": (4, 9)}, "leaves gaps"),
    ],
)
def test_windows_that_cannot_be_are_refused(flags, message):
    given = {"window": None, "stride": None, "scales": [1.0], "flip": False} | flags
    with pytest.raises(InputError, match=message):
        Views.of(Namespace(**given))


def test_loss_and_score_of_each_image_are_those_of_a_loop(monkeypatch):
    """Whatever the batches and processes: the rows of all images together, bit for bit."""
    monkeypatch.setattr(evaluate_module, "share_buffers", lambda model, world: None)  # there are no other processes
    model, scenes = seeded_model(), Scenes(7)
    found = {}
    for size in (1, 3):
        rows = []
        for rank in range(size):
            scored = ImageScores(7, world(rank, size))
            evaluate(model, scenes, ConfusionMatrix(4), Evaluation(world(rank, size), 1), scored)
            rows.append(scored)
        whole = rows[0]
        whole.pixels, whole.losses = sum(row.pixels for row in rows), sum(row.losses for row in rows)
        found[size] = whole.scores(), whole.loss()
    assert found[1] == found[3]

    losses, scores = [], []
    for index in range(7):
        pixels, target, _ = scenes[index]
        logits = model.eval()(scenes.finish(pixels.permute(2, 0, 1)[None], None))[0].double().numpy()
        truth, seen = target.numpy(), logits.argmax(0)
        counted = truth != 255
        log_p = logits - np.log(np.exp(logits).sum(0))
        losses += [-log_p[truth[y, x], y, x] for y, x in zip(*counted.nonzero(), strict=True)]
        both = [((truth == c) & (seen == c)).sum() for c in range(4)]
        either = [(((truth == c) | (seen == c)) & counted).sum() for c in range(4)]
        scores.append(np.mean([b / e for b, e in zip(both, either, strict=True) if e]))
    assert found[1][0] == pytest.approx(scores) and found[1][1] == pytest.approx(np.mean(losses), abs=1e-6)


def test_images_are_ranked_by_score():
    assert ranked([0.4, float("nan"), 0.9, 0.1, 0.5]) == {"worst": 3, "median": 0, "best": 2}
    assert ranked([float("nan")]) == {} and ranked([0.3]) == {"worst": 0, "median": 0, "best": 0}
