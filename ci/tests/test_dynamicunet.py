"""DynamicUNet against the numbers of its reference implementation, and the behaviour that is our own."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ci.tests import fingerprint
from ci.tests.golden_case import GoldenCase
from ci.tests.operators import Operators
from common import IGNORE_INDEX
from common.errors import InputError
from common.nets.imagenet import load_imagenet
from DynamicUNet import model as dynamicunet_model
from DynamicUNet import presets as dynamicunet_presets
from DynamicUNet.model import DynamicUNet, PixelShuffleICNR, UnetBlock, build_model, pixel_shuffle, training_loss
from DynamicUNet.train import learning_rate_schedule, parameter_groups
from DynamicUNet.weights import IMAGENET_FILES, from_reference, imagenet_file


def total_loss(*arguments, **options) -> torch.Tensor:
    """What training minimises: the sum of the terms."""
    return sum(training_loss(*arguments, **options).values())


@pytest.fixture(scope="module")
def case() -> GoldenCase:
    return GoldenCase("dynamicunet_r50")


def on_meta(**options) -> DynamicUNet:
    """The network without memory for its weights: only their shapes."""
    with torch.device("meta"):
        return build_model(**options)


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def model(request, case) -> DynamicUNet:
    """One at a time: in float64 it takes 2.7 GB, and as much for its gradients."""
    model = on_meta()
    state = {  # the statistics are copied: training would change the case
        name: value.to(request.param, copy=value.dim() < 2) if value.is_floating_point() else value.clone()
        for name, value in from_reference(case.state).items()
    }
    model.load_state_dict(state, strict=True, assign=True)
    return model


class GoldenStep:
    """The recorded training step, done by our model: outputs, loss, gradients, running statistics."""

    def __init__(self, case: GoldenCase, model: DynamicUNet):
        names = case.reference_names(from_reference)
        buffers = dict(model.named_buffers())
        before = {name: value.clone() for name, value in buffers.items()}
        target = case.labels()
        self.outputs = model.train()(case.image("train", model.classifier.weight.dtype))
        self.batch_norms = {names[name]: value.clone() for name, value in model.state_dict().items() if name in buffers}
        self.loss = total_loss(self.outputs, torch.where(target == -1, IGNORE_INDEX, target))
        parameters = dict(model.named_parameters())
        gradients = torch.autograd.grad(self.loss, list(parameters.values()))
        self.gradients = dict(zip((names[name] for name in parameters), gradients, strict=True))
        for name, value in before.items():
            buffers[name].copy_(value)


@pytest.fixture(scope="module")
def step(case, model) -> GoldenStep:
    return GoldenStep(case, model)


def test_eval_outputs(case, model):
    with torch.no_grad():
        logits = model.eval()(case.image("eval", model.classifier.weight.dtype))
    case.assert_outputs("eval", {"logits": logits})


def test_train_outputs_and_loss(case, step):
    (logits,) = step.outputs
    case.assert_outputs("train", {"logits": logits})
    case.assert_losses({"total": step.loss.detach()})


def test_gradients(case, step):
    case.assert_gradients(step.gradients)


@pytest.mark.parametrize("model", [torch.float64], indirect=True, ids=["float64"])
def test_running_statistics(case, step):
    case.assert_batch_norms(step.batch_norms)


# By hand: the reference's numbers of layers, for a network of ours (encoder layerN: 3 more than its stage).
RENAMED = (
    ("encoder_bn.", "layers.1."),
    ("middle.0.", "layers.3.0.0."),
    ("middle.1.", "layers.3.1.0."),
    ("blocks.0.", "layers.4."),
    ("blocks.1.", "layers.5."),
    ("blocks.2.", "layers.6."),
    ("blocks.3.", "layers.7."),
    ("cross_block.conv1.", "layers.11.convpath.0.0."),
    ("cross_block.conv2.", "layers.11.convpath.1.0."),
    ("classifier.", "layers.12.0."),
    ("encoder.conv1.", "layers.0.0."),
    ("encoder.bn1.", "layers.0.1."),
    ("encoder.layer1.", "layers.0.4."),
    ("encoder.layer2.", "layers.0.5."),
    ("encoder.layer3.", "layers.0.6."),
    ("encoder.layer4.", "layers.0.7."),
)


def reference_name(name: str) -> str:
    if name.startswith("upsample.conv."):
        return name.replace("upsample.conv.", "layers.8.0.0.")
    ours, theirs = next(pair for pair in RENAMED if name.startswith(pair[0]))
    name = name.replace(ours, theirs, 1)
    if ours.startswith("blocks."):
        for part, reference in (("upsample.conv.", "shuf.0.0."), ("skip_bn.", "bn."), ("conv1.", "conv1.0.")):
            name = name.replace(part, reference)
        name = name.replace(".conv2.", ".conv2.0.")
    return name


def test_from_reference_names(case):
    names = case.reference_names(from_reference)
    assert set(names.values()) == set(case.state)
    assert names == {ours: reference_name(ours) for ours in on_meta().state_dict()}


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefixed", ["none", "some", "all"])
def test_from_reference_wrappers(case, wrapper, prefixed):
    states = {
        "none": case.state,
        "some": {("module." if "conv1" in name else "") + name: value for name, value in case.state.items()},
        "all": {f"module.{name}": value for name, value in case.state.items()},
    }
    state = states[prefixed]
    converted = from_reference({wrapper: state, "opt": {"state": []}} if wrapper else state)
    assert {name: id(value) for name, value in converted.items()} == {
        name: id(value) for name, value in from_reference(case.state).items()
    }
    assert {name: id(value) for name, value in from_reference(converted).items()} == {
        name: id(value) for name, value in converted.items()
    }


@pytest.mark.parametrize("leaf", ["weight_g", "weight_v", "parametrizations.weight.original0"])
def test_weight_normalised_checkpoints_are_refused_in_one_line(leaf):
    with pytest.raises(InputError, match=f"layers.4.shuf.0.0.{leaf}.*weight normalisation.*norm_type=None") as error:
        from_reference({"model": {"layers.12.0.bias": torch.zeros(21), f"layers.4.shuf.0.0.{leaf}": torch.zeros(1)}})
    assert "\n" not in str(error.value)


# ---- sizes


PARAMETERS = {
    "resnet18": 31_114_908,
    "resnet34": 41_223_068,
    "resnet50": 339_075_548,
    "resnet101": 358_067_676,
}
# ResNet-50, the table of the fact sheet: layer -> parameters
LAYERS = {
    "encoder": 23_508_032,
    "encoder_bn": 4_096,
    "middle": 151_001_088,
    "blocks.0": 83_896_320,
    "blocks.1": 50_864_128,
    "blocks.2": 23_598_592,
    "blocks.3": 4_339_392,
    "upsample": 332_928,
    "cross_block": 1_524_840,
    "classifier": 6_132,
}


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("backbone", IMAGENET_FILES)
def test_parameter_counts(backbone):
    model = on_meta(backbone=backbone)
    assert model.options == {"num_classes": 21, "backbone": backbone, "base_channels": 64}
    # resnet152 is not on the sheet: it has 17 bottleneck blocks more than resnet101, 4 in layer2 and 13 in layer3, of
    # 8 * width ** 2 + 9 * width ** 2 weights and two batch norms of `width` and one of 4 * `width` channels
    more = sum(blocks * (17 * width**2 + 2 * 6 * width) for blocks, width in ((4, 128), (13, 256)))
    expected = PARAMETERS.get(backbone, PARAMETERS["resnet101"] + more)
    assert parameter_count(model) == expected


def test_layer_sizes():
    model = on_meta()
    assert len(model.state_dict()) == 379
    assert {name: parameter_count(model.get_submodule(name)) for name in LAYERS} == LAYERS
    assert [block.out_channels for block in model.blocks] == [2048, 1536, 1024, 288]
    assert on_meta(num_classes=2).classifier.weight.shape == (2, 291, 1, 1)


def test_backbones_that_do_not_exist():
    with pytest.raises(InputError, match="'resnext50'.*resnet18, resnet34, resnet50, resnet101, resnet152"):
        build_model(backbone="resnext50")


# ---- the recorded numbers of the fact sheet


def fingerprint_model() -> DynamicUNet:
    return fingerprint.filled(on_meta(), reference_name, from_reference)


# mean, standard deviation, first element, [0, C // 2, H // 2, W // 2] and last element of the output, and the loss
FINGERPRINTS = {
    (64, 96): [2.973900e-02, 2.224468e-01, 8.767641e-02, 2.591035e-01, -1.747970e-02, 3.067079],
    (75, 99): [2.968052e-02, 2.233460e-01, 6.652499e-02, 3.660533e-01, -8.265409e-02, 3.072469],
}


@torch.no_grad()
def test_fingerprints():
    model = fingerprint_model()
    for (height, width), numbers in FINGERPRINTS.items():
        logits = model(fingerprint.image(height, width))
        assert logits.shape == (1, 21, height, width)
        target = fingerprint.labels(21, height, width, ignore_index=-1)
        loss = total_loss((logits,), target, ignore_index=-1).item()
        assert [*fingerprint.numbers(logits), loss] == fingerprint.approx(numbers)


# ---- shapes and initial values, on the smallest network


@pytest.fixture(scope="module")
def untrained() -> DynamicUNet:
    torch.manual_seed(0)
    return build_model(backbone="resnet18")


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (65, 98), (64, 32), (7, 100)])
@torch.no_grad()
def test_logits_have_the_size_of_the_image(untrained, size):
    logits = untrained.eval()(torch.randn(1, 3, *size))
    assert logits.shape == (1, 21, *size) and logits.dtype == torch.float32
    (trained,) = untrained.train()(torch.randn(2, 3, *size))
    assert trained.shape == (2, 21, *size)


def test_images_that_do_not_fit(untrained):
    untrained.eval()
    with pytest.raises(ValueError, match=r"\[3, 64, 64\].*\[B, 3, H, W\]"):
        untrained(torch.zeros(3, 64, 64))
    with pytest.raises(ValueError, match=r"\[1, 1, 64, 64\].*\[B, 3, H, W\]"):
        untrained(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ValueError, match=r"\[1, 3, 0, 64\].*1 pixel"):
        untrained(torch.zeros(1, 3, 0, 64))
    untrained.train()
    with pytest.raises(ValueError, match=r"\[1, 3, 32, 32\].*32 pixels or less.*larger crop or two images"):
        untrained(torch.zeros(1, 3, 32, 32))
    with torch.no_grad():
        assert untrained(torch.randn(1, 3, 33, 4))[0].shape == (1, 21, 33, 4)


def standard_deviation(weight: torch.Tensor, fan: int) -> pytest.approx:
    return pytest.approx((2 / fan) ** 0.5, rel=0.1)


def test_initial_values(untrained):
    fresh = build_model(backbone="resnet18")
    decoder = [untrained.middle, untrained.cross_block, *(block.conv1 for block in untrained.blocks)]
    decoder += [block.conv2 for block in untrained.blocks]
    convolutions = [m for part in decoder for m in part.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 2 + 2 + 8
    for conv in convolutions:  # Kaiming, normal, over the fan-in
        assert conv.weight.std().item() == standard_deviation(conv.weight, conv.weight[0].numel())
        assert not conv.bias.any()
    for shuffle in (m for m in untrained.modules() if isinstance(m, PixelShuffleICNR)):
        weight = shuffle.conv.weight
        groups = weight.unflatten(0, (-1, 4))  # [C, 4, C', 1, 1]
        assert torch.equal(groups, groups[:, :1].expand_as(groups))
        assert len(groups[:, 0].flatten(1).unique(dim=0)) == len(groups)
        assert weight.std().item() == standard_deviation(weight, weight.shape[1])
        assert not shuffle.conv.bias.any()
    for bn in (untrained.encoder_bn, *(block.skip_bn for block in untrained.blocks)):
        assert (bn.bias == 1e-3).all() and (bn.weight == 1).all()
    encoder = untrained.encoder
    for weight in (encoder.conv1.weight, encoder.layer1[0].conv1.weight, encoder.layer4[1].conv2.weight):
        assert weight.std().item() == standard_deviation(weight, weight.shape[0] * weight[0, 0].numel())
    assert not encoder.bn1.bias.any()
    bound = untrained.classifier.weight[0].numel() ** -0.5  # PyTorch's own: uniform within 1 / sqrt(fan-in)
    assert 0.95 * bound < untrained.classifier.weight.abs().max().item() <= bound
    biases = torch.cat([untrained.classifier.bias, fresh.classifier.bias])
    assert 0.005 < biases.std().item() < 0.02


@torch.no_grad()
def test_upsampling_starts_as_a_nearest_neighbour_resize():
    shuffle = PixelShuffleICNR(6, 5)
    x = torch.randn(2, 6, 3, 4)
    y = shuffle(x)
    assert y.shape == (2, 5, 6, 8)
    assert torch.equal(y, F.interpolate(y[:, :, ::2, ::2], scale_factor=2.0, mode="nearest"))
    small = torch.einsum("bchw,oc->bohw", x, shuffle.conv.weight[::4, :, 0, 0]).relu()
    assert torch.allclose(y[:, :, ::2, ::2], small, atol=1e-6)


@torch.no_grad()
def test_a_block_puts_the_upsampled_features_before_the_skip():
    block = UnetBlock(8, 6, is_last=False).eval()
    assert block.out_channels == 10 and UnetBlock(8, 6, is_last=True).out_channels == 5
    for conv in (block.conv1, block.conv2):  # pass everything on
        nn.init.dirac_(conv.weight)
    x, skip = torch.randn(1, 8, 3, 4), torch.randn(1, 6, 5, 7)
    expected = F.interpolate(block.upsample(x), size=(5, 7), mode="nearest")
    out = block(x, skip)
    assert torch.equal(out[:, :4], expected)
    assert torch.allclose(out[:, 4:], (skip / (1 + 1e-5) ** 0.5 + 1e-3).relu(), atol=1e-6)


def test_what_is_not_below_zero_is_given_to_no_second_relu():
    """Neither on the way there nor back: that would be a pass over most of the joined features, and change nothing."""
    block = UnetBlock(8, 6, is_last=False)
    x, skip = torch.randn(1, 8, 3, 4, requires_grad=True), torch.randn(1, 6, 5, 7, requires_grad=True)
    with Operators() as operators:
        block(x, skip).sum().backward()
    once = 16 * 3 * 4 + 6 * 5 * 7 + 2 * 10 * 5 * 7  # before the shuffle, the skip, two convolutions
    assert operators.written["relu_"] == operators.written["threshold_backward"] == once


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_shuffle_is_that_of_torch_and_keeps_the_layout(layout):
    x = torch.randn(2, 12, 3, 5).contiguous(memory_format=layout)
    shuffled = pixel_shuffle(x)
    assert torch.equal(shuffled, F.pixel_shuffle(x, 2)) and shuffled.is_contiguous(memory_format=layout)


def test_channels_of_zeros_change_nothing_but_the_shapes(monkeypatch):
    """As on CUDA, where the 99 channels of a ResNet-18 at full size become 104."""
    model = build_model(num_classes=5, backbone="resnet18").double()
    images, found, widths = torch.randn(2, 3, 32, 40, dtype=torch.float64), [], []
    model.cross_block.register_forward_pre_hook(lambda _, x: widths.append(x[0].shape[1]))
    for multiple in (1, dynamicunet_model.CHANNEL_MULTIPLE["cuda"]):
        monkeypatch.setattr(dynamicunet_model, "CHANNEL_MULTIPLE", {"cpu": multiple})
        (logits,) = model(images)
        found.append([logits, *torch.autograd.grad(logits.square().sum(), model.parameters())])
    assert widths == [99, 104]
    for plain, padded in zip(*found, strict=True):
        torch.testing.assert_close(padded, plain, rtol=1e-9, atol=1e-9)


# ---- the loss


def test_loss_by_hand():
    """Logits of ln 21 for class 5 and 0 for the other 20 have the loss ln(41 / 21) for class 5, else ln 41."""
    logits = torch.zeros(1, 21, 2, 3)
    logits[:, 5] = np.log(21)
    target = torch.tensor([[[5, 5, 6], [IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX]]])
    expected = (2 * np.log(41 / 21) + np.log(41)) / 3
    assert total_loss((logits,), target).item() == pytest.approx(expected)


def test_loss_without_a_valid_pixel():
    logits = torch.randn(2, 21, 4, 4, requires_grad=True)
    loss = total_loss((logits,), torch.full((2, 4, 4), IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision(untrained, dtype):
    images, target = torch.randn(2, 3, 33, 20), torch.randint(0, 21, (2, 33, 20))
    with torch.no_grad():
        exact = total_loss(untrained.train()(images), target)
        with torch.autocast("cpu", dtype=dtype):
            outputs = untrained(images)
            loss = total_loss(outputs, target)
            assert untrained.eval()(images).dtype == torch.float32
    assert outputs[0].dtype == dtype and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_training_step_suits_accelerators(untrained):
    images, target = torch.randn(2, 3, 41, 70), torch.randint(0, 21, (2, 41, 70))
    with Operators() as operators:
        total_loss(untrained.train()(images), target).backward()
    assert operators.unwanted == []
    assert {"convolution", "upsample_nearest2d"} <= operators.names
    untrained.zero_grad(set_to_none=True)


# ---- recipe and files


SCHEDULES = json.loads((Path(__file__).parent / "golden" / "lr_schedules.json").read_text())


def groups(model: DynamicUNet, lr: float, encoder_factor: float, head_factor: float, scale_lr: bool = False):
    """The parameter groups of one of eight processes."""
    args = Namespace(lr=lr, encoder_lr_factor=encoder_factor, head_lr_factor=head_factor, scale_lr=scale_lr)
    return parameter_groups(model, args, world_size=8)


@pytest.mark.parametrize("name", ["semseg_warmup_poly_lr0.00015_w20", "semseg_warmup_poly_lr0.0001_w0"])
def test_learning_rates(name, untrained):
    """Row 0 is the state before the first step; the reference's first group is what it takes for the encoder."""
    config = SCHEDULES[name]["config"]
    factor = learning_rate_schedule(config["max_iters"], config["warmup_iters"], config["warmup_factor"])
    encoder, heads = groups(untrained, config["base_lr"], 1.0, 10.0)
    rows = [row for row in SCHEDULES[name]["rows"] if row[0] > 0]
    assert len(rows) > 5
    for iteration, encoder_lr, head_lr in rows:
        assert encoder["lr"] * factor(iteration - 1) == pytest.approx(encoder_lr, rel=1e-9, abs=1e-15)
        assert heads["lr"] * factor(iteration - 1) == pytest.approx(head_lr, rel=1e-9, abs=1e-15)


