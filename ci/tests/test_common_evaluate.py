"""common/scores/evaluate.py: the confusion matrix of a data set, however it is divided."""

import socket
import weakref

import numpy as np
import pytest
import torch
from torch import multiprocessing

from ci.tests.common_workers import CLASSES, Scenes, seeded_model, world
from ci.tests.folders import FOLDERS, module, parsed
from ci.tests.samples import Finished
from ci.tests.two_processes import evaluate_in_one_of_two_processes, samples_of_steps, synchronized_step
from common import trained
from common.data.pictures import DatasetInfo
from common.record.log import RunLog
from common.run import Run
from common.scores import evaluate as evaluate_module
from common.scores import scored
from common.scores.evaluate import Evaluation, evaluate, example_panels
from common.scores.metrics import ConfusionMatrix

PALETTE = ((10, 20, 30), (40, 50, 60), (70, 80, 90), (100, 110, 120))


class Shown(Scenes):
    """Scenes that know how they are shown and scored."""

    info = DatasetInfo(("a", "b", "c", "d"), PALETTE, mean=(0, 0, 0), std=(1, 1, 1))
    has_labels, split, scored_at = True, "val", "each picture at its own size"

    def name_of(self, index: int) -> str:
        return f"scene_{index}"

    def metric(self, world) -> ConfusionMatrix:
        return ConfusionMatrix(CLASSES, device=world.device)


def matrix_of(model, dataset, batch_size=2, at=None, **how) -> ConfusionMatrix:
    return evaluate(model, dataset, ConfusionMatrix(CLASSES), Evaluation(at or world(), batch_size, **how))


def counts_of_a_plain_loop(model, dataset) -> torch.Tensor:
    """Image by image, pixel by pixel: [truth, prediction]."""
    counts = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    model.eval()
    for index in range(len(dataset)):
        image, target = dataset[index]
        with torch.no_grad():
            prediction = model(image[None])[0].argmax(0)
        for truth, predicted in zip(target.flatten().tolist(), prediction.flatten().tolist(), strict=True):
            if truth != 255:
                counts[truth, predicted] += 1
    return counts


@pytest.fixture(scope="module")
def expected():
    return counts_of_a_plain_loop(seeded_model(), Finished(Scenes(7)))


def test_the_plain_loop_predicts_several_classes(expected):
    assert (expected.sum(0) > 0).sum() > 1
    assert (expected.sum(1) > 0).all()


@pytest.mark.parametrize("batch, workers", [(1, 0), (2, 0), (3, 1), (16, 0)])
def test_counts_equal_a_plain_loop_for_any_batch_size(expected, batch, workers):
    assert torch.equal(matrix_of(seeded_model(), Scenes(7), batch, workers=workers).counts, expected)


@pytest.mark.parametrize("size", [2, 3, 9])
def test_the_shares_of_all_processes_sum_to_the_matrix_of_one(monkeypatch, expected, size):
    monkeypatch.setattr(evaluate_module, "share_buffers", lambda model, world: None)  # there are no other processes
    shares = [matrix_of(seeded_model(), Scenes(7), at=world(rank, size)).counts for rank in range(size)]
    assert torch.equal(sum(shares), expected)
    assert not any(torch.equal(share, expected) for share in shares)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_scored_in_eval_mode_and_left_as_it_was(training):
    model = seeded_model().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = []
    model.register_forward_hook(lambda module, *_: modes.append((module.training, torch.is_grad_enabled())))
    matrix_of(model, Scenes(3))
    example_panels(model, Shown(3), [0], Evaluation(world()))
    assert set(modes) == {(False, False)}
    assert model.training is training and model.norm.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_forward_pass_runs_in_the_given_context():
    model = seeded_model()
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))

    def bf16():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    matrix_of(model, Scenes(2), autocast=bf16)
    example_panels(model, Shown(2), [0], Evaluation(world(), autocast=bf16))
    assert set(seen) == {torch.bfloat16}


def test_kernels_are_searched_for_the_first_shapes_alone(monkeypatch):
    """Four batches of one picture each, of three sizes in turn; the setting of the run comes back."""
    for wanted, expected in ((True, [True, True, False, False]), (False, [False] * 4)):
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", wanted)
        model, seen = seeded_model(), []
        model.register_forward_pre_hook(lambda *_, seen=seen: seen.append(torch.backends.cudnn.benchmark))
        matrix_of(model, Scenes(4), batch_size=1)
        assert seen == expected
        assert torch.backends.cudnn.benchmark is wanted


def test_the_logits_of_a_batch_are_gone_before_the_next_is_computed():
    """They are gigabytes for whole pictures in a batch."""
    model, before = seeded_model(), []
    model.register_forward_pre_hook(lambda *_: before.append([logits() for logits in alive]))
    alive = []
    model.register_forward_hook(lambda module, images, logits: alive.append(weakref.ref(logits)))
    matrix_of(model, Scenes(4), batch_size=1)
    assert before == [[], [None], [None] * 2, [None] * 3]


