"""ICNet against the numbers of its reference implementation, and the behaviour that is our own."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ci.tests import fingerprint
from ci.tests.golden_case import GoldenCase
from ci.tests.operators import Operators
from common import IGNORE_INDEX
from ICNet.model import ICNet, PyramidPooling, aligned_labels, build_model, loss_terms, resize, training_loss
from ICNet.weights import from_reference, imagenet_file

HEADS = ("sub4", "sub8", "sub16")


def total_loss(*arguments, **options) -> torch.Tensor:
    """What training minimises: the sum of the terms."""
    return sum(training_loss(*arguments, **options).values())


@pytest.fixture(scope="module")
def case() -> GoldenCase:
    return GoldenCase("icnet_r50")


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def model(request, case) -> ICNet:
    model = build_model()
    model.load_state_dict(from_reference(case.state), strict=True)
    return model.to(request.param)


class GoldenStep:
    """The recorded training step, done by our model: outputs, losses, gradients of both losses, running statistics."""

    def __init__(self, case: GoldenCase, model: ICNet):
        names = case.reference_names(from_reference)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        dtype = model.classifier.weight.dtype
        target = case.labels()
        target = torch.where(target == -1, IGNORE_INDEX, target)
        self.outputs = model.train()(case.image("train", dtype))
        self.batch_norms = {names[name]: value.clone() for name, value in model.state_dict().items()}
        self.losses, self.gradients = {}, {}
        parameters = dict(model.named_parameters())
        for method, total_name in (("nearest", "nearest_labels_total"), ("bilinear", "total")):
            total = total_loss(self.outputs, target, method)
            terms = loss_terms(self.outputs, target, method, IGNORE_INDEX)
            self.losses |= {total_name: total.detach()}
            self.losses |= {f"{method}_labels_{head}": t.detach() for head, t in zip(HEADS, terms, strict=True)}
            gradients = torch.autograd.grad(total, list(parameters.values()), retain_graph=method == "nearest")
            self.gradients[method] = dict(zip((names[name] for name in parameters), gradients, strict=True))
        model.load_state_dict(before)


@pytest.fixture(scope="module")
def step(case, model) -> GoldenStep:
    return GoldenStep(case, model)


def with_reference_resize(heads: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    """The recorded outputs: the three heads, and the first of them four times as large, whatever the input's size."""
    size = [4 * side for side in heads[0].shape[-2:]]
    logits = F.interpolate(heads[0], size=size, mode="bilinear", align_corners=True)
    return {"logits": logits, **dict(zip(HEADS, heads, strict=True))}


def test_eval_outputs(case, model):
    with torch.no_grad():
        heads = model.eval().heads(case.image("eval", model.classifier.weight.dtype))
    case.assert_outputs("eval", with_reference_resize(heads))


def test_train_outputs(case, step):
    case.assert_outputs("train", with_reference_resize(step.outputs))


def test_losses(case, step):
    assert len(step.losses) == 8
    case.assert_losses(step.losses)


def test_gradients(case, step):
    case.assert_gradients(step.gradients["nearest"], "grad_nearest")
    case.assert_gradients(step.gradients["bilinear"])


@pytest.mark.parametrize("model", [torch.float64], indirect=True, ids=["float64"])
def test_running_statistics(case, step):
    """bn_short: layer3 and layer4, whose half-size outputs are not used, see the quarter-size images only."""
    case.assert_batch_norms(step.batch_norms, "bn_short")


# By hand: the table of names in the documentation of from_reference, read backwards.
RENAMED = (
    ("backbone.", "pretrained."),
    ("full_branch.", "conv_sub1."),
    ("cff_", "head.cff_"),
    ("label_guidance", "conv_low_cls"),
    ("classifier.", "head.conv_cls."),
)


def reference_name(name: str) -> str:
    for ours, theirs in RENAMED:
        name = name.replace(ours, theirs)
    return name


def fingerprint_model(backbone: str) -> ICNet:
    with torch.device("meta"):  # no time is spent on initial values
        model = build_model(backbone=backbone)
    return fingerprint.filled(model, reference_name, from_reference)


# mean, standard deviation, first element, [0, C // 2, H // 2, W // 2] and last element of the reference's output
FINGERPRINTS = {
    "resnet50": (26_249_376, [-2.801622e-01, 5.845137e-01, -3.319682e-01, 1.048751, 5.370840e-01]),
    "resnet101": (45_241_504, [-4.019718e-01, 8.594301e-01, -5.109639e-01, 1.758783, 8.244396e-01]),
    "resnet152": (60_885_152, [-5.635830e-01, 1.374179, -1.259272, 2.164275, 1.252798]),
}
HEAD_FINGERPRINTS = {
    (32, 64): [-2.765533e-01, 5.818076e-01, -3.319682e-01, 1.058730, 5.370840e-01],
    (16, 32): [-1.064743e-01, 7.319976e-01, 7.199461e-01, -4.633934e-01, 3.102470e-01],
    (8, 16): [2.271488e-01, 1.680710, 9.802668e-02, -2.877107, -3.526958e-01],
}
FINGERPRINT_LOSSES = {
    "bilinear": (6.143592, [3.053058, 3.327685, 4.398650]),
    "nearest": (6.065603, [3.100780, 3.233462, 4.178596]),
}


