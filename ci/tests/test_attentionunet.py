"""Attention U-Net and its relatives against the numbers of their reference implementation, and what is our own."""

import copy
import json
import math
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from AttentionUNet.metrics import LesionScores
from AttentionUNet.model import (
    ARCHS,
    AttentionGate,
    AttentionUNet,
    Layers,
    RecurrentConv,
    RecurrentResidualUnit,
    build_model,
    training_loss,
)
from AttentionUNet.train import learning_rate_schedule
from AttentionUNet.weights import from_reference
from ci.tests import fingerprint
from ci.tests.golden_case import GoldenCase
from ci.tests.operators import Operators
from common.data.order import images_of_one_device
from common.device.world import World
from common.tools.plain import plain_network

CASES = {
    "attu_net": {"arch": "AttU_Net"},
    "u_net": {"arch": "U_Net"},
    "r2u_net": {"arch": "R2U_Net", "t": 2},
    "r2attu_net": {"arch": "R2AttU_Net", "t": 3},
}
DTYPES = (torch.float64, torch.float32)


def loss_of(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The training loss of these logits, whose one term it is."""
    terms = training_loss((logits,), target)
    assert list(terms) == ["main"]
    return terms["main"]


def empty_model(**options) -> AttentionUNet:
    """A model without values: no time is spent on initial ones."""
    with torch.device("meta"):
        return build_model(**options)


# ---- the reference's numbers


class Recorded:
    """A case of the reference, and our network with its weights."""

    def __init__(self, name: str):
        self.case = GoldenCase(name)
        self.names = self.case.reference_names(from_reference)
        self.model = empty_model(**CASES[name])
        self.model.load_state_dict(from_reference(self.case.state), strict=True, assign=True)

    def outputs(self, mode: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        model = self.model.to(dtype).train(mode == "train")
        logits = model(self.case.image(mode, dtype))
        logits = logits[0] if mode == "train" else logits
        return {"logits": logits, "prob": logits.sigmoid()}


@pytest.fixture(scope="module", params=CASES)
def recorded(request) -> Recorded:
    return Recorded(request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_eval_outputs(recorded, dtype):
    with torch.no_grad():
        recorded.case.assert_outputs("eval", recorded.outputs("eval", dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_training_step(recorded, dtype):
    """Outputs, loss, gradients and running statistics, with the reference's loss on probabilities beside ours."""
    case, model = recorded.case, recorded.model.to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outputs = recorded.outputs("train", dtype)
    statistics = {recorded.names[name]: value.clone() for name, value in model.state_dict().items()}
    target = case.labels()[:, 0]  # [B, H, W] float32, 0 and 1
    loss = loss_of(outputs["logits"], target.long())
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    model.load_state_dict(before)

    case.assert_outputs("train", outputs)
    case.assert_losses({"total": loss})
    case.assert_losses({"total": F.binary_cross_entropy(outputs["prob"], target[:, None].to(dtype))})
    names = [recorded.names[name] for name, _ in model.named_parameters()]
    case.assert_gradients(dict(zip(names, gradients, strict=True)))
    if dtype == torch.float64:
        case.assert_batch_norms(statistics)


# arch, t -> parameters, tensors of the checkpoint, fingerprint (mean, deviation, first, middle, last logit), loss
FINGERPRINTS = {
    ("AttU_Net", 3): (
        34_878_573,
        240,
        [5.889116e-01, 4.890332e-02, 5.077599e-01, 6.058047e-01, 4.878064e-01],
        0.736787,
    ),
    ("U_Net", 3): (34_527_041, 156, [6.449972e-01, 8.557025e-02, 5.228712e-01, 6.968296e-01, 4.823163e-01], 0.745520),
    ("R2U_Net", 3): (39_091_393, 174, [6.716994e-01, 8.792801e-01, -4.921277e-01, 1.071303e-01, 1.772194], 0.832526),
    ("R2U_Net", 2): (39_091_393, 174, [5.626969e-01, 8.713355e-01, -4.969097e-01, 4.754741e-02, 1.732892], 0.816674),
    ("R2AttU_Net", 3): (39_442_925, 258, [4.189049e-01, 5.423000e-01, -3.333488e-01, 4.593270e-01, 1.423813], 0.750772),
}
# parts of AttU_Net, by hand from the sizes of its layers
PARTS = {
    "encoder.0": 38_976,
    "encoder.1": 221_952,
    "encoder.2": 886_272,
    "encoder.3": 3_542_016,
    "encoder.4": 14_161_920,
    "decoder.0.up": 4_720_128,
    "decoder.1.up": 1_180_416,
    "decoder.2.up": 295_296,
    "decoder.3.up": 73_920,
    "decoder.0.gate": 263_939,
    "decoder.1.gate": 66_435,
    "decoder.2.gate": 16_835,
    "decoder.3.gate": 4_323,
    "decoder.0.conv": 7_080_960,
    "decoder.1.conv": 1_771_008,
    "decoder.2.conv": 443_136,
    "decoder.3.conv": 110_976,
    "classifier": 65,
}


def test_parameters_of_each_part():
    model = empty_model()
    assert {name: sum(p.numel() for p in model.get_submodule(name).parameters()) for name in PARTS} == PARTS
    assert sum(PARTS.values()) == FINGERPRINTS["AttU_Net", 3][0]


def reference_name(name: str) -> str:
    """By hand: the name of one of our tensors in the reference."""
    kind, level, *rest = name.split(".")
    if kind == "classifier":
        return f"Conv_1x1.{level}"
    rest = ".".join(rest)
    down, up = int(level) + 1, 5 - int(level)
    residual = rest.removeprefix("conv.").replace("project.", "Conv_1x1.").replace("recurrent.", "RCNN.")
    residual = residual.replace(".unit.", ".conv.")
    is_residual = "RCNN" in residual or "Conv_1x1" in residual
    if kind == "encoder":
        return f"RRCNN{down}.{residual}" if is_residual else f"Conv{down}.conv.{rest}"
    if rest.startswith("up."):
        return f"Up{up}." + rest.replace("up.1", "up.2").replace("up.0", "up.1")
    if rest.startswith("gate."):
        return f"Att{up}." + rest.removeprefix("gate.").replace("w_", "W_")
    return f"Up_RRCNN{up}.{residual}" if is_residual else f"Up_conv{up}.conv." + rest.removeprefix("conv.")


def fingerprint_model(**options) -> AttentionUNet:
    return fingerprint.filled(empty_model(**options), reference_name, from_reference)


@pytest.mark.parametrize(("arch", "t"), FINGERPRINTS)
@torch.no_grad()
def test_fingerprint(arch, t):
    parameters, tensors, numbers, loss = FINGERPRINTS[arch, t]
    model = fingerprint_model(arch=arch, t=t)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors
    logits = model(fingerprint.image(64, 64, batch_size=2))
    assert logits.shape == (2, 1, 64, 64)
    assert fingerprint.numbers(logits) == fingerprint.approx(numbers)
    target = np.random.RandomState(1).random_sample((2, 1, 64, 64)).astype(np.float32)
    assert loss_of(logits, torch.from_numpy(target)[:, 0]).item() == pytest.approx(loss, rel=3e-6)


# ---- names


@pytest.mark.parametrize("arch", ARCHS)
def test_names_of_the_reference(arch):
    model = empty_model(arch=arch)
    theirs = {reference_name(name): value for name, value in model.state_dict().items()}
    assert not set(theirs) & set(model.state_dict())
    assert list(from_reference(theirs)) == list(model.state_dict())


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_from_reference_wrappers(wrapper, prefix):
    state = {
        prefix + reference_name(name): value for name, value in empty_model(arch="R2AttU_Net").state_dict().items()
    }
    converted = from_reference({wrapper: state, "epoch": 3} if wrapper else state)
    assert list(converted) == list(empty_model(arch="R2AttU_Net").state_dict())
    assert list(from_reference(converted)) == list(converted)


# ---- the network


@pytest.fixture(scope="module")
def small() -> AttentionUNet:
    torch.manual_seed(0)
    return build_model(base_channels=4)


def test_options_say_how_the_network_is_built():
    options = {"num_classes": 3, "arch": "R2U_Net", "t": 1, "base_channels": 4, "image_size": 96}
    model = build_model(**options)
    assert model.options == options
    assert model.classifier.weight.shape == (3, 4, 1, 1)
    assert [level.project.weight.shape[0] for level in model.encoder] == [4, 8, 16, 32, 64]
    assert build_model().options == {
        "num_classes": 1,
        "arch": "AttU_Net",
        "t": 3,
        "base_channels": 64,
        "image_size": 224,
    }


@pytest.mark.parametrize("arch", ARCHS)
def test_which_networks_have_gates_and_recurrent_units(arch):
    modules = list(build_model(arch=arch, base_channels=2).modules())
    assert sum(isinstance(module, AttentionGate) for module in modules) == (4 if "Att" in arch else 0)
    assert sum(isinstance(module, RecurrentResidualUnit) for module in modules) == (9 if "R2" in arch else 0)


def test_sizes_from_level_to_level(small):
    sizes = []
    hooks = [
        level.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
        for level in (*small.encoder, *small.decoder)
    ]
    with torch.no_grad():
        small.eval()(torch.zeros(1, 3, 32, 48))
    for hook in hooks:
        hook.remove()
    down = [(4, 32, 48), (8, 16, 24), (16, 8, 12), (32, 4, 6), (64, 2, 3)]
    assert sizes == [*down, *down[-2::-1]]


@pytest.mark.parametrize("t", [0, 1, 3])
def test_a_recurrent_layer_by_hand(t):
    """With a unit that doubles: x_0 = 2 x, x_n = 2 (x + x_{n-1})."""
    layer = RecurrentConv(1, t)
    layer.unit = nn.Sequential(nn.Conv2d(1, 1, kernel_size=1, bias=False))
    nn.init.constant_(layer.unit[0].weight, 2.0)
    expected = 2.0
    for _ in range(t):
        expected = 2 * (1 + expected)
    assert layer(torch.ones(1, 1, 1, 1)).item() == expected


@pytest.mark.parametrize("t", [1, 3])
def test_the_batch_norm_of_a_recurrent_layer_sees_each_time(t):
    layer = RecurrentConv(2, t).train()
    layer(torch.randn(2, 2, 4, 4))
    assert layer.unit[1].num_batches_tracked.item() == t + 1


@torch.no_grad()
def test_a_recurrent_unit_adds_its_projected_input():
    unit = RecurrentResidualUnit(3, 2, t=1).eval()
    for layer in unit.recurrent:
        nn.init.zeros_(layer.unit[1].weight)
    x = torch.randn(1, 3, 4, 4)
    assert torch.equal(unit(x), unit.project(x))


@torch.no_grad()
def test_an_attention_gate_by_hand():
    """w_g passes channel 0 of the gating signal, w_x that of the skip connection, psi 3 times their sum minus 2."""
    gate = AttentionGate(2).eval()
    for convolution, weight, bias in (
        (gate.w_g[0], [1.0, 0.0], 0.0),
        (gate.w_x[0], [1.0, 0.0], 0.0),
        (gate.psi[0], [3.0], -2.0),
    ):
        convolution.weight.copy_(torch.tensor(weight).view_as(convolution.weight))
        convolution.bias.fill_(bias)
    gating = torch.tensor([0.5, 9.0]).view(1, 2, 1, 1)
    skip = torch.tensor([0.25, -4.0]).view(1, 2, 1, 1)
    for sign, features in ((1, 0.75), (-1, 0.0)):  # a negative sum is cut off by the ReLU
        coefficient = 1 / (1 + math.exp(-(3 * features - 2)))
        expected = [0.25 * sign * coefficient, -4.0 * sign * coefficient]
        found = gate(sign * gating, sign * skip).flatten().tolist()
        assert found == pytest.approx(expected, rel=1e-4)  # the batch norms divide by sqrt(1 + 1e-5)


def test_a_bias_before_a_batch_norm_is_seen_by_the_running_mean_alone():
    layers = Layers(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()).double()
    plain = copy.deepcopy(layers)
    plain.leaves_biases_out = False
    for step in range(3):
        x = torch.randn(2, 3, 6, 7, dtype=torch.float64) + step
        found, expected = layers(x), plain(x)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        for out in (found, expected):
            out.square().sum().backward()
    for (name, one), other in zip(layers.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9, msg=name)
    assert not layers[0].bias.grad.any()
    for one, other in zip(layers.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    layers.eval(), plain.eval()
    torch.testing.assert_close(layers(x), plain(x), rtol=1e-9, atol=1e-9)


def test_the_plain_form_adds_the_biases(small):
    plain = plain_network(small)
    layers = [module for module in plain.modules() if isinstance(module, Layers)]
    assert layers and not any(module.leaves_biases_out for module in layers)
    assert all(module.leaves_biases_out for module in small.modules() if isinstance(module, Layers))


def test_shapes_that_do_not_fit(small):
    small.eval()
    with pytest.raises(ValueError, match=r"\[1, 3, 100, 64\].*multiples of 16.* 112 x 64"):
        small(torch.zeros(1, 3, 100, 64))
    with pytest.raises(ValueError, match=r"\[3, 64, 64\].*\[B, 3, H, W\]"):
        small(torch.zeros(3, 64, 64))
    small.train()
    with pytest.raises(ValueError, match=r"\[1, 3, 16, 16\].*32 pixels or two images"):
        small(torch.zeros(1, 3, 16, 16))
    with torch.no_grad():
        assert small(torch.zeros(1, 3, 32, 16))[0].shape == (1, 1, 32, 16)
        assert small(torch.zeros(2, 3, 16, 16))[0].shape == (2, 1, 16, 16)
        assert small.eval()(torch.zeros(1, 3, 16, 16)).shape == (1, 1, 16, 16)


def test_networks_that_do_not_exist():
    with pytest.raises(ValueError, match="'UNet'.*AttU_Net, U_Net, R2U_Net, R2AttU_Net"):
        build_model(arch="UNet")
    with pytest.raises(ValueError, match="1 channels.*2 or more"):
        build_model(base_channels=1)


def test_initial_values_are_those_of_pytorch():
    torch.manual_seed(0)
    model = build_model(arch="R2AttU_Net", base_channels=16)
    for weight in (
        model.encoder[2].recurrent[0].unit[0].weight,
        model.encoder[4].project.weight,
        model.decoder[0].up[0].weight,
        model.decoder[0].gate.w_x[0].weight,
    ):  # uniform within 1 / sqrt(fan-in)
        bound = weight[0].numel() ** -0.5
        assert 0.95 * bound < weight.abs().max().item() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-5, 0.1)}


