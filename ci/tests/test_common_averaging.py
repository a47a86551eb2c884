"""--ema: the average of the weights by its formula; it is what is scored, kept in best.pt and taken from last.pt."""

import copy
import os
from pathlib import Path

import pytest
import torch

from ci.tests import small_folder
from ci.tests.common_workers import seeded_model, world
from ci.tests.operators import Operators
from ci.tests.runs import assert_same_state, in_two_processes, last_checkpoint
from ci.tests.small_folder import Network, arguments, build, main
from ci.tests.test_common_checkpoint import spoilt, train
from ci.tests.test_common_inspect import converted, said
from common import run as run_module
from common.errors import InputError
from common.record.checkpoint import load_weights, read
from common.record.tensors import Unusable
from common.run import Run
from common.start import carry_out
from common.step.amp import Amp
from common.step.averaging import MovingAverage

EMA = {"ema": 0.4}  # reached after the sixth step: until then the share of the new weights is larger


def whole(output_dir: Path, **flags) -> dict:
    return carry_out(main, build, arguments(output_dir, **flags), small_folder)


def checkpoint(run: Path, name: str) -> dict:
    return torch.load(run / "checkpoints" / name, weights_only=True)


@pytest.mark.parametrize("level, dtype", [("O0", "fp16"), ("O1", "fp16"), ("O2", "bf16"), ("O2", "fp16")])
def test_the_average_is_that_of_the_formula(level, dtype):
    """In float64, over ten steps of which one is skipped; float32 at every level, with the statistics of the norms."""
    model = seeded_model()
    amp = Amp(
        model,
        torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, fused=True),
        level,
        "dynamic",
        world(),
        dtype,
    )
    amp.average = MovingAverage(model, amp.masters, 0.4)
    expected = {name: value.double() for name, value in amp.model_state().items()}
    for step in range(10):
        train(amp, [step])  # that of the number 1 has gradients that are not finite
        decay = min(0.4, (1 + step) / (10 + step))
        for name, value in amp.model_state().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    found = amp.average.state_dict()
    expected["norm.num_batches_tracked"] = torch.tensor(10)
    assert found["updates"] == 10 and amp.skipped_steps == 1
    for name, value in found["model"].items():
        assert value.dtype == (torch.int64 if "tracked" in name else torch.float32)
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-5, atol=1e-6, msg=name)
    assert not torch.equal(found["model"]["norm.running_var"], amp.model_state()["norm.running_var"])
    assert not amp.average.model.training and model.training


def test_an_update_does_not_wait_for_the_device_and_a_step_without_average_does_none():
    model = seeded_model()
    average = MovingAverage(model, [], 0.9)
    with Operators() as operators:
        average.update()
    assert operators.unwanted == []
    assert Amp(model, torch.optim.SGD(model.parameters(), lr=0.1), "O0", "dynamic", world()).average is None


