"""DeepLabV3 against the numbers of its reference implementation, and the behaviour that is our own."""

import json
import os
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ci.tests import fingerprint
from ci.tests.folders import built, carry_out, parsed
from ci.tests.golden_case import GoldenCase
from ci.tests.narrow import narrow_networks
from ci.tests.operators import Operators
from ci.tests.runs import assert_same_statistics, in_two_processes
from common import IGNORE_INDEX
from common.device import launch
from common.errors import InputError
from DeeplabV3 import presets, train
from DeeplabV3.model import DeepLabV3, build_model, training_loss
from DeeplabV3.weights import from_reference, imagenet_file

SCHEDULES = json.loads((Path(__file__).parent / "golden" / "lr_schedules.json").read_text())


def total_loss(*arguments, **options) -> torch.Tensor:
    """What training minimises: the sum of the terms."""
    return sum(training_loss(*arguments, **options).values())


@pytest.fixture(scope="module")
def case() -> GoldenCase:
    return GoldenCase("deeplabv3_r50")


@pytest.fixture(scope="module", params=[torch.float64, torch.float32], ids=["float64", "float32"])
def model(request, case) -> DeepLabV3:
    with torch.device("meta"):  # no time is spent on initial values
        model = build_model()
    model.load_state_dict(
        {name: value.clone() for name, value in from_reference(case.state).items()}, strict=True, assign=True
    )
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0  # as in the recorded step
    return model.to(request.param)


def dtype_of(model: DeepLabV3) -> torch.dtype:
    return model.classifier.weight.dtype


def with_reference_resize(main: torch.Tensor, auxiliary: torch.Tensor, size: torch.Size) -> dict[str, torch.Tensor]:
    """The recorded outputs: those of the two heads, and the first of them at the size of the image."""
    logits = F.interpolate(main, size=size, mode="bilinear", align_corners=False)
    return {"decode": main, "aux0": auxiliary, "logits": logits}