# ---- the loss


def test_loss_by_hand():
    """A logit of ln 3 is a probability of 3/4."""
    logits = torch.full((1, 1, 1, 4), math.log(3.0))
    target = torch.tensor([[[1, 0, 255, 255]]])
    expected = (math.log(4 / 3) + math.log(4)) / 2
    assert loss_of(logits, target).item() == pytest.approx(expected)
    soft = torch.tensor([[[0.25, 255.0, 255.0, 255.0]]])
    expected = 0.25 * math.log(4 / 3) + 0.75 * math.log(4)
    assert loss_of(logits, soft).item() == pytest.approx(expected)


def test_ignored_pixels_get_no_gradient():
    logits = torch.randn(2, 1, 4, 4, requires_grad=True)
    target = torch.ones(2, 4, 4, dtype=torch.int64)
    target[0, :2] = 255
    loss_of(logits, target).backward()
    assert torch.equal(logits.grad[:, 0] == 0, target == 255)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_loss_without_a_pixel_that_counts(dtype):
    logits = torch.randn(2, 1, 4, 4, requires_grad=True)
    loss = loss_of(logits, torch.full((2, 4, 4), 255, dtype=dtype))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_loss_of_several_channels_is_cross_entropy():
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    target[0, 0] = 255
    expected = F.cross_entropy(logits, target, ignore_index=255)
    assert loss_of(logits, target).item() == pytest.approx(expected.item(), rel=1e-6)


