"""--freeze: what is frozen stays bit for bit, in every folder, and the rest is trained as it should be."""

import copy
import os
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import pytest
import torch
from torch import nn

from ci.tests import small_folder
from ci.tests.folders import FOLDERS, built, module
from ci.tests.runs import assert_same_state, in_two_processes, last_checkpoint
from ci.tests.small_folder import IMAGE_SIZE, Network, Pictures, arguments, from_reference, main
from ci.tests.test_faults import given  # noqa: F401  a fixture
from ci.tests.test_training_step import Case
from common.data.pictures import Datasets
from common.errors import InputError
from common.nets.backbone import ResNet
from common.record.initial import initial_weights
from common.run import Run
from common.start import carry_out
from common.step.freezing import freeze
from common.step.norm import FrozenBatchNorm2d, synchronize_batch_norm
from common.tools.plain import plain_losses, plain_network
from common.values import frozen


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_frozen_stays_bit_for_bit_in_every_folder(folder, given, tmp_path):  # noqa: F811  the imported fixture
    """Three steps of its train.py; the encoder is the ResNet in it, and a folder without one says so."""
    has_encoder = hasattr(module(folder, "weights"), "imagenet_file")
    flags = given(folder) | {"validate": 0, "max_steps": 3, "weight_decay": 0.1, "lr": 0.01, "epochs": 3}
    if not has_encoder:
        with pytest.raises(InputError, match=rf"--freeze backbone: {folder} has no pretrained encoder; give .*bn"):
            built(folder, **flags, freeze="backbone")
    run, data, model = built(folder, **flags, freeze="backbone" if has_encoder else "bn")
    parts = [part for part in model.modules() if isinstance(part, ResNet if has_encoder else nn.BatchNorm2d)]
    still = {id(tensor) for part in parts for tensor in (*part.parameters(), *part.buffers())}
    before = {name: value.clone() for name, value in model.state_dict(keep_vars=True).items()}
    assert still and len(still) < len(before)
    run.join()
    module(folder, "train").main(run.args, run, data, model)
    after = last_checkpoint(tmp_path / "run")["model"]
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert torch.equal(after[name], before[name]) == (id(tensor) in still), name
    trained = [weight for group in run.amp.optimizer.param_groups for weight in group["params"]]
    assert not still & set(map(id, trained)) and len(trained) == sum(w.requires_grad for w in model.parameters())
    assert run.notes[0].startswith(f"--freeze {run.args.freeze}: ") and len(run.notes) >= 2
    kept, give = ("the encoder", " or --pretrained") if has_encoder else ("the statistics of batch norms", "")
    warning = (
        f"; warning: --freeze {run.args.freeze} keeps {kept} so for the whole run; give --load_from{give}, or leave"
    )
    assert any(note.startswith(f"initial weights: random{warning}") for note in run.notes)
    given_weights = {"load_from": tmp_path / "run" / "checkpoints" / "last.pt", "output_dir": tmp_path / "second"}
    notes = built(folder, **flags | given_weights, freeze="bn")[0].notes
    assert not [note for note in notes if "warning" in note]


@pytest.mark.skipif("AttentionUNet" not in FOLDERS, reason="AttentionUNet is not in this tree")
def test_with_frozen_norms_loss_and_gradients_are_those_of_the_plain_form():
    """In float64. Here convolution biases before a batch norm are left out, and count before a frozen one."""
    case = Case("AttentionUNet", torch.float64)
    for norm in case.model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.5, 2.0)
    plain = plain_network(case.model)
    for norm in plain.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    freeze(case.model, None, "bn")
    loss = case.loss(case.model.train(), case.images)
    with plain_losses(case.training_loss):
        expected = case.loss(plain, case.images)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward(), expected.backward()
    theirs = dict(plain.named_parameters())
    largest = max(weight.grad.abs().max() for weight in theirs.values())
    for name, weight in case.model.named_parameters():
        assert (weight.grad is None) == (not weight.requires_grad)
        if weight.requires_grad:
            assert torch.allclose(weight.grad, theirs[name].grad, rtol=1e-7, atol=1e-9 * largest), name