@pytest.mark.parametrize("backbone", FINGERPRINTS)
@torch.no_grad()
def test_fingerprint(backbone):
    parameter_count, numbers = FINGERPRINTS[backbone]
    model = fingerprint_model(backbone)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameter_count
    assert model.options == {"num_classes": 19, "backbone": backbone, "base_channels": 64}
    logits = model(fingerprint.image(128, 256))
    assert logits.shape == (1, 19, 128, 256)
    assert fingerprint.numbers(logits) == fingerprint.approx(numbers)
    if backbone != "resnet50":
        return

    heads = model.heads(fingerprint.image(128, 256))
    assert {tuple(head.shape[-2:]): fingerprint.numbers(head) for head in heads} == {
        size: fingerprint.approx(numbers) for size, numbers in HEAD_FINGERPRINTS.items()
    }
    small = [-1.822489e-01, 4.747737e-01, -1.358264e-01, 9.838768e-01, 3.669413e-01]
    assert fingerprint.numbers(model(fingerprint.image(96, 96))) == fingerprint.approx(small)

    target = fingerprint.labels(19, 128, 256, -1)
    for method, (total, terms) in FINGERPRINT_LOSSES.items():
        assert total_loss(heads, target, method, ignore_index=-1).item() == fingerprint.approx(total)
        assert [t.item() for t in loss_terms(heads, target, method, -1)] == fingerprint.approx(terms)


@pytest.fixture(scope="module")
def untrained() -> ICNet:
    torch.manual_seed(0)
    return build_model()


@pytest.mark.parametrize("size", [(4, 4), (33, 47), (65, 98), (64, 32)])
@torch.no_grad()
def test_eval_logits_have_the_size_of_the_image(untrained, size):
    images = torch.randn(1, 3, *size)
    logits = untrained.eval()(images)
    assert logits.shape == (1, 19, *size)
    quarter = untrained.heads(images)[0]
    for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1)):  # with aligned corners, these are pixels of both
        assert torch.allclose(logits[:, :, y, x], quarter[:, :, y, x], atol=1e-5)


@pytest.mark.parametrize("size", [(1, 2), (7, 13), (30, 30)])
def test_the_pyramid_is_that_of_pooling_and_resizing(size):
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    expected = x + sum(resize(F.adaptive_avg_pool2d(x, bins), size) for bins in (1, 2, 3, 6))
    for layout in (torch.contiguous_format, torch.channels_last):
        found = PyramidPooling()(x.contiguous(memory_format=layout))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_images_that_are_too_small(untrained):
    untrained.eval()
    with pytest.raises(ValueError, match=r"\[1, 3, 3, 64\].* 4 pixels.* 4 x 64"):
        untrained(torch.zeros(1, 3, 3, 64))
    with pytest.raises(ValueError, match=r"\[3, 64, 64\].*\[B, 3, H, W\]"):
        untrained(torch.zeros(3, 64, 64))
    with pytest.raises(ValueError, match=r"\[1, 1, 64, 64\].*\[B, 3, H, W\]"):
        untrained(torch.zeros(1, 1, 64, 64))
    untrained.train()
    with pytest.raises(ValueError, match=r"\[1, 3, 35, 35\].* 36 pixels"):
        untrained(torch.zeros(1, 3, 35, 35))
    with torch.no_grad():
        assert untrained(torch.zeros(1, 3, 36, 4))[0].shape == (1, 19, 10, 2)
        assert untrained(torch.zeros(2, 3, 4, 4))[0].shape == (2, 19, 2, 2)


def test_backbones_that_do_not_exist():
    with pytest.raises(ValueError, match="'resnet18'.*resnet50, resnet101, resnet152"):
        build_model(backbone="resnet18")


def test_initial_values(untrained):
    fresh = build_model(num_classes=7)
    assert fresh.options == {"num_classes": 7, "backbone": "resnet50", "base_channels": 64}
    assert fresh.classifier.weight.shape[0] == fresh.cff_12.label_guidance.weight.shape[0] == 7
    for weight in (
        untrained.backbone.conv1[0].weight,
        untrained.backbone.layer1[0].conv1.weight,
        untrained.backbone.layer1[0].downsample[0].weight,
        untrained.backbone.layer4[2].conv2.weight,
    ):  # Kaiming, normal, over the fan-out
        fan_out = weight.shape[0] * weight[0, 0].numel()
        assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    for weight in (
        untrained.full_branch[2].conv.weight,
        untrained.cff_24.conv_low[0].weight,
        untrained.classifier.weight,
    ):  # PyTorch's own: uniform within 1 / sqrt(fan-in)
        bound = weight[0].numel() ** -0.5
        assert 0.95 * bound < weight.abs().max().item() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_from_reference_names(case):
    assert set(case.state) - set(case.reference_names(from_reference).values()) == {
        "pretrained.fc.weight",
        "pretrained.fc.bias",
    }
    assert {ours: reference_name(ours) for ours in case.reference_names(from_reference)} == case.reference_names(
        from_reference
    )


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefixed", ["none", "some", "all"])
def test_from_reference_wrappers(case, untrained, wrapper, prefixed):
    states = {
        "none": case.state,
        "some": {("module." if "conv1" in name else "") + name: value for name, value in case.state.items()},
        "all": {f"module.{name}": value for name, value in case.state.items()},
    }
    state = states[prefixed]
    converted = from_reference({wrapper: state, "epoch": 3} if wrapper else state)
    assert converted.keys() == untrained.state_dict().keys()
    assert from_reference(converted) == converted  # compares by identity: the same tensors under the same names
    own = untrained.state_dict()
    assert {name: value.data_ptr() for name, value in from_reference(own).items()} == {
        name: value.data_ptr() for name, value in own.items()
    }