def test_loss_of_large_16_bit_logits_is_finite_and_float32():
    logits = torch.tensor([60000.0, -60000.0], dtype=torch.float16).view(1, 1, 1, 2).requires_grad_()
    loss = loss_of(logits, torch.tensor([[[0, 1]]]))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == 60000
    assert logits.grad.dtype == torch.float16 and logits.grad.flatten().tolist() == [0.5, -0.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_mixed_precision(small, dtype):
    images = torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", dtype=dtype):
        assert small.train()(images)[0].dtype == dtype
        assert small.eval()(images).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_training_step_and_counting_suit_accelerators(small, dtype):
    images, target = torch.randn(2, 3, 32, 32), torch.randint(0, 2, (2, 32, 32)).to(dtype)
    target[:, :4] = 255
    scores = LesionScores(2, World(torch.device("cpu")))
    with Operators() as operators:
        outputs = small.train()(images)
        loss_of(*outputs, target).backward()
        scores.update(outputs[0].detach(), target)
    assert operators.unwanted == []
    assert {"convolution", "max_pool2d_with_indices", "sigmoid"} <= operators.names
    small.zero_grad(set_to_none=True)


# ---- scores

GOLDEN = Path(__file__).parent / "golden"
REFERENCE_SCORES = {  # theirs -> ours
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "F1": "f1",
    "JS": "jaccard",
    "DC": "dice",
}


def score(*batches, images: int | None = None) -> LesionScores:
    scores = LesionScores(images or sum(len(target) for _, target in batches), World(torch.device("cpu")))
    for logits, target in batches:
        scores.update(logits, target)
    return scores


@pytest.mark.parametrize("case", ["binary.binary", "binary.binary_soft"])
def test_scores_are_those_of_the_reference(case):
    recorded = json.loads((GOLDEN / "metrics.json").read_text())[case]
    arrays = np.load(GOLDEN / "metrics.npz")
    probabilities, truth = (torch.from_numpy(arrays[f"{case}.{name}"]) for name in ("score", "gt"))
    found = score((probabilities.logit(), (truth == truth.max()).long()[:, 0])).scores()
    assert {ours: found[ours] for ours in REFERENCE_SCORES.values()} == {
        ours: pytest.approx(recorded[theirs]["modelzoo"], abs=2e-6)  # theirs adds 1e-6 to each denominator
        for theirs, ours in REFERENCE_SCORES.items()
    }


def picture(*rows: str) -> torch.Tensor:
    return torch.tensor([[{"#": 1, ".": 0, "x": 255}[pixel] for pixel in row] for row in rows])


TRUTH = torch.stack([picture("##..", "##.."), picture("#...", "...x"), picture("....", "....")])
FOUND = torch.stack([picture("##..", "#..#"), picture("...#", "...#"), picture("....", "....")])


def test_scores_by_hand():
    """True and false positives, negatives: 3 1 1 3, then 0 1 1 5 with one pixel that does not count, then 0 0 0 8."""
    scores = score((FOUND[:, None] - 0.5, TRUTH))
    assert scores.counts.tolist() == [[3, 1, 1, 3], [0, 1, 1, 5], [0, 0, 0, 8]]
    per_image = [3 / 5, 0, 1]
    assert scores.scores() == pytest.approx(
        {
            "jaccard": 3 / 7,
            "dice": 6 / 10,
            "accuracy": 19 / 23,
            "sensitivity": 3 / 5,
            "specificity": 16 / 18,
            "precision": 3 / 5,
            "f1": 0.6,
            "per_image_jaccard": sum(per_image) / 3,
            "thresholded_jaccard": 1 / 3,  # 3/5 is below 0.65
        }
    )
    assert next(iter(scores.scores())) == "jaccard"
    assert scores.pixels() == 23
    assert scores.class_scores() == pytest.approx({"background": 16 / 20, "lesion": 3 / 7})


def test_two_channels_are_scored_like_one():
    logits = torch.randn(2, 2, 8, 8)
    target = torch.randint(0, 2, (2, 8, 8))
    assert score((logits, target)).scores() == score((logits[:, 1:] - logits[:, :1], target)).scores()


def test_scores_without_a_lesion_are_no_numbers_but_those_of_images():
    found = score((torch.full((1, 1, 2, 2), -1.0), torch.zeros(1, 2, 2, dtype=torch.int64))).scores()
    assert math.isnan(found["jaccard"]) and math.isnan(found["sensitivity"]) and found["precision"] == 0
    assert (found["accuracy"], found["per_image_jaccard"]) == (1, 1)


@pytest.mark.parametrize("images", [5, 6])
def test_two_processes_find_exactly_what_one_finds(images):
    torch.manual_seed(0)
    logits, target = torch.randn(images, 1, 8, 8), torch.randint(0, 2, (images, 8, 8))
    whole = score((logits[:2], target[:2]), (logits[2:], target[2:]))
    parts = [LesionScores(images, World(torch.device("cpu"), rank, 2)) for rank in range(2)]
    for rank, part in enumerate(parts):
        for start in range(rank, images, 4):  # two images at a time
            part.update(logits[start : start + 4 : 2], target[start : start + 4 : 2])
    parts[0].counts += parts[1].counts  # what the sum over the processes does
    assert torch.equal(parts[0].counts, whole.counts)
    assert parts[0].scores() == whole.scores()


def test_images_that_do_not_fit_the_scores_are_refused():
    with pytest.raises(ValueError, match=r"\[1, 3, 2, 2\].*\[B, 1, H, W\]"):
        score((torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)))
    with pytest.raises(ValueError, match="resize the logits"):
        score((torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 2, dtype=torch.int64)))
    with pytest.raises(ValueError, match="more than the 1 images"):
        score((torch.zeros(2, 1, 2, 2), torch.zeros(2, 2, 2, dtype=torch.int64)), images=1)