def test_learning_rates_of_the_fact_sheet(untrained):
    """Eight devices, all layers at ten times the rate: 4 images each and 1e-4, or 6 images each and 1.5e-4."""
    rates = {
        (2250, 1e-4): {1: 0.00293, 20: 0.008, 1125: 0.00432},
        (1500, 1.5e-4): {1: 0.0044, 20: 0.012, 750: 0.00651},
    }
    for (total_steps, lr), expected in rates.items():
        factor = learning_rate_schedule(total_steps, 20, 1 / 3)
        for group in groups(untrained, lr, 10.0, 10.0, scale_lr=True):
            assert group["lr"] == pytest.approx(8 * 10 * lr)
            for iteration, rate in expected.items():
                assert group["lr"] * factor(iteration - 1) == pytest.approx(rate, rel=2e-3)
        assert factor(total_steps - 1) == 0


def test_a_warm_up_longer_than_the_run():
    factor = learning_rate_schedule(4, 8, 0.5)
    assert [factor(step) for step in range(4)] == [0.5 + 0.5 * k / 8 for k in (1, 2, 3, 4)]


def test_parameter_groups_cover_every_weight_once(untrained):
    encoder, heads = groups(untrained, 0.5, 2.0, 3.0)
    assert (encoder["lr"], heads["lr"]) == (1.0, 1.5)
    assert [id(p) for p in encoder["params"]] == [id(p) for p in untrained.encoder.parameters()]
    ids = [id(parameter) for group in (encoder, heads) for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in untrained.parameters())