def test_the_rate_of_an_evaluation_is_taken_when_the_device_has_finished(tmp_path, monkeypatch):
    order = []

    def told(name, real):
        return lambda *arguments: (order.append(name), real(*arguments))[1]

    monkeypatch.setattr(scored, "evaluate", told("evaluated", evaluate))
    monkeypatch.setattr(trained, "synchronize", told("finished", trained.synchronize))
    monkeypatch.setattr(RunLog, "rate", told("rate", RunLog.rate))
    (tmp_path / "weights.pt").touch()
    words = ["--preset=tiny", "--device=cpu", "--evaluate", f"--checkpoint={tmp_path / 'weights.pt'}"]
    run = Run(parsed(FOLDERS[0], *words, output_dir=tmp_path / "run"), module(FOLDERS[0], "presets"))
    run.join()
    result = run.evaluate_checkpoint(seeded_model(), Shown(4))
    assert order == ["evaluated", "finished", "rate"]
    assert result["images_per_second"] > 0 and result["miou"] == matrix_of(seeded_model(), Scenes(4)).miou()


def test_example_panels_show_picture_truth_and_prediction():
    model, images = seeded_model(), Shown(4)
    panels = example_panels(model, images, [2, 0], Evaluation(world()))
    assert len(panels) == 2
    colours = np.array([*PALETTE, *[(224, 224, 192)] * 252], np.uint8)  # of what is ignored
    for index, panel in zip((2, 0), panels, strict=True):
        image, target, _ = images[index]
        prediction = model.eval()(Finished(images)[index][0][None])[0].argmax(0)
        expected = (image.numpy(), colours[target.numpy()], colours[prediction.numpy()])
        assert panel.dtype == np.uint8 and np.array_equal(panel, np.concatenate(expected, axis=1))
    assert example_panels(model, Shown(2), [0], Evaluation(world(1, 2))) == []


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What two gloo processes saw, each with batch-norm statistics of its own."""
    folder = tmp_path_factory.mktemp("two_processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (folder / "port").write_text(str(free.getsockname()[1]))
    multiprocessing.spawn(evaluate_in_one_of_two_processes, (folder,), nprocs=2)
    return folder, [torch.load(folder / f"seen_by_{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_processes_have_both_the_matrix_of_one_with_the_statistics_of_rank_0(seen, expected):
    _, both = seen
    assert [tuple(one["world"]) for one in both] == [(0, 2), (1, 2)]
    for one in both:
        assert torch.equal(one["counts"], expected)
        assert torch.equal(one["running_mean"], torch.zeros(3))
        assert one["tracked"] == 0


def test_processes_that_differ_say_so_and_those_on_other_machines_do_not(seen):
    _, both = seen
    assert both[0]["differences"] == both[1]["differences"]
    alike, *different = both[0]["differences"]
    assert alike == ""
    expected = (
        "--lr is 0.1 in process 0 and 0.2 in process 1",
        "--log_every_steps is 10 in process 0 and 5 in process 1",
        "first step is 3 in process 0 and 0 in process 1",
        "numbers of images is [7] in process 0 and [6] in process 1",
    )
    for line, words in zip(different, expected, strict=True):
        assert line.startswith(f"the processes of this run differ: {words}; give all machines the same")


def test_two_processes_read_in_each_step_what_one_reads_in_the_same_order(seen):
    _, both = seen
    one = samples_of_steps(world(), device_batch_size=4)
    assert [step for step, _, _ in one] == [1, 2, 3, 4, 5]
    for first, second, whole in zip(both[0]["samples"], both[1]["samples"], one, strict=True):
        assert first[0] == second[0] == whole[0]
        assert (first[1] + second[1], first[2] + second[2]) == (whole[1], whole[2])


def test_a_loss_that_is_nan_on_one_process_stops_both_at_the_same_step(seen):
    folder, both = seen
    for one in both:
        assert one["stopped"].startswith("the loss is nan (its main term) at step 3 of 4;")
    assert "nan (its main term) at step 3" in (folder / "run" / "train.log").read_text()


def test_synchronized_batch_norm_is_that_of_one_process_with_all_images(seen):
    """Shares of two and three images: the statistics are those of the five."""
    _, both = seen
    first, second = (one["synchronized"] for one in both)
    whole = synchronized_step(world(), slice(0, 5))
    assert list(first) == list(whole)
    for name, expected in whole.items():
        if name == "outputs":
            ours = torch.cat([first[name], second[name]])
        elif name.startswith("gradient"):
            ours = first[name] + second[name]
        else:
            ours = first[name]
            assert torch.equal(ours, second[name]), name
        assert torch.allclose(ours, expected, rtol=1e-10, atol=1e-12), name
