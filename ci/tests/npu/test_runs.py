"""Every model on the simulated NPU: a run gives the CPU's result, and no step or evaluation waits for the device."""

import math
import runpy
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ci.tests.folders import FOLDERS, ROOT, module
from ci.tests.runs import assert_same_state, flat, last_checkpoint, metric_rows
from ci.tests.test_contract import build, data, loss_of, train  # noqa: F401  a fixture among them
from common.record.log import RunLog
from common.scores import evaluate

# what is asked of a run: flags, by the name that tests call it
SHORT = {"epochs": 1, "log_every_steps": 2, "eval_batch_size": 1, "channels_last": 0}
STEPS = 4  # of one epoch
VALIDATION_BATCHES = 3
# As the CPU does it too: in deterministic mode, torch enlarges by another formula on all other devices.
EXACT = {**SHORT, "amp": 0, "deterministic": 0}
MIXED = {**SHORT, "device": "npu", "amp": 1, "loss_scale": "128", "validate": 0}
RUNS = {
    "float32": {**EXACT, "device": "npu"},
    "cpu": {**EXACT, "device": "cpu"},
    "fp16": {**SHORT, "device": "npu"},  # as a run on an NPU is by itself
    "O1 bf16": {**MIXED, "opt_level": "O1", "amp_dtype": "bf16"},
    "O2 fp16": {**MIXED, "opt_level": "O2", "amp_dtype": "fp16"},
    "O2 bf16": {**MIXED, "opt_level": "O2", "amp_dtype": "bf16"},
    "overflow": {**MIXED, "opt_level": "O1", "amp_dtype": "fp16", "loss_scale": "1e30"},
}
LEVELS = tuple(RUNS)[3:]

# Adam is fused on the CPU alone, where it rounds otherwise; a bias before a batch norm has no gradient but rounding,
# which Adam makes a step of the usual length.
OF_ADAM = ("AttentionUNet",)
OF_ALL_LEVELS = ("AttentionUNet", "ICNet")  # one of Adam, and one of SGD: mixed precision is the same code in all


def exact_on_the_cpu(folder: str) -> dict[str, str]:
    """Flags with which the CPU takes the steps of an NPU, operator by operator where that does."""
    return {"fused_optimizer": "off"} if folder in OF_ADAM else {}


pytestmark = [pytest.mark.parametrize("folder", FOLDERS), pytest.mark.usefixtures("npu", "narrow")]


class Watch:
    """What a run does between two of its log lines, as long as it trains, from its second step on; and in evaluations.

    waits: ("kind", "file:line") -> how often the host waited for the device in training; evaluation_waits: the same
    while the batches of an evaluation are worked on. stretches, evaluated: log lines and batches that were looked at.
    new_kinds: convolutions, with the shapes of their input and weight, of a kind that was not there in the first
    training step, or in the first batch of an evaluation that had images of this shape. strided: `input`, `weight` or
    `gradient` of a convolution -> how often it was a tensor that lies in another order than its shape says.
    """

    def __init__(self, counters, monkeypatch: pytest.MonkeyPatch):
        self.counters = counters
        self.waits, self.evaluation_waits, self.stretches, self.evaluated = Counter(), Counter(), 0, 0
        self.new_kinds, self.strided = set(), Counter()
        self._first = None
        for name, before, after in (
            ("__init__", None, counters.reset),
            ("train", self._look_at_kinds, None),
            ("flush", self._look_at_waits, counters.reset),
            ("restart_clock", None, counters.reset),
        ):
            monkeypatch.setattr(RunLog, name, self._wrapped(getattr(RunLog, name), before, after))
        monkeypatch.setattr(evaluate, "eval_batches", self._watched(evaluate.eval_batches))

    def _wrapped(self, method: Callable, before: Callable | None, after: Callable | None) -> Callable:
        def call(log, *arguments, **options):
            if before:
                before()
            result = method(log, *arguments, **options)
            if after:
                after()
            return result

        return call

    def _look_at_kinds(self) -> None:
        if self._first is None:  # the end of the first step, which makes what later ones use again
            self._first = set(self.counters.convolution_kinds)
            self.counters.reset()
        self.new_kinds |= self.counters.convolution_kinds - self._first

    def _look_at_waits(self) -> None:
        self.stretches += 1
        self.waits += self.counters.places
        self.strided += self.counters.strided

    def _watched(self, eval_batches: Callable) -> Callable:
        def batches(*arguments) -> Iterator:
            kinds = {}  # shape of a batch -> those of the first one
            self.counters.reset()
            for images, *rest in eval_batches(*arguments):
                yield images, *rest
                seen = self.counters.convolution_kinds
                self.new_kinds |= seen - kinds.setdefault(images.shape, seen)
                self.evaluated += 1
                self.evaluation_waits += self.counters.places
                self.strided += self.counters.strided
                self.counters.reset()

        return batches