@pytest.mark.parametrize(
    "flags", [{"clip_norm": 0.05}, {"amp": 1, "opt_level": "O2", "amp_dtype": "bf16", "accumulate": 2}]
)
def test_a_run_with_an_average_continues_bit_for_bit(tmp_path, flags):
    flags = {**EMA, **flags, "device_batch_size": 2 // flags.get("accumulate", 1)}
    whole(tmp_path / "whole", **flags)
    whole(tmp_path / "run", **flags, max_steps=4)
    whole(tmp_path / "run", **flags, resume="auto")
    state = last_checkpoint(tmp_path / "run")
    assert_same_state(state, last_checkpoint(tmp_path / "whole"))
    assert state["ema"]["updates"] == 8
    assert all(value.dtype in (torch.float32, torch.int64) for value in state["ema"]["model"].values())


def test_what_is_scored_is_what_best_holds_and_what_weights_are_taken(tmp_path, capsys):
    """The training itself is that of a run without an average."""
    run, plain = tmp_path / "run", tmp_path / "plain"
    result = whole(run, **EMA, max_steps=3, lr=0.5)
    whole(plain, max_steps=3, lr=0.5)
    last, best = checkpoint(run, "last.pt"), checkpoint(run, "best.pt")
    average = last["ema"]["model"]
    assert "ema" not in best and "optimizer" not in best
    assert all(torch.equal(value, best["model"][name]) for name, value in average.items())
    assert all(torch.equal(value, last["model"][name]) for name, value in checkpoint(plain, "last.pt")["model"].items())
    assert not torch.equal(average["last.weight"], last["model"]["last.weight"])
    scored = {
        name: whole(tmp_path / name, evaluate=1, checkpoint=run / "checkpoints" / f"{name}.pt")
        for name in ("best", "last")
    }
    for score in ("miou", "eval_loss"):
        assert result[score] == scored["best"][score] == scored["last"][score]
    trained = whole(tmp_path / "trained", evaluate=1, checkpoint=plain / "checkpoints" / "last.pt")
    assert result["eval_loss"] != trained["eval_loss"]
    network, path = Network(), run / "checkpoints" / "last.pt"
    line = load_weights(path, network)
    assert line == (
        f"{path}: our Network, the averaged weights (--ema): 9 tensors taken, none left out, none newly initialised"
    )
    assert torch.equal(network.last.weight, average["last.weight"])
    words = converted(capsys, path, tmp_path / "converted.pt")
    assert words.startswith(f"{path}: our Network, the averaged weights (--ema); written to")
    content = read(tmp_path / "converted.pt")
    assert torch.equal(content["model"]["last.weight"], average["last.weight"]) and "ema" not in content
    assert said(path, capsys)["average"] == "of these weights (--ema) over 3 steps, and taken in their place"


def test_a_flag_that_changes_makes_it_another_run_whose_average_begins_anew(tmp_path):
    run = tmp_path / "run"
    whole(run, max_steps=2, validate=0)
    before = checkpoint(run, "last.pt")
    with pytest.raises(InputError, match=r"is of another run: --ema: 0.0, now 0.4"):
        whole(run, **EMA, resume="auto", validate=0)
    whole(run, **EMA, resume="auto", resume_anyway=1, validate=0, max_steps=3)
    state = checkpoint(run, "last.pt")
    for name, value in before["model"].items():  # the first step has a decay of 0.1
        expected = 0.1 * value + 0.9 * state["model"][name] if value.is_floating_point() else state["model"][name]
        torch.testing.assert_close(state["ema"]["model"][name], expected, msg=name)
    whole(run, resume="auto", resume_anyway=1, validate=0, max_steps=4)
    assert "ema" not in checkpoint(run, "last.pt")


@pytest.mark.parametrize("value", [{"updates": -1, "model": {}}, {"model": {}}, {"updates": 1, "model": {"a": 1}}])
def test_an_average_that_no_training_has_written_is_named(tmp_path, value):
    with pytest.raises(Unusable, match=r"its field ema is a dict and not an average of weights"):
        read(spoilt(tmp_path, "ema", value))


def test_a_network_with_the_same_tensors_trains_and_the_average_follows(tmp_path, monkeypatch):
    """What --compile and --cuda_graph give the step: see `common.step.compiling`."""

    def twin(model, network, *_):
        return copy.deepcopy(model, {id(t): t for t in [*model.parameters(), *model.buffers()]}), "a twin"

    monkeypatch.setattr(run_module, "compiled", twin)
    for name in ("twin", "plain"):
        whole(tmp_path / name, **EMA, max_steps=3, compile=int(name == "twin"))
    assert_same_state(*({"ema": checkpoint(tmp_path / name, "last.pt")["ema"]} for name in ("twin", "plain")))


def as_one_of_two(output_dir: Path, flags: dict) -> None:
    run = Run(arguments(output_dir, **flags), small_folder, 2)
    data, model = run.build(build)
    run.join()
    main(run.args, run, data, model)
    weights = torch.cat([weight.flatten() for weight in run.amp.evaluated.parameters()])
    theirs = weights.clone()
    torch.distributed.broadcast(theirs, src=0)
    assert run.amp.evaluated is not run.model and torch.equal(weights, theirs)
    torch.distributed.barrier()
    os._exit(0)  # nobody waits for the other's end


def test_two_processes_have_the_same_average_and_continue_bit_for_bit(tmp_path):
    in_two_processes(tmp_path, as_one_of_two, tmp_path / "whole", EMA)
    in_two_processes(tmp_path, as_one_of_two, tmp_path / "run", {**EMA, "max_steps": 2})
    in_two_processes(tmp_path, as_one_of_two, tmp_path / "run", {**EMA, "resume": "auto"})
    assert_same_state(last_checkpoint(tmp_path / "run"), last_checkpoint(tmp_path / "whole"))
