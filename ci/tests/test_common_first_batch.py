"""common/record/first_batch.py: what a training is given, as a picture."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from ci.tests import small_folder
from common.data.colours import normalize
from common.data.pictures import DatasetInfo
from common.record.first_batch import NAME, draw_batch, shown_first
from common.scores.drawing import LEGEND_ROW, void_colour
from common.start import carry_out

INFO = DatasetInfo(("background", "thing"), ((0, 0, 0), (200, 0, 0)))


def test_pictures_lie_under_their_masks_and_ignored_pixels_are_not_black():
    grey = torch.full((2, 3, 2, 3), 100, dtype=torch.uint8)
    target = torch.tensor([[[0, 1, 255]] * 2, [[1, 1, 1]] * 2])
    got = draw_batch(normalize(grey, INFO.mean, INFO.std), target, INFO)
    assert got.dtype == np.uint8 and got.shape == (2 + 3 * LEGEND_ROW, 6, 3)
    void = [round(0.6 * 100 + 0.4 * value) for value in void_colour(INFO.palette)]
    assert got[0].tolist() == [[60, 60, 60], [140, 60, 60], void] + [[140, 60, 60]] * 3
    assert void_colour(INFO.palette) == (224, 224, 192)
    soft = torch.tensor([[[0.4, 0.6, 255.0]] * 2] * 2)
    assert draw_batch(normalize(grey, INFO.mean, INFO.std), soft, INFO)[0, :3].tolist() == got[0, :3].tolist()


def test_a_batch_is_laid_out_in_rows_of_four():
    images, target = torch.zeros(5, 3, 10, 20), torch.zeros(5, 10, 20, dtype=torch.int64)
    got = draw_batch(images, target, INFO)
    assert got.shape == (2 * 10 + LEGEND_ROW, 4 * 20, 3) and (got[10:20, 20:] == 255).all()


def test_a_run_writes_it_before_its_first_step_and_one_that_goes_on_does_not(tmp_path):
    args = small_folder.arguments(tmp_path / "run", max_steps=3)
    seen = []

    def main(args, run, data, model):
        run.prepare(model)
        run.optimizer(model.parameters())
        for _, images, target in run.steps(data.train):
            seen.append(Path(args.output_dir, NAME).is_file())
            run.step(small_folder.training_loss(run.network(images), target))
        return run.finish()

    carry_out(main, small_folder.build, args, small_folder)
    assert seen == [True] * 3
    with Image.open(tmp_path / "run" / NAME) as picture:
        assert picture.mode == "RGB" and picture.width == 2 * small_folder.IMAGE_SIZE[1]


def test_of_a_step_in_parts_the_first_is_drawn(tmp_path):
    log = SimpleNamespace(output_dir=tmp_path, world=SimpleNamespace(is_main=True))
    parts = [(0, torch.zeros(count, 3, 4, 4), torch.zeros(count, 4, 4, dtype=torch.int64)) for count in (2, 1)]
    assert len(list(shown_first(parts, SimpleNamespace(info=INFO), log))) == 2
    with Image.open(tmp_path / NAME) as picture:
        assert picture.width == 2 * 4


def test_only_the_first_batch_of_the_main_process_is_drawn(tmp_path):
    batch = torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)
    train_set = SimpleNamespace(info=INFO)
    for name, first_step, is_main in (("goes_on", 4, True), ("other_rank", 0, False)):
        log = SimpleNamespace(output_dir=tmp_path / name, world=SimpleNamespace(is_main=is_main))
        assert [step for step, *_ in shown_first([(first_step, *batch)], train_set, log)] == [first_step]
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_where_nothing_can_be_written(tmp_path):
    (tmp_path / "taken").write_text("a file")
    said = []
    log = SimpleNamespace(output_dir=tmp_path / "taken", world=SimpleNamespace(is_main=True), say=said.append)
    batch = torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)
    assert len(list(shown_first([(0, *batch)], SimpleNamespace(info=INFO), log))) == 1
    assert len(said) == 1 and "first_batch.png cannot be written" in said[0]