def heads(model: DeepLabV3, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both outputs in any mode, at their own size."""
    features = model.backbone(images)
    return model.classifier(model.aspp(features[3])), model.auxiliary_head(features[2])


class GoldenStep:
    """The recorded training step, done by our model: outputs, losses, gradients, running statistics."""

    def __init__(self, case: GoldenCase, model: DeepLabV3):
        names = case.reference_names(from_reference)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        target = case.labels()
        self.outputs = model.train()(case.image("train", dtype_of(model)))
        self.batch_norms = {names[name]: value.clone() for name, value in model.state_dict().items()}
        total = total_loss(self.outputs, target)
        terms = training_loss(self.outputs, target)
        valid = training_loss(self.outputs, target, avg_non_ignore=True)
        losses = {"total": total, "decode_loss": terms["main"], "aux0_loss": terms["aux0"]}
        losses |= {"valid_mean_decode_loss": valid["main"], "valid_mean_aux0_loss": valid["aux0"]}
        self.losses = {name: loss.detach() for name, loss in losses.items()}
        parameters = dict(model.named_parameters())
        gradients = torch.autograd.grad(total, list(parameters.values()))
        self.gradients = dict(zip((names[name] for name in parameters), gradients, strict=True))
        model.load_state_dict(before)


@pytest.fixture(scope="module")
def step(case, model) -> GoldenStep:
    return GoldenStep(case, model)


def test_eval_outputs(case, model):
    images = case.image("eval", dtype_of(model))
    with torch.no_grad():
        main, auxiliary = heads(model.eval(), images)
        recorded = with_reference_resize(main, auxiliary, images.shape[-2:])
        case.assert_outputs("eval", recorded)
        assert torch.allclose(model(images), recorded["logits"], rtol=1e-5, atol=1e-5)


def test_train_outputs(case, step):
    case.assert_outputs("train", dict(zip(("decode", "aux0"), step.outputs, strict=True)))


def test_losses(case, step):
    case.assert_losses(step.losses)


def test_gradients(case, step):
    case.assert_gradients(step.gradients)


@pytest.mark.parametrize("model", [torch.float64], indirect=True, ids=["float64"])
def test_running_statistics(case, step):
    case.assert_batch_norms(step.batch_norms)


# By hand: the table of names in the documentation of from_reference, read backwards.
RENAMED = (
    ("backbone.conv1.", "backbone.stem."),
    ("backbone.bn1.", "backbone.stem.7."),
    ("aspp.image_pooling.", "decode_head.image_pool.1."),
    ("aspp.branches.", "decode_head.aspp_modules."),
    ("aspp.fuse.", "decode_head.bottleneck."),
    ("auxiliary_head.conv_bn.", "auxiliary_head.convs.0."),
    ("auxiliary_head.classifier.", "auxiliary_head.conv_seg."),
    ("classifier.", "decode_head.conv_seg."),
)


def reference_name(name: str) -> str:
    for ours, theirs in RENAMED:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def fingerprint_model(backbone: str) -> DeepLabV3:
    with torch.device("meta"):  # no time is spent on initial values
        model = build_model(backbone=backbone)
    return fingerprint.filled(model, reference_name, from_reference)


# mean, standard deviation, first element, [0, C // 2, H // 2, W // 2] and last element of the main logits and mean and
# standard deviation of the auxiliary ones, both at 1/8 of the image; the two losses with their weights
FINGERPRINTS = {
    "resnet18": (
        [2.047171e-02, 2.068811e-01, -6.176692e-02, 2.526693e-02, 1.334856e-01, 6.439227e-02, 1.981863e-01],
        [2.669685, 1.064942],
    ),
    "resnet50": (
        [2.710119e-02, 1.428943e-01, 1.541415e-01, 3.467182e-02, 1.363021e-01, 1.208741e-02, 2.386118e-01],
        [2.658223, 1.069508],
    ),
    "resnet101": (
        [1.795757e-02, 1.641760e-01, 2.172350e-01, -2.061702e-03, 2.158048e-01, -4.196245e-02, 5.731583e-01],
        [2.658586, 1.114479],
    ),
}


@pytest.mark.parametrize("backbone", FINGERPRINTS)
@torch.no_grad()
def test_fingerprint(backbone):
    numbers, losses = FINGERPRINTS[backbone]
    model = fingerprint_model(backbone)
    assert model.options == {"num_classes": 19, "backbone": backbone, "base_channels": 64}
    images = fingerprint.image(64, 128)
    main, auxiliary = heads(model, images)
    assert main.shape == auxiliary.shape == (1, 19, 8, 16)
    assert [*fingerprint.numbers(main), *fingerprint.numbers(auxiliary)[:2]] == fingerprint.approx(numbers)

    target = fingerprint.labels(19, 64, 128, 255)
    terms = training_loss((main, auxiliary), target)
    assert [terms["main"].item(), terms["aux0"].item()] == fingerprint.approx(losses)
    assert total_loss((main, auxiliary), target).item() == fingerprint.approx(sum(losses))
    if backbone == "resnet50":
        mean, deviation, _, middle, _ = fingerprint.numbers(model(images))
        assert [mean, deviation, middle] == fingerprint.approx([2.710119e-02, 1.422242e-01, 3.765681e-02])
        total = total_loss((main, auxiliary), target, avg_non_ignore=True)
        assert total.item() == fingerprint.approx(2.955104 + 1.188955)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    "backbone, total, encoder, pyramid, auxiliary, entries",
    [
        ("resnet18", 13_986_374, 11_195_744, 2_641_811, 148_819, 178),
        ("resnet50", 68_113_030, 23_527_264, 42_221_075, 2_364_691, 376),
        ("resnet101", 87_105_158, 42_519_392, 42_221_075, 2_364_691, 682),
    ],
)
def test_parameter_counts(backbone, total, encoder, pyramid, auxiliary, entries):
    with torch.device("meta"):
        model = build_model(backbone=backbone)
    assert count(model) == total
    assert count(model.backbone) == encoder
    assert count(model.aspp) + count(model.classifier) == pyramid
    assert count(model.auxiliary_head) == auxiliary
    assert len(model.state_dict()) == entries


@pytest.fixture(scope="module")
def untrained() -> DeepLabV3:
    torch.manual_seed(0)
    return build_model(backbone="resnet18")


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (33, 47), (64, 104)])
@torch.no_grad()
def test_sizes_of_the_logits(untrained, size):
    stride8 = tuple(-(-side // 8) for side in size)
    assert [tuple(logits.shape) for logits in untrained.train()(torch.randn(2, 3, *size))] == [(2, 19, *stride8)] * 2
    assert untrained.eval()(torch.randn(1, 3, *size)).shape == (1, 19, *size)


@torch.no_grad()
def test_the_auxiliary_head_runs_in_training_only(untrained):
    calls = []
    handle = untrained.auxiliary_head.register_forward_hook(lambda *_: calls.append(1))
    untrained.eval()(torch.zeros(1, 3, 16, 16))
    assert calls == []
    untrained.train()(torch.zeros(2, 3, 16, 16))
    assert calls == [1]
    handle.remove()


def test_dropout_removes_whole_channels_before_both_classifiers(untrained):
    dropouts = [module for module in untrained.modules() if isinstance(module, nn.Dropout2d)]
    assert [dropout.p for dropout in dropouts] == [0.1, 0.1]
    seen = []
    handles = [dropout.register_forward_hook(lambda _, args, out: seen.append((args[0], out))) for dropout in dropouts]
    torch.manual_seed(0)
    with torch.no_grad():
        untrained.train()(torch.randn(8, 3, 32, 32))
    for handle in handles:
        handle.remove()
    assert [before.shape[1] for before, _ in seen] == [128, 64]
    for before, after in seen:
        dropped = (after == 0).all((2, 3)) & (before != 0).any(3).any(2)
        assert 0.04 < dropped.float().mean().item() < 0.18
        kept = (after != 0).any(3).any(2)
        assert torch.allclose(after[kept], before[kept] / 0.9)


def test_images_that_do_not_fit(untrained):
    untrained.eval()
    with pytest.raises(InputError, match=r"\[3, 64, 64\].*\[B, 3, H, W\]"):
        untrained(torch.zeros(3, 64, 64))
    with pytest.raises(ValueError, match=r"\[1, 1, 64, 64\].*\[B, 3, H, W\]"):
        untrained(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ValueError, match=r"\[1, 3, 0, 64\].*\[B, 3, H, W\]"):
        untrained(torch.zeros(1, 3, 0, 64))
    with pytest.raises(ValueError, match=r"\[1, 3, 512, 1024\].*image pooling.*--device_batch_size 2"):
        untrained.train().check_shape((1, 3, 512, 1024))
    untrained.check_shape((2, 3, 512, 1024))


def test_backbones_that_do_not_exist():
    with pytest.raises(ValueError, match="'resnet34'.*resnet18, resnet50, resnet101"):
        build_model(backbone="resnet34")


def test_initial_values(untrained):
    fresh = build_model(num_classes=7, backbone="resnet18")
    assert fresh.options == {"num_classes": 7, "backbone": "resnet18", "base_channels": 64}
    assert fresh.classifier.weight.shape[0] == fresh.auxiliary_head.classifier.weight.shape[0] == 7
    for weight in (
        untrained.backbone.conv1[3].weight,
        untrained.backbone.layer4[1].conv2.weight,
        untrained.backbone.layer2[0].downsample[0].weight,
        untrained.aspp.image_pooling.conv.weight,
        untrained.aspp.branches[2].conv.weight,
        untrained.aspp.fuse.conv.weight,
        untrained.auxiliary_head.conv_bn.conv.weight,
    ):  # Kaiming, normal, over the fan-out
        fan_out = weight.shape[0] * weight[0, 0].numel()
        assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    for classifier in (untrained.classifier, untrained.auxiliary_head.classifier):
        assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert torch.equal(classifier.bias, torch.zeros(19))
    last = {f"backbone.layer{stage}.{block}.bn2" for stage in (1, 2, 3, 4) for block in (0, 1)}
    for name, module in fresh.named_modules():  # each residual block starts as the identity
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.full_like(module.weight, 0.0 if name in last else 1.0)), name
            assert not module.bias.any()


def test_from_reference_names(case):
    names = case.reference_names(from_reference)
    assert set(names.values()) == set(case.state)
    assert {ours: reference_name(ours) for ours in names} == names


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefixed", ["none", "some", "all"])
def test_from_reference_wrappers(case, untrained, wrapper, prefixed):
    states = {
        "none": case.state,
        "some": {("module." if "conv1" in name else "") + name: value for name, value in case.state.items()},
        "all": {f"module.{name}": value for name, value in case.state.items()},
    }
    state = states[prefixed]
    converted = from_reference({wrapper: state, "meta": {"epoch": 3}, "optimizer": {}} if wrapper else state)
    assert {reference_name(name) for name in converted} == set(case.state)
    assert from_reference(converted) == converted  # compares by identity: the same tensors under the same names
    own = untrained.state_dict()
    again = from_reference(own)
    assert list(again) == list(own)
    assert all(again[name].data_ptr() == value.data_ptr() for name, value in own.items())


# ---- the loss


def outputs_of(*values: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Main and auxiliary logits with a value for class 5 and 0 for the other 18."""
    outputs = tuple(torch.zeros(1, 19, 2, 2) for _ in values)
    for output, value in zip(outputs, values, strict=True):
        output[:, 5] = value
    return outputs


def test_loss_by_hand():
    """With logits of ln 19 for class 5 and 0 for 18 others, class 5 costs ln(37 / 19) and any other ln 37."""
    outputs = outputs_of(np.log(19), 0.0)
    target = torch.full((1, 16, 16), IGNORE_INDEX)
    target[0, 0, :8], target[0, 1, :8] = 5, 6  # 16 of 256 pixels
    main = (np.log(37 / 19) + np.log(37)) / 2
    assert total_loss(outputs, target, avg_non_ignore=True).item() == pytest.approx(main + 0.4 * np.log(19))
    all_pixels = (main + 0.4 * np.log(19)) * 16 / 256
    assert total_loss(outputs, target).item() == pytest.approx(all_pixels)


def test_logits_are_resized_and_labels_are_not():
    """Class 5 wins on the left, class 6 on the right: the borders of the labels are those of the upsampled logits."""
    logits = torch.zeros(1, 19, 1, 2)
    logits[0, 5, 0, 0] = logits[0, 6, 0, 1] = 4.0
    target = torch.tensor([[[5, 5, 6, 6]]])
    weights = torch.tensor([1.0, 0.75, 0.25, 0.0])  # of the left pixel at the four positions, corners not aligned
    left, right = 4 * weights, 4 * (1 - weights)
    log_sum = torch.log(left.exp() + right.exp() + 17)
    expected = (log_sum - torch.stack([left[0], left[1], right[2], right[3]])).mean().item()
    assert total_loss((logits, logits), target).item() == pytest.approx(1.4 * expected)


@pytest.mark.parametrize("avg_non_ignore", [False, True])
def test_loss_without_a_valid_pixel(avg_non_ignore):
    outputs = tuple(torch.randn(2, 19, size, size, requires_grad=True) for size in (8, 8))
    loss = total_loss(outputs, torch.full((2, 32, 32), IGNORE_INDEX), avg_non_ignore)
    loss.backward()
    assert loss.item() == 0
    assert all(torch.equal(output.grad, torch.zeros_like(output)) for output in outputs)


@pytest.mark.parametrize("model", [torch.float32], indirect=True, ids=["float32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_mixed_precision_loss(case, model, dtype):
    with torch.autocast("cpu", dtype=dtype), torch.no_grad():
        outputs = model.train()(case.image("train", torch.float32))
        loss = total_loss(outputs, case.labels())
    assert outputs[0].dtype == outputs[1].dtype == dtype
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(case.manifest["train"]["loss64"]["total"], rel=0.03)


def test_evaluation_of_16_bit_logits_is_float32(untrained):
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert untrained.eval()(torch.randn(1, 3, 32, 32)).dtype == torch.float32


def test_training_step_suits_accelerators(untrained):
    images, target = torch.randn(2, 3, 40, 72), torch.randint(0, 19, (2, 40, 72))
    with Operators() as operators:
        total_loss(untrained.train()(images), target).backward()
    assert operators.unwanted == []
    assert {"convolution", "upsample_bilinear2d"} <= operators.names
    untrained.zero_grad(set_to_none=True)


# ---- weights, schedule and command line


def test_imagenet_file(tmp_path):
    assert imagenet_file("resnet101", "none") is None
    for backbone, digits in (("resnet18", "b5776b93"), ("resnet50", "2cccc1ad"), ("resnet101", "e67eebb6")):
        plain, published = tmp_path / f"{backbone}_v1c.pth", tmp_path / f"{backbone}_v1c-{digits}.pth"
        plain.touch()
        assert imagenet_file(backbone, str(tmp_path)) == plain
        published.touch()
        assert imagenet_file(backbone, str(tmp_path)) == published


def test_open_mmlab_weights_fill_the_whole_backbone(tmp_path, untrained, tiny_cityscapes):
    """A file of open-mmlab: the deep stem under `stem`, and the classifier of ImageNet."""
    published = {
        reference_name(f"backbone.{name}").removeprefix("backbone."): torch.full_like(value, 2)
        for name, value in untrained.backbone.state_dict().items()
    } | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    assert {"stem.0.weight", "stem.7.running_var", "layer4.1.bn2.bias"} < set(published)
    torch.save({"state_dict": published}, tmp_path / "resnet18_v1c.pth")
    paths = {"data_path": tiny_cityscapes(), "pretrained": tmp_path, "output_dir": tmp_path / "run"}
    run, _, model = built("DeeplabV3", preset="tiny", **paths)
    (note,) = run.notes
    assert "all" in note and "warning" not in note
    assert all((p == 2).all() for p in model.backbone.parameters())
    assert not (model.aspp.fuse.conv.weight == 2).any()


@pytest.mark.parametrize("name", ["mmseg_poly_lr0.06_7k", "mmseg_poly_lr0.01_40k"])
def test_learning_rate_schedule(name):
    config, rows = SCHEDULES[name]["config"], SCHEDULES[name]["rows"]
    rates = Namespace(lr=config["base_lr"], min_lr=config["min_lr"])
    factor = train.learning_rate_schedule(rates, config["max_iters"])
    assert [config["base_lr"] * factor(step) for step, _ in rows] == pytest.approx([lr for _, lr in rows], rel=1e-9)


def test_schedule_of_one_device():
    full = presets.PRESETS["full_1p"]
    factor = train.learning_rate_schedule(Namespace(**full), full["total_steps"])
    assert full["lr"] * factor(27_000) == pytest.approx(0.004334, abs=5e-7)
    assert 0.0 * train.learning_rate_schedule(Namespace(lr=0.0, min_lr=0.0), 10)(5) == 0  # no division by 0


def test_presets_are_those_of_the_scripts():
    """(steps, rate, images a step, devices and machines, steps between evaluations) of the original's runs."""
    keys = ("total_steps", "lr", "device_batch_size", "devices", "nnodes", "eval_every_steps", "validate")
    expected = {
        "full_1p": (54_000, 0.008, 6, 1, 1, 6000, True),
        "full_8p": (7000, 0.06, 6, 8, 1, 1000, True),
        "performance_1p": (1000, 0.008, 6, 1, 1, 6000, False),
        "performance_4p": (1000, 0.06, 6, 4, 1, 1000, False),
        "performance_8p": (1000, 0.06, 6, 8, 1, 1000, False),
        "performance_multinodes": (1000, 0.06, 6, 8, 1, 1000, False),
    }
    for name, values in expected.items():
        assert tuple(presets.PRESETS[name][key] for key in keys) == values, name
    assert presets.PRESETS["performance_multinodes"]["master_port"] == 23333
    shared = {"crop_size": (512, 1024), "cat_max_ratio": 0.75, "weight_decay": 5e-4, "momentum": 0.9, "min_lr": 1e-4}
    shared |= {"backbone": "resnet50", "avg_non_ignore": False, "sync_bn": False, "eval_batch_size": 1}
    for name in expected:
        assert {key: presets.PRESETS[name][key] for key in shared} == shared, name


@pytest.mark.parametrize(
    "flags, backbone",
    [
        ([], "resnet50"),
        (["--arch=deeplabv3_r101"], "resnet101"),
        (["--arch=deeplabv3_r18", "--backbone=resnet18"], "resnet18"),
        (["--backbone=resnet18"], "resnet18"),
        (["--preset=tiny", "--arch=deeplabv3_r50"], "resnet50"),
    ],
)
def test_backbone_of_the_command_line(flags, backbone):
    assert train.chosen_backbone(parsed("DeeplabV3", *flags)) == backbone


def test_the_addresses_of_several_machines_reach_torchrun(monkeypatch):
    commands = []
    monkeypatch.setattr("torch.distributed.run.run", commands.append)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for name in (launch.CHECKED, "OMP_NUM_THREADS", "HCCL_IF_IP"):
        monkeypatch.setenv(name, "1")  # is put back to what it was
    monkeypatch.delenv("HCCL_IF_IP")
    nodes = {"preset": "performance_multinodes", "device": "cpu", "nnodes": 2}
    addresses = {"node_rank": 1, "local_addr": "10.0.0.2", "master_addr": "10.0.0.1"}
    launch.run_torchrun(parsed("DeeplabV3", **nodes, **addresses))
    assert os.environ["HCCL_IF_IP"] == "10.0.0.2"
    launch.run_torchrun(parsed("DeeplabV3", **nodes))
    first, second = commands
    assert first.nproc_per_node == second.nproc_per_node == "8"
    assert (first.nnodes, first.node_rank, first.master_addr, first.master_port) == ("2", 1, "10.0.0.1", 23333)
    assert (first.local_addr, second.local_addr) == ("10.0.0.2", None)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--device_batch_size=1"], "image pooling.*--device_batch_size 2"),
        (["--arch=deeplabv3_r18", "--backbone=resnet50"], "deeplabv3_r18 and --backbone resnet50"),
        (["--lr=0.00005"], "--lr 5e-05 is below --min_lr 0.0001"),
        (["--lr=0"], "--lr 0.0 is below --min_lr 0.0001"),
        (["--cat_max_ratio=0"], "--cat_max_ratio 0"),
        (["--min_scale=2", "--max_scale=1"], "0 < min <= max"),
        (["--min_scale=0.001"], "less than a pixel"),
        (["--device_batch_size=9"], "4 training images are fewer than the 9"),
        (["--load_from=nowhere.pth"], "nowhere.pth"),
        (["--pretrained=nowhere.pth"], r"no file .*nowhere\.pth.*resnet18_v1c-b5776b93\.pth or resnet18_v1c\.pth"),
        (["--resume=nowhere.pt"], "nowhere.pt"),
        (["--evaluate"], "--checkpoint"),
    ],
)
def test_what_cannot_work_is_refused_before_training(tiny_cityscapes, tmp_path, flags, message):
    given = {"preset": "tiny", "data_path": tiny_cityscapes(train=4), "output_dir": tmp_path / "run"}
    built("DeeplabV3", **given)
    with pytest.raises(InputError, match=message) as raised:
        built("DeeplabV3", *flags, **given)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_one_image_on_each_of_two_devices_needs_statistics_over_both(tiny_cityscapes, tmp_path):
    """The image pooling leaves a pixel of each image. Statistics of both devices are those of one with both images."""
    flags = {"preset": "tiny", "device": "cpu", "workers": 0, "max_steps": 1, "data_path": tiny_cityscapes(train=4)}
    two = {"devices": 2, "device_batch_size": 1, "output_dir": tmp_path / "two"}
    with pytest.raises(InputError, match="image pooling.*--device_batch_size 2"):
        built("DeeplabV3", "--no_validate", processes=2, **flags, **two)
    with narrow_networks():
        words = ("DeeplabV3", "--no_validate", "--sync_bn")
        in_two_processes(tmp_path, carry_out, *words, processes=2, **flags, **two)
        carry_out("DeeplabV3", "--no_validate", **flags, output_dir=tmp_path / "one")
    assert_same_statistics(tmp_path / "two", tmp_path / "one")