def test_presets_of_the_published_runs():
    recipe = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 1e-4, "epochs": 50, "warmup_steps": 20}
    recipe |= {"device_batch_size": 4, "eval_every_epochs": 5, "scale_lr": True, "devices": 8}
    recipe |= {"encoder_lr_factor": 10.0, "head_lr_factor": 10.0, "base_size": 520, "crop_size": (480, 480)}
    presets = dynamicunet_presets.PRESETS
    assert recipe.items() <= presets["full_8p"].items()
    assert (recipe | {"devices": 1}).items() <= presets["full_1p"].items()
    assert (recipe | {"device_batch_size": 6, "lr": 1.5e-4}).items() <= presets["full_8p_batch48"].items()
    assert (presets["split_lr"]["encoder_lr_factor"], presets["split_lr"]["head_lr_factor"]) == (1.0, 10.0)
    for name in ("performance_1p", "performance_8p"):
        assert presets[name]["max_steps"] == 50 and not presets[name]["validate"]


def test_imagenet_file(tmp_path):
    assert imagenet_file("resnet101", "none") is None
    files = {
        "resnet18": ["resnet18-f37072fd.pth", "resnet18-5c106cde.pth"],
        "resnet34": ["resnet34-b627a593.pth", "resnet34-333f7ec4.pth"],
        "resnet50": ["resnet50-0676ba61.pth", "resnet50-19c8e357.pth"],
        "resnet101": ["resnet101-63fe2227.pth", "resnet101-5d3b4d8f.pth"],
        "resnet152": ["resnet152-394f9c45.pth", "resnet152-b121ed2d.pth"],
    }
    for backbone, names in files.items():
        for name in names:
            (tmp_path / name).touch()
            assert imagenet_file(backbone, str(tmp_path)) == tmp_path / name


def test_the_missing_imagenet_file_is_downloaded_from_torchvision(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("DynamicUNet.weights.find_imagenet", lambda *arguments: asked.append(arguments))
    imagenet_file("resnet34", str(tmp_path))
    ((source, names, url),) = asked
    assert source == str(tmp_path) and "resnet34-b627a593.pth" in names
    assert url == "https://download.pytorch.org/models/resnet34-333f7ec4.pth"


def test_torchvision_weights_load_whole(tmp_path, untrained):
    encoder = untrained.encoder.state_dict() | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(encoder, tmp_path / "resnet18-5c106cde.pth")
    fresh = build_model(backbone="resnet18")
    said = load_imagenet(fresh.encoder, imagenet_file("resnet18", str(tmp_path)))
    assert said.startswith("backbone: all ")
    assert torch.equal(fresh.encoder.layer4[1].conv2.weight, untrained.encoder.layer4[1].conv2.weight)