# ---- the recipe


def schedule(epochs: int, decay_epochs: int | None, steps_per_epoch: int):
    return learning_rate_schedule(Namespace(epochs=epochs, decay_epochs=decay_epochs), steps_per_epoch)


@pytest.mark.parametrize("name", ["attunet_linear_lr0.0002_100ep", "attunet_linear_lr0.0016_100ep"])
@pytest.mark.parametrize("steps_per_epoch", [1, 113])
@pytest.mark.parametrize("decay_epochs", [70, None])
def test_schedule_is_that_of_the_reference(name, steps_per_epoch, decay_epochs):
    recorded = json.loads((GOLDEN / "lr_schedules.json").read_text())[name]
    factor = schedule(len(recorded["rows"]), decay_epochs, steps_per_epoch)
    assert recorded["config"]["num_epochs_decay"] == 70
    for epoch, lr in recorded["rows"]:
        for step in (epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch - 1):
            assert recorded["config"]["base_lr"] * factor(step) == pytest.approx(lr, rel=1e-9)


def test_schedule_of_150_epochs_by_hand():
    factor = schedule(150, None, 10)
    assert factor(809) == 1 and factor(810) == pytest.approx(69 / 70)
    assert factor(1499) == pytest.approx(1 / 70)


@pytest.mark.parametrize(("epochs", "constant_epochs"), [(70, 36), (10, 6), (2, 2), (1, 1)])
def test_short_trainings_lower_the_rate_in_their_later_half(epochs, constant_epochs):
    factors = [schedule(epochs, None, 4)(4 * epoch) for epoch in range(epochs)]
    assert factors.count(1.0) == constant_epochs
    assert factors[-1] == pytest.approx(1 / max(1, epochs // 2))


def test_a_decay_longer_than_the_training_is_refused():
    with pytest.raises(ValueError, match="--decay_epochs 70 .* --epochs 10.*leave the flag out"):
        schedule(10, 70, 4)


def test_images_of_one_device():
    def images(total: int | None, accumulate: int = 1) -> int:
        args = Namespace(total_batch_size=total, device_batch_size=3, accumulate=accumulate)
        return images_of_one_device(args, 8)

    assert (images(None), images(128), images(128, 2)) == (3, 16, 8)
    with pytest.raises(ValueError, match="--total_batch_size 130 .* 8 devices.*multiple of 8"):
        images(130)
    with pytest.raises(ValueError, match="--total_batch_size 136 .* 8 x 2 .--accumulate.* multiple of 16"):
        images(136, 2)
