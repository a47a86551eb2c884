"""common/record/numbers.py: metrics.jsonl and TensorBoard's events, of runs that go on too."""

import torch

from ci.tests.common_workers import CLASSES, Scenes, seeded_model, world
from ci.tests.logged import METRIC, SCORES, events, kill, open_log, rows, train, whole_run
from common.record.numbers import cut_rows
from common.scores.evaluate import Evaluation, evaluate
from common.scores.metrics import ConfusionMatrix


def test_a_run_that_continues_keeps_what_was_before_its_first_step_and_drops_the_rest(tmp_path, capsys):
    folder = tmp_path / "run"
    log = open_log(folder, total=8)
    train(log, range(2))
    log.eval(METRIC)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.pt").write_bytes(b"state")
    train(log, range(2, 5), lambda step: 9.0)  # then it is killed while it writes
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 6, "lo')
    kill(log)

    log = open_log(folder, total=8, first_step=2, best=0.25, continues=True)
    assert [row["step"] for row in rows(folder)] == [1, 2, 2]
    train(log, range(2, 8))
    log.finish()
    assert [row["step"] for row in rows(folder, "train")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["loss"] for row in rows(folder, "train")] == [1.0] * 8
    assert rows(folder, "eval")[0]["miou"] == 0.25
    assert not (tmp_path / "backup").exists()
    assert (folder / "checkpoints" / "last.pt").read_bytes() == b"state"
    text = (folder / "train.log").read_text()
    assert text.count("steps 0..8") == text.count("steps 2..8") == 1
    # TensorBoard hides the older events from the step of a START record on: the first one that is done again
    starts = [event.step for event in events(folder) if event.session_log.status == 1]
    assert starts == [3]


def test_a_run_that_continues_a_folder_without_metrics(tmp_path):
    folder = tmp_path / "run"
    whole_run(folder)
    (folder / "metrics.jsonl").unlink()
    log = open_log(folder, first_step=2, continues=True)
    train(log, range(2, 4))
    log.finish()
    assert [row["step"] for row in rows(folder)] == [3, 4]


def test_the_scores_that_are_kept_are_those_of_the_last_evaluation_and_nothing_else_of_its_row(tmp_path):
    whole_run(tmp_path / "run")  # evaluated after two steps
    assert cut_rows(tmp_path / "run", 3) == (SCORES, 2)
    assert cut_rows(tmp_path / "run", 1) is None
    assert [row["step"] for row in rows(tmp_path / "run")] == [1]
    assert cut_rows(tmp_path / "none", 3) is None


def test_the_pixels_of_an_evaluation_are_those_that_are_counted(tmp_path):
    """An image that two processes count, or one counts twice, is seen there."""
    images = Scenes(3)
    labelled = sum(int((target != 255).sum()) for _, target, _ in (images[index] for index in range(3)))
    twice = torch.utils.data.ConcatDataset([images, images])
    twice.finish = images.finish
    log = open_log(tmp_path / "run")
    for dataset in (images, twice):
        log.eval(evaluate(seeded_model(), dataset, ConfusionMatrix(CLASSES), Evaluation(world(), batch_size=2)))
    assert [row["pixels"] for row in rows(tmp_path / "run")] == [labelled, 2 * labelled]
    first, second = (
        {name: row[name] for name in row if name not in ("pixels", "kind")} for row in rows(tmp_path / "run")
    )
    assert first == second  # the scores would not tell