@pytest.fixture(scope="module")
def run(npu, data, tmp_path_factory) -> Callable[[str, str], tuple[Path, Watch]]:  # noqa: F811  the fixture that is imported
    """run(folder, name of RUNS) -> (its output folder, what it did between its log lines); each is done once."""
    from npu_simulation.counters import COUNTERS

    done = {}

    def run(folder: str, name: str) -> tuple[Path, Watch]:
        if name in LEVELS and folder not in OF_ALL_LEVELS:
            pytest.skip(f"{name} is looked at in {' and '.join(OF_ALL_LEVELS)}")
        if (folder, name) not in done:
            output_dir = tmp_path_factory.mktemp(f"{folder}-{name}".replace(" ", "-")) / "run"
            with pytest.MonkeyPatch.context() as monkeypatch:
                watch = Watch(COUNTERS, monkeypatch)
                train(folder, data, output_dir, **RUNS[name] | (exact_on_the_cpu(folder) if name == "cpu" else {}))
            done[folder, name] = output_dir, watch
        return done[folder, name]

    return run


def test_losses_and_gradients_equal_the_cpus(folder):
    """Of one batch, in float32."""
    results = {}
    for device in ("cpu", "npu"):
        torch.manual_seed(1)
        model = build(folder).to(device).train()
        images, target = torch.randn(2, 3, 64, 96), torch.randint(0, 2, (2, 64, 96))
        target[:, :8] = 255
        loss = loss_of(folder, model(images.to(device)), target.to(device))
        loss.backward()
        results[device] = {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}
        results[device]["loss"] = loss.detach().cpu()
    for name, value in results["cpu"].items():
        assert (results["npu"][name] - value).norm() <= 1e-5 * value.norm() + 1e-8, name


