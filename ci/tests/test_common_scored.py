"""common/scores/scored.py: what a result says of its scores, and evaluations for which a device has no memory."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ci.tests import small_folder
from ci.tests.runs import in_two_processes, metric_rows
from ci.tests.small_folder import IMAGE_SIZE, Network, Pictures, arguments, from_reference, main
from common.data.pictures import Datasets
from common.errors import Failed
from common.run import Run
from common.scores.classes import absent, class_table, never_predicted
from common.scores.gallery import CELL, FULL, WHITE, draw_matrix
from common.scores.metrics import ConfusionMatrix
from common.scores.views import Views
from common.start import carry_out

SIDES = tuple(2 * side for side in IMAGE_SIZE)  # of the pictures that are scored


class Large(Pictures):
    """Four times as large as those of the training."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        image, target, draws = super().__getitem__(index)
        return image.repeat(2, 2, 1), target.repeat(2, 2), draws


class Narrow(Network):
    """Has no memory for more than the images of a training step, in the last process; `asked`: what it was given."""

    asked: list[tuple[int, ...]] = []  # noqa: RUF012

    def forward(self, images: Tensor):
        if not self.training:
            self.asked.append(tuple(images.shape))
            is_last = int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1
            if is_last and images[0, 0].numel() > IMAGE_SIZE[0] * IMAGE_SIZE[1]:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has none")
        return super().forward(images)


def build(args, run: Run) -> tuple[Datasets, Narrow]:
    """As the small folder does, with the pictures and the network of this file."""
    if args.evaluate:
        data = Datasets(None, Large(3))
        return data, run.trained(Narrow, from_reference)
    data = Datasets(Pictures(8), Large(3))
    run.plan(data.train, IMAGE_SIZE)
    model = Narrow()
    run.load(model, from_reference)
    return data, model


def train(output_dir: Path, **flags) -> None:
    """A run of four steps, scored after three of them and after the last; what it asked for is in asked-RANK.json."""
    carry_out(main, build, arguments(output_dir, max_steps=4, eval_batch_size=3, **flags), small_folder)
    Path(f"{output_dir}-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(Narrow.asked))


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_an_evaluation_out_of_memory_is_done_again_by_windows_in_all_processes(tmp_path, one_thread):
    """It is the second of two processes that has no memory."""
    in_two_processes(tmp_path, train, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["protocol"]["window"] == list(IMAGE_SIZE) and "ran out of memory" in result["protocol"]["note"]
    for rank, images in ((0, 2), (1, 1)):
        asked = json.loads((tmp_path / f"run-{rank}.json").read_text())
        whole = [images, 3, *SIDES]
        if rank == 0:
            asked = asked[:-3]  # and three example pictures
        assert asked.count(whole) == 1, "the second evaluation begins with windows"
        assert all(shape[2:] == list(IMAGE_SIZE) for shape in asked if shape != whole)

    checkpoint = tmp_path / "run" / "checkpoints" / "last.pt"
    views = {"window": f"{IMAGE_SIZE[0]}x{IMAGE_SIZE[1]}", "evaluate": 1, "checkpoint": checkpoint}
    alone = carry_out(main, build, arguments(tmp_path / "alone", eval_batch_size=1, **views), small_folder)
    assert result["classes"] == alone["classes"]
    scores = [{name: each[name] for name in result["scores"]} for each in (result, alone)]
    assert scores[0] == pytest.approx(scores[1])
    assert "note" not in alone["protocol"]
    (said,) = [line for line in (tmp_path / "run" / "train.log").read_text().splitlines() if "done again" in line]
    assert f"windows of {IMAGE_SIZE[0]}x{IMAGE_SIZE[1]}, 2 images" in said

    with pytest.raises(
        Failed, match=r"3 images of 8 x 12 at a time are too much: give --eval_batch_size 1, or --window"
    ):
        flags = {"evaluate": 1, "checkpoint": checkpoint, "eval_batch_size": 3}
        carry_out(main, build, arguments(tmp_path / "refused", **flags), small_folder)


def test_the_result_says_how_its_scores_came_about(tmp_path):
    flags = {"scales": "0.5,1", "flip": 1, "window": 4, "stride": "3x4", "max_steps": 3}
    result = carry_out(small_folder.main, small_folder.build, arguments(tmp_path / "run", **flags), small_folder)
    (row,) = metric_rows(tmp_path / "run", "eval")
    assert result["protocol"] == row["details"]["protocol"]
    assert result["protocol"].items() >= {
        "images": 3, "window": [4, 4], "stride": [3, 4], "scales": [0.5, 1.0], "flip": True, "ignore_index": 255,
        "sizes": "each picture at its own size",
    }.items()  # fmt: skip
    assert Views((4, 4)).described()["stride"] == [2, 2] and Views().described()["stride"] is None
    assert result["eval_loss"] == row["eval_loss"] > 0
    worst, median, best = ((name, float(score), stem) for name, score, stem in examples(tmp_path / "run"))
    assert (worst[0], median[0], best[0]) == ("worst", "median", "best") and worst[1] <= median[1] <= best[1]
    assert {worst[2], median[2], best[2]} == {"noise_0", "noise_1", "noise_2"}


def examples(run: Path) -> list[list[str]]:
    """(place, score, picture) of the examples of a run, the worst first."""
    names = [path.stem.split("_", 2) for path in (run / "examples").iterdir()]
    return sorted(names, key=lambda parts: ("worst", "median", "best").index(parts[0]))


def test_the_matrix_that_is_drawn_is_that_of_the_rows():
    """Half of the first class is taken for the second one; nothing is of the third one."""
    picture = np.asarray(draw_matrix(torch.tensor([[2, 2, 0], [0, 7, 0], [0, 0, 0]]), ("a", "b", "c")))
    side = picture.shape[0] - 6 - 3 * CELL
    left = side - 16
    cells = [[picture[side + CELL * row + 3, left + CELL * column + 3] for column in range(3)] for row in range(3)]
    half = np.round((np.array(FULL) + 255) / 2)
    assert np.abs(cells[0][0] - half).max() <= 1 and np.abs(cells[0][1] - half).max() <= 1
    assert tuple(cells[1][1]) == FULL and all(tuple(each) == WHITE for each in (*cells[2], cells[0][2], cells[1][0]))
    assert draw_matrix(torch.eye(60).long(), [f"class {number}" for number in range(60)]).width < 800


def test_what_is_counted_of_each_class_by_hand():
    confusion = torch.tensor([[5, 1, 0, 0], [2, 2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]])
    table = class_table(confusion, ("sky", "sea", "boat", "moon"))
    sea = {"truth_pixels": 4, "predicted_pixels": 3, "iou": 2 / 5, "accuracy": 2 / 4, "precision": 2 / 3, "dice": 4 / 7}
    assert table["sea"] == pytest.approx(sea)
    assert table["boat"]["precision"] is None and table["boat"]["iou"] == 0
    matrix = ConfusionMatrix(4)
    matrix.bins[:16] = confusion.flatten()
    assert matrix.scores()["frequency_weighted_iou"] == pytest.approx((6 * 5 / 11 + 4 * 2 / 5) / 13)
    assert matrix.scores()["mean_dice"] == pytest.approx((10 / 16 + 4 / 7 + 0) / 3)
    assert absent(table) == ["moon"] and never_predicted(table) == ["boat"]