@pytest.mark.parametrize("method", ["aligned", "nearest", "bilinear"])
def test_loss_without_a_valid_pixel(method):
    outputs = [torch.randn(2, 19, size, size, requires_grad=True) for size in (8, 4, 2)]
    loss = total_loss(outputs, torch.full((2, 32, 32), IGNORE_INDEX), method)
    loss.backward()
    assert loss.item() == 0
    assert all(torch.equal(output.grad, torch.zeros_like(output)) for output in outputs)


@pytest.mark.parametrize("size", [(16, 32), (64, 128), (15, 31), (1, 2), (32, 64)])
def test_labels_lie_where_the_logits_do(size):
    """A ramp of labels, enlarged as the logits are, is the ramp again: no pixel is off by more than a half."""
    columns = torch.arange(128).expand(1, 64, 128)
    rows = torch.arange(64)[:, None].expand(1, 64, 128)
    for ramp, count in ((rows, size[0]), (columns, size[1])):
        labels = aligned_labels(ramp, size)
        assert labels.shape == (1, *size) and labels.dtype == torch.int64
        if count > 1:
            assert (resize(labels[:, None].double(), (64, 128))[:, 0] - ramp).abs().max() <= 0.5 + 1e-9


def test_labels_between_two_pixels_are_those_below_and_right():
    assert aligned_labels(torch.arange(4)[None, None], (1, 3)).tolist() == [[[0, 2, 3]]]


def test_loss_is_the_mean_over_valid_pixels():
    """By hand: logits of ln 19 for class 5 and 0 for the other 18 have the loss ln(37 / 19) for class 5, else ln 37."""
    outputs = [torch.zeros(1, 19, size, size) for size in (4, 2, 1)]
    for output in outputs:
        output[:, 5] = np.log(19)
    target = torch.full((1, 16, 16), IGNORE_INDEX)
    assert total_loss(outputs, target.index_fill(1, torch.tensor([0]), 5)).item() == pytest.approx(
        1.8 * np.log(37 / 19)
    )
    target[0, 0, 0] = 5  # the only pixel of the first row that is taken to all three sizes
    target[0, 5, 5] = 6  # at 1/4 only
    main = (np.log(37 / 19) + np.log(37)) / 2
    assert total_loss(outputs, target).item() == pytest.approx(main + 0.8 * np.log(37 / 19))


def test_loss_of_unknown_label_resize():
    with pytest.raises(ValueError, match="'cubic'.*aligned"):
        total_loss([torch.zeros(1, 19, 2, 2)] * 3, torch.zeros(1, 8, 8, dtype=torch.int64), "cubic")


@pytest.mark.parametrize("model", [torch.float32], indirect=True, ids=["float32"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_loss(case, model, dtype):
    with torch.autocast("cpu", dtype=dtype), torch.no_grad():
        outputs = model.train()(case.image("train", torch.float32))
        loss = total_loss(outputs, case.labels(), "nearest", ignore_index=-1)
    assert outputs[1].dtype == dtype
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(case.manifest["train"]["loss64"]["nearest_labels_total"], rel=0.02)
    with torch.autocast("cpu", dtype=dtype), torch.no_grad():
        assert model.eval()(case.image("eval", torch.float32)).dtype == torch.float32


def test_loss_of_16_bit_logits_is_float32():
    outputs = [torch.randn(1, 19, size, size, dtype=torch.float16, requires_grad=True) for size in (8, 4, 2)]
    loss = total_loss(outputs, torch.zeros(1, 32, 32, dtype=torch.int64))
    loss.backward()
    assert loss.dtype == torch.float32
    assert outputs[0].grad.dtype == torch.float16


def test_training_step_suits_accelerators(untrained):
    images, target = torch.randn(2, 3, 40, 72), torch.randint(0, 19, (2, 40, 72))
    with Operators() as operators:
        total_loss(untrained.train()(images), target).backward()
    assert operators.unwanted == []
    assert {"convolution", "upsample_bilinear2d", "index_select"} <= operators.names
    untrained.zero_grad(set_to_none=True)


def test_imagenet_file(tmp_path):
    assert imagenet_file("resnet101", "none") is None
    for name in ("resnet50-25c4b509.pth", "resnet101-2a57e44d.pth", "resnet152-0d43d698.pth"):
        (tmp_path / name).touch()
        assert imagenet_file(name.split("-")[0], str(tmp_path)) == tmp_path / name