def test_a_run_equals_the_cpus(folder, run):
    """In float32: losses, scores and weights."""
    (ours, _), (theirs, _) = run(folder, "float32"), run(folder, "cpu")
    rows, others = metric_rows(ours, "train"), metric_rows(theirs, "train")
    assert [row["step"] for row in rows] == [2, 4]
    for row, other in zip(rows, others, strict=True):
        assert {name: row[name] for name in ("step", "loss", "lr")} == pytest.approx(
            {name: other[name] for name in ("step", "loss", "lr")}, rel=1e-5
        )
    assert_same_scores(ours, theirs)
    state, other = last_checkpoint(ours), last_checkpoint(theirs)
    for name, value in flat(state["model"]).items():
        torch.testing.assert_close(
            value, flat(other["model"])[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_same_scores(ours: Path, theirs: Path) -> None:
    """The evaluations of two runs, among them at least one number, give the same but for pixels on the edge."""
    evaluations, others = (list(map(flat, metric_rows(output_dir, "eval"))) for output_dir in (ours, theirs))
    assert evaluations
    for scores, expected in zip(evaluations, others, strict=True):
        assert any(isinstance(value, float) and math.isfinite(value) for value in scores.values())
        assert scores == pytest.approx(expected, abs=1e-3, nan_ok=True)


@pytest.mark.parametrize("name", ["float32", "fp16", *LEVELS])
def test_a_step_waits_to_know_if_it_is_skipped_and_for_nothing_else(folder, run, name):
    """Between two log lines: the plugin's fused SGD asks on the host, for each group, and torch before a plain Adam."""
    output_dir, watch = run(folder, name)
    groups = 1 if folder in OF_ADAM else len(last_checkpoint(output_dir)["optimizer"]["param_groups"])
    assert watch.stretches >= 2
    ((kind, place),) = watch.waits
    assert (kind, place.rpartition(":")[0]) == ("item", str(ROOT / "common" / "step" / "amp.py"))
    assert watch.waits[kind, place] == groups * (STEPS - 1)  # the first one is not watched


@pytest.mark.parametrize("name", ["float32", "fp16"])
def test_from_batch_to_batch_an_evaluation_waits_for_nothing(folder, run, name):
    """The network, the counts of pixels and the copies of the images; the scores are read once, at the end."""
    _, watch = run(folder, name)
    assert watch.evaluated >= VALIDATION_BATCHES
    assert watch.evaluation_waits == {}


def test_a_layer_sees_images_of_one_shape(folder, counters):
    """Each shape is a kernel that is chosen, or compiled. Two branches of ICNet share their first layers."""
    build(folder).npu().train()(torch.randn(2, 3, 64, 96).npu())
    assert max(map(len, counters.convolutions.values())) == (2 if folder == "ICNet" else 1)


def test_convolutions_see_the_same_shapes_in_every_step(folder, run):
    for name in ("float32", "fp16"):
        assert run(folder, name)[1].new_kinds == set()


def test_convolutions_are_given_tensors_without_gaps(folder, run):
    """Each other input, weight or gradient costs a copy of it."""
    for name in ("float32", "fp16"):
        assert not +run(folder, name)[1].strided


@pytest.mark.parametrize("name", ["fp16", *LEVELS[:-1]])
def test_mixed_precision_is_near_float32(folder, run, name):
    """The loss of the first steps, one of which is skipped while the loss scale is found; weights are in float32."""
    (mixed, _), (exact, _) = run(folder, name), run(folder, "float32")
    row = metric_rows(mixed, "train")[0]
    assert row["loss"] == pytest.approx(metric_rows(exact, "train")[0]["loss"], rel=0.1)
    dtypes = {value.dtype for value in last_checkpoint(mixed)["model"].values()}
    assert dtypes <= {torch.float32, torch.int64}


def test_steps_that_overflow_are_skipped(folder, run):
    """The loss scale is one that makes every gradient infinite: no weight may change."""
    output_dir, _ = run(folder, "overflow")
    row = metric_rows(output_dir, "train")[-1]
    assert (row["step"], row["skipped_steps"]) == (4, 4)
    momentum = flat(last_checkpoint(output_dir)["optimizer"]["state"])
    assert not any(value.any() for value in momentum.values() if isinstance(value, torch.Tensor) and value.dim())


def test_an_interrupted_run_equals_an_uninterrupted_one(folder, run, data, tmp_path):  # noqa: F811  the fixture that is imported
    whole, _ = run(folder, "fp16")
    flags = RUNS["fp16"]
    train(folder, data, tmp_path / "parts", **flags, max_steps=3)
    rest = train(folder, data, tmp_path / "parts", **flags, resume="auto")
    assert rest["steps"] == STEPS
    assert_same_state(last_checkpoint(whole), last_checkpoint(tmp_path / "parts"))


def test_a_run_of_an_npu_continues_on_the_cpu(folder, run, data, tmp_path):  # noqa: F811  the fixture that is imported
    whole, _ = run(folder, "cpu")
    flags = {**RUNS["cpu"], **exact_on_the_cpu(folder), "validate": 0, "log_every_steps": 1}
    train(folder, data, tmp_path / "run", **flags | {"device": "npu"}, max_steps=2)
    train(folder, data, tmp_path / "run", **flags, resume="auto")
    rows = metric_rows(tmp_path / "run", "train")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    ours = [(rows[first]["loss"] + rows[first + 1]["loss"]) / 2 for first in (0, 2)]
    assert ours == pytest.approx([row["loss"] for row in metric_rows(whole, "train")], rel=1e-5)


def test_evaluation_and_prediction_equal_the_cpus(folder, run, data, tmp_path, monkeypatch):  # noqa: F811  the fixture that is imported
    weights = run(folder, "cpu")[0] / "checkpoints" / "last.pt"
    image = module(folder, "data").validation_images(data(folder))[0]
    pictures = {}
    for device in ("cpu", "npu"):
        train(folder, data, tmp_path / device, device=device, amp=0, evaluate=1, checkpoint=weights)
        words = ["--checkpoint", weights, "--input", image, "--output", tmp_path / "pictures" / device]
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, words), "--device", device])
        runpy.run_path(str(ROOT / folder / "predict.py"), run_name="__main__")
        (picture,) = (tmp_path / "pictures" / device).rglob("*_ids.png")
        pictures[device] = np.asarray(Image.open(picture))
    assert_same_scores(tmp_path / "npu", tmp_path / "cpu")
    assert (pictures["cpu"] == pictures["npu"]).mean() > 0.999
