"""common/scores/windows.py: a picture by overlapping windows."""

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import decode
from common.data.colours import picture_to_input
from common.data.decode import large_pictures, open_image
from common.device.world import World
from common.errors import InputError
from common.scores import drawing, predict
from common.scores import windows as module
from common.scores.windows import Segmenter, Window, foreground, windows


@pytest.mark.parametrize(
    ("side", "window"), [(14000, 2048), (2049, 2048), (2048, 2048), (100, 64), (1000, 65), (5, 64)]
)
def test_kept_parts_cover_a_side_once_and_lie_in_their_windows(side, window):
    found = windows(side, window)
    assert [each.keep for each in found] == [0, *(each.until for each in found[:-1])] and found[-1].until == side
    for each in found:
        assert 0 <= each.start <= each.keep < each.until <= each.end <= side
        assert each.end - each.start == min(side, window)
        # a rim of the window that is no rim of the picture is not kept
        assert each.start == 0 or each.keep - each.start >= window // module.RIM
        assert each.end == side or each.end - each.until >= window // module.RIM
    assert windows(5, 8) == [Window(0, 5, 0, 5)]


class Blurred(torch.nn.Module):
    """Two classes, by the mean of 5 x 5 pixels; `sizes`: of what it was given."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, images):
        self.sizes.append(tuple(images.shape[-2:]))
        grey = torch.nn.functional.avg_pool2d(images[:, :1], 5, 1, 2, count_include_pad=False)
        return torch.cat([-grey, grey], dim=1)


def noise(height, width) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_windows_give_what_the_whole_picture_gives(monkeypatch):
    monkeypatch.setattr(module, "WHOLE_PIXELS", 100)
    image, world, model = noise(150, 201), World(torch.device("cpu")), Blurred()
    whole = Segmenter(model, picture_to_input, world, 0, None, True)(image)
    assert model.sizes.pop() == (150, 201)
    parts = Segmenter(model, picture_to_input, world, 64, None, True)(image)
    assert set(model.sizes) == {(64, 64)} and len(model.sizes) == len(windows(150, 64)) * len(windows(201, 64))
    assert np.array_equal(parts.ids, whole.ids) and 0.2 < whole.ids.mean() < 0.8
    assert np.abs(parts.probability.astype(int) - whole.probability).max() <= 1


def test_a_picture_of_usual_size_is_predicted_whole():
    model = Blurred()
    Segmenter(model, picture_to_input, World(torch.device("cpu")), 64)(noise(100, 90))
    assert model.sizes == [(100, 90)]


def test_the_probability_of_two_logits_is_that_of_their_difference():
    logits = torch.tensor([[[[1.0]], [[3.0]]]])
    assert foreground(logits).item() == pytest.approx(1 / (1 + np.exp(-2)))
    assert foreground(logits.half()).dtype == torch.float32


def test_a_large_picture_is_decoded_where_it_is_asked_for_alone(tmp_path, monkeypatch):
    noise(40, 50).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)  # 40 x 50 is more than twice as many
    with pytest.raises(InputError, match=r"more than 1,800 pixels"):
        open_image(tmp_path / "a.png")
    with large_pictures():
        assert open_image(tmp_path / "a.png").size == (50, 40)
    assert Image.MAX_IMAGE_PIXELS == 900
    monkeypatch.setattr(decode, "LARGE_PIXELS", 1000)
    with large_pictures(), pytest.raises(InputError, match=r"more than 1,000 pixels"):
        open_image(tmp_path / "a.png")


def test_the_overlay_of_a_large_picture_is_made_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "OVERLAY_PIXELS", 600)
    info = type("Info", (), {"class_names": ("a", "b"), "palette": ((0, 0, 0), (9, 9, 9))})
    seen = module.Seen(np.zeros((40, 50), np.uint8))
    path = predict._write(tmp_path / "x", noise(40, 50), seen, {0: 1.0}, info)
    assert Image.open(path).size == (25, 20 + drawing.LEGEND_ROW)
    assert Image.open(tmp_path / "x_ids.png").size == (50, 40)
