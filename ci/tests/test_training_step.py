"""The training step of every folder against its plain form (common/tools/plain.py), which uses none of what makes it
fast."""

import copy
from argparse import Namespace
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ci.tests.folders import FOLDERS, module
from ci.tests.operators import Operators
from common.device.placement import place
from common.device.world import World
from common.step.amp import FIRST_SCALE, Amp, autocast
from common.step.optimizer import OPTIMIZERS, fused_optimizer, optimizer_options
from common.tools.plain import plain_losses, plain_network, plain_training
from common.tools.timing import Folder

pytestmark = [pytest.mark.parametrize("folder", FOLDERS), pytest.mark.usefixtures("narrow")]


class Case:
    """A folder's tiny network without dropout, its values, and a batch with ignored pixels."""

    def __init__(self, folder: str, dtype=torch.float32, channels_last: bool = True):
        self.args = Namespace(**module(folder, "presets").PRESETS["tiny"])
        self.args.lr, self.args.weight_decay = 1e-3, 1e-2
        values, model = Folder(folder, self.args), module(folder, "model")
        self.training_loss = partial(model.training_loss, **values.taken_by(model.training_loss))
        torch.manual_seed(0)
        self.model = model.build_model(**values.network_options()).to(dtype).train()
        for layer in self.model.modules():
            if isinstance(layer, torch.nn.Dropout2d):
                layer.p = 0.0
        self.world = World(torch.device("cpu"), channels_last=channels_last)
        classes = max(2, self.model.options["num_classes"])
        self.images = torch.randn(2, 3, 64, 96, dtype=dtype)
        self.target = torch.randint(0, classes, (2, 64, 96))
        self.target[torch.rand(self.target.shape) < 0.2] = 255

    def loss(self, model, images) -> torch.Tensor:
        return sum(self.training_loss(model(images), self.target).values())


@pytest.mark.parametrize("channels_last", [True, False])
def test_loss_and_gradients_are_those_of_the_plain_form(folder, channels_last):
    """In float64, where what is left of a difference is no rounding."""
    case = Case(folder, torch.float64, channels_last)
    model = place(copy.deepcopy(case.model), case.world)
    plain = plain_network(model)
    ours = case.loss(model, case.images.contiguous(memory_format=case.world.memory_format))
    with plain_losses(case.training_loss):
        theirs = case.loss(plain, case.images)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    ours.backward()
    theirs.backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], rtol=1e-7, atol=1e-9 * largest), name


def test_a_whole_step_is_the_plain_one(folder):
    """What train.py does with a batch, layout, fused optimizer and loss scaling included, three times."""
    case = Case(folder, torch.float64)
    step = plain_training(case.model, case.training_loss, case.args)
    model = copy.deepcopy(case.model).to(memory_format=case.world.memory_format)
    optimizer = fused_optimizer(
        OPTIMIZERS[case.args.optimizer], model.parameters(), case.world, **optimizer_options(case.args)
    )
    amp = Amp(model, optimizer, "O0", "dynamic", case.world)
    images = case.images.contiguous(memory_format=case.world.memory_format)
    losses = []
    for _ in range(3):
        loss = case.loss(model, images)
        amp.step(loss)
        losses.append(loss.item())
        assert losses[-1] == pytest.approx(step(case.images, case.target).item(), rel=1e-6)
    assert len(set(losses)) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_plain_step_under_autocast_is_near_that_in_float32(folder, dtype):
    """In half precision its convolutions run: each loss is near, and not all are the same, as one may be by chance."""
    if dtype == torch.float16 and folder != FOLDERS[0]:
        pytest.skip("minutes on a CPU; the step is the same code in all folders")
    case = Case(folder)
    step, exact = (plain_training(case.model, case.training_loss, case.args, kind) for kind in (dtype, None))
    losses, expected = ([take(case.images, case.target).item() for _ in range(3)] for take in (step, exact))
    assert losses == pytest.approx(expected, rel=0.03)
    assert losses != expected


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_large_logits_of_16_bits_lose_nothing_in_the_loss(folder, level):
    """Of size 50 in fp16: computed in it, a loss and its enlargement would be off by hundredths."""
    case = Case(folder)
    with torch.no_grad():
        shapes = [logits.shape for logits in case.model(case.images)]
    outputs = tuple((50 * torch.randn(shape)).half().requires_grad_() for shape in shapes)
    exact = tuple(logits.detach().double().requires_grad_() for logits in outputs)
    with autocast(level, "fp16", case.world):
        terms = case.training_loss(outputs, case.target)
    expected = case.training_loss(exact, case.target)
    for name, term in terms.items():
        assert term.dtype == torch.float32 and term.item() == pytest.approx(expected[name].item(), rel=1e-5), name
    gradients, truth = (
        torch.autograd.grad(FIRST_SCALE * sum(losses.values()), logits)
        for losses, logits in ((terms, outputs), (expected, exact))
    )
    for ours, theirs in zip(gradients, truth, strict=True):
        assert ours.dtype == torch.float16
        assert (ours.double() - theirs).abs().max() < 2e-3 * theirs.abs().max()


def test_a_step_does_not_wait_for_the_device(folder):
    case = Case(folder)
    with Operators() as operators:
        case.loss(case.model, case.images).backward()
    assert operators.unwanted == []


class Needless(TorchDispatchMode):
    """`found`: what ran and can be spared for certain: passes over features that change nothing but their form."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result, name = operator(*args, **(kwargs or {})), operator.name()
        if name.startswith("aten::div") and result.dim() == 4 and result.shape[2:].numel() > 1:
            self.found.append("the gradient of a mean is written for each pixel")
        if name == "aten::_log_softmax" and not args[0].is_contiguous():
            self.found.append("a softmax makes a contiguous copy of logits that were copied just before")
        return result


def test_no_pass_over_the_features_of_a_step_is_needless(folder):
    case = Case(folder)
    model = place(case.model, case.world)
    images = case.images.contiguous(memory_format=case.world.memory_format)
    with Needless() as needless, torch.autocast("cpu", torch.bfloat16):
        case.loss(model, images).backward()
    assert needless.found == []