class WithEncoder(Network):
    """The network in small, its first two layers in an encoder."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(self.first, self.norm)
        del self.first, self.norm

    def forward(self, images):
        logits = self.last(self.encoder(images).relu())
        return (logits, logits[..., ::2, ::2]) if self.training else logits.float()


def build(args, run):
    data = Datasets(Pictures(8), None)
    run.plan(data.train, IMAGE_SIZE)
    model = WithEncoder()
    run.load(model, from_reference, model.encoder)
    return data, model


def frozen_names(state: dict) -> set[str]:
    return {name for name in state if name.startswith("encoder")}


def test_half_precision_averages_and_accumulation_leave_it_too(tmp_path):
    """And a run that is interrupted equals one that is not; one that is to thaw is another run."""
    flags = {"validate": 0, "freeze": "backbone", "amp": 1, "opt_level": "O2", "amp_dtype": "bf16", "ema": 0.5}
    flags |= {"accumulate": 2, "device_batch_size": 1, "clip_norm": 0.1}

    def whole(name: str, **more) -> dict:
        carry_out(main, build, arguments(tmp_path / name, **flags | more), small_folder)
        return last_checkpoint(tmp_path / name)

    torch.manual_seed(0)  # as every run begins
    before = WithEncoder().state_dict()
    state = whole("whole")
    whole("run", max_steps=3)
    assert_same_state(whole("run", resume="auto"), state)
    for weights in (state["model"], state["ema"]["model"]):
        assert {name for name, value in weights.items() if torch.equal(value, before[name])} == frozen_names(before)
        assert weights["encoder.0.weight"].dtype == torch.float32
    assert len(state["optimizer"]["param_groups"][0]["params"]) == 2
    with pytest.raises(InputError, match="is of another run: --freeze: backbone, now none"):
        whole("run", resume="auto", freeze="none")


def as_one_of_two(output_dir: Path) -> None:
    run = Run(arguments(output_dir, freeze="backbone", sync_bn=1, validate=0, max_steps=3), small_folder, 2)
    data, model = run.build(build)
    run.join()
    main(run.args, run, data, model)
    assert isinstance(run.network, nn.parallel.DistributedDataParallel) and type(model.encoder[1]) is FrozenBatchNorm2d
    torch.distributed.barrier()
    os._exit(0)  # nobody waits for the other's end


def test_two_processes_wait_for_no_gradient_of_what_is_frozen(tmp_path):
    in_two_processes(tmp_path, as_one_of_two, tmp_path / "run")
    torch.manual_seed(0)
    before, after = WithEncoder().state_dict(), last_checkpoint(tmp_path / "run")["model"]
    assert {name for name, value in after.items() if torch.equal(value, before[name])} == frozen_names(before)


def test_frozen_norms_stay_so_in_copies_and_take_one_image():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)), nn.BatchNorm2d(4))
    names = list(model.state_dict())
    (line,) = freeze(model, model[1], "backbone,bn")
    assert line == "--freeze backbone,bn: 50.0% of the weights stay as they are, and the statistics of 2 norms"
    synchronize_batch_norm(model, Case(FOLDERS[0]).world)
    twin = copy.deepcopy(model).train()
    assert list(twin.state_dict()) == names
    assert twin.training and not twin[1][0].training and not twin[2].training
    twin(torch.ones(1, 3, 1, 1)).sum().backward()
    assert twin[0].weight.grad is not None and twin[2].weight.grad is None


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder in ("BiSeNetv1", "DeeplabV3")])
def test_one_image_is_enough_for_frozen_norms(folder):
    """Their global pooling leaves one pixel of it."""
    case = Case(folder)
    with pytest.raises(InputError):
        case.model.check_shape((1, 3, 64, 96))
    freeze(case.model, None, "bn")
    case.model.check_shape((1, 3, 64, 96))
    case.model(case.images[:1])


def test_a_random_encoder_without_a_rate_is_warned_of_too():
    args = Namespace(load_from=None, freeze="none", backbone="resnet18", pretrained="none", encoder_lr_factor=0.0)
    line = initial_weights(args, nn.Module(), None, nn.Module(), lambda backbone, source: None)
    assert line.startswith("initial weights: random; warning: --encoder_lr_factor 0 keeps the encoder so")
    args.encoder_lr_factor = 0.1
    assert initial_weights(args, nn.Module(), None, nn.Module(), lambda *_: None) == "initial weights: random"


def test_what_is_no_part_is_refused():
    assert [frozen(text) for text in ("none", "bn", "bn, backbone")] == ["none", "bn", "backbone,bn"]
    for text in ("", "head", "none,bn", "bn,"):
        with pytest.raises(ArgumentTypeError, match="is neither none nor some of backbone, bn"):
            frozen(text)
