"""BiSeNetV1 against the numbers of its reference implementation, and the behaviour that is our own."""

import json
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from BiSeNetv1 import presets
from BiSeNetv1.model import BiSeNetV1, FeatureFusion, build_model, training_loss
from BiSeNetv1.train import learning_rate_schedule
from BiSeNetv1.weights import from_reference, imagenet_file
from ci.tests import fingerprint
from ci.tests.folders import built, carry_out, parsed
from ci.tests.golden_case import FOLDER, GoldenCase
from ci.tests.narrow import narrow_networks
from ci.tests.operators import Operators
from ci.tests.runs import assert_same_statistics, in_two_processes
from common import IGNORE_INDEX
from common.data.order import Length
from common.errors import InputError
from common.nets.imagenet import load_imagenet
from common.step.losses import upsampled_cross_entropy

HEADS = ("decode", "aux0", "aux1")
CASES = {"resnet50": "bisenetv1_r50", "resnet18": "bisenetv1_r18"}


def total_loss(*arguments, **options) -> torch.Tensor:
    """What training minimises: the sum of the terms."""
    return sum(training_loss(*arguments, **options).values())


class Golden:
    """A recorded case and our model with its weights, without dropout as it was recorded."""

    def __init__(self, backbone: str, dtype: torch.dtype):
        self.case = GoldenCase(CASES[backbone])
        with torch.device("meta"):  # no time is spent on initial values
            model = build_model(backbone=backbone)
        state = {name: value.clone() for name, value in from_reference(self.case.state).items()}
        model.load_state_dict(state, strict=True, assign=True)
        self.model, self.dtype = model.to(dtype), dtype
        for module in model.modules():
            if isinstance(module, nn.Dropout2d):
                module.p = 0.0


@pytest.fixture(scope="module", params=[(b, d) for b in CASES for d in (torch.float64, torch.float32)], ids=str)
def golden(request) -> Golden:
    return Golden(*request.param)


def test_eval_outputs(golden):
    images = golden.case.image("eval", golden.dtype)
    with torch.no_grad():
        heads = golden.model.eval().heads(images)
        golden.case.assert_outputs("eval", dict(zip(HEADS, heads, strict=True)) | {"logits": golden.model(images)})


def test_training_step(golden):
    """Outputs, losses, gradients of the total and running statistics."""
    case, model = golden.case, golden.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = case.reference_names(from_reference)
    target = case.labels()
    outputs = model.train()(case.image("train", golden.dtype))
    case.assert_outputs("train", dict(zip(HEADS, outputs, strict=True)))

    losses = {"total": total_loss(outputs, target)}
    for start, terms in (
        ("", training_loss(outputs, target)),
        ("valid_mean_", training_loss(outputs, target, avg_non_ignore=True)),
    ):
        assert list(terms) == ["main", "aux0", "aux1"]
        losses |= {f"{start}{head}_loss": term for head, term in zip(HEADS, terms.values(), strict=True)}
    case.assert_losses(losses)
    assert {name for name in case.manifest["train"]["loss"] if "acc" not in name} == set(losses)

    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(losses["total"], list(parameters.values()))
    case.assert_gradients(dict(zip((names[name] for name in parameters), gradients, strict=True)))
    if golden.dtype == torch.float64:
        case.assert_batch_norms({names[name]: value for name, value in model.state_dict().items()})
    model.load_state_dict(before)


# By hand: the table of names in the documentation of from_reference, read backwards.
RENAMED = (
    ("context_path.", "backbone.context_path."),
    ("spatial_path.conv", "backbone.spatial_path.layer"),
    ("feature_fusion.conv.", "backbone.ffm.conv1."),
    ("feature_fusion.attention.", "backbone.ffm.conv_atten.0."),
    ("auxiliary_heads.", "auxiliary_head."),
    ("head.", "decode_head."),
)
INNER = (
    (r"(arm\d+)\.conv\.", r"\1.conv_layer."),
    (r"(arm\d+)\.attention\.", r"\1.atten_conv_layer.1."),
    (r"\.global_conv\.", ".gap_conv.1."),
    (r"(decode_head|auxiliary_head\.\d)\.conv\.", r"\1.convs.0."),
    (r"\.classifier\.", ".conv_seg."),
)


def reference_name(name: str) -> str:
    ours, theirs = next(pair for pair in RENAMED if name.startswith(pair[0]))
    name = theirs + name.removeprefix(ours)
    for before, after in INNER:
        name = re.sub(before, after, name)
    return name


def test_from_reference_names():
    for name in CASES.values():
        case = GoldenCase(name)
        names = case.reference_names(from_reference)
        assert set(names.values()) == set(case.state)
        assert {ours: reference_name(ours) for ours in names} == names


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefixed", ["none", "some", "all"])
def test_from_reference_wrappers(untrained, wrapper, prefixed):
    own = untrained.state_dict()
    theirs = {reference_name(name): value for name, value in own.items()}
    states = {
        "none": theirs,
        "some": {("module." if "conv" in name else "") + name: value for name, value in theirs.items()},
        "all": {f"module.{name}": value for name, value in theirs.items()},
    }
    state = states[prefixed]
    converted = from_reference({"meta": {"iter": 3}, wrapper: state} if wrapper else state)
    assert list(converted) == list(own)
    assert all(converted[name].data_ptr() == own[name].data_ptr() for name in own)
    assert from_reference(converted) == converted  # compares by identity: the same tensors under the same names


def meta_model(backbone: str) -> BiSeNetV1:
    """The shapes alone: no memory, and no time for initial values."""
    with torch.device("meta"):
        return build_model(backbone=backbone)


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# total, context path, spatial path, fusion, main head, both auxiliary heads, entries of the state dict
COUNTS = {
    "resnet18": (13_425_721, 12_456_256, 91_968, 132_096, 595_219, 150_182, 222),
    "resnet50": (59_243_385, 43_962_432, 1_350_912, 2_101_248, 9_458_707, 2_370_086, 420),
    "resnet101": (78_235_513, 62_954_560, 1_350_912, 2_101_248, 9_458_707, 2_370_086, 726),
}


@pytest.mark.parametrize("backbone", COUNTS)
def test_parameter_counts(backbone):
    model = meta_model(backbone)
    parts = (model, model.context_path, model.spatial_path, model.feature_fusion, model.head, model.auxiliary_heads)
    assert (*map(parameter_count, parts), len(model.state_dict())) == COUNTS[backbone]
    assert model.options == {"num_classes": 19, "backbone": backbone, "base_channels": 64}
    if backbone == "resnet50":
        path = model.context_path
        parts = (path.backbone, path.arm16, path.arm32, path.conv_head32, path.conv_head16, path.global_conv)
        assert [*map(parameter_count, parts)] == [23_508_032, 4_982_784, 9_701_376, 2_360_320, 2_360_320, 1_049_600]


def test_the_presets_offer_every_backbone():
    assert sorted(presets.CHOICES["backbone"]) == sorted(COUNTS)


def fingerprint_model(backbone: str) -> BiSeNetV1:
    return fingerprint.filled(meta_model(backbone), reference_name, from_reference)


# mean, standard deviation, first element, [0, C // 2, H // 2, W // 2] and last element of each head; its loss
FINGERPRINTS = {
    "resnet18": (
        ([1.991122e-02, 2.461605e-01, 3.107935e-03, -2.152434e-01, 6.187228e-02], 2.674203),
        ([8.658268e-02, 2.198433e-01, 9.304681e-02, 1.716482e-01, 1.110727e-01], 2.673600),
        ([2.869351e-03, 2.170736e-01, 1.985413e-02, -9.991646e-02, 8.038718e-02], 2.666645),
    ),
    "resnet50": (
        ([6.056320e-02, 1.727176e-01, 1.182812e-01, 1.467288e-01, 1.827155e-01], 2.659603),
        ([2.015482e-02, 2.056681e-01, 7.441717e-02, -2.447758e-01, -1.778973e-02], 2.666526),
        ([1.109055e-02, 1.298215e-01, -5.653986e-02, 3.243042e-02, -5.979446e-02], 2.654690),
    ),
}


@pytest.mark.parametrize("backbone", FINGERPRINTS)
@torch.no_grad()
def test_fingerprint(backbone):
    model = fingerprint_model(backbone)
    image = fingerprint.image(64, 128)
    target = fingerprint.labels(19, 64, 128, IGNORE_INDEX)

    heads = model.heads(image)
    assert [tuple(head.shape[1:]) for head in heads] == [(19, 8, 16), (19, 8, 16), (19, 4, 8)]
    for head, (numbers, loss) in zip(heads, FINGERPRINTS[backbone], strict=True):
        assert fingerprint.numbers(head) == fingerprint.approx(numbers)
        assert upsampled_cross_entropy(head, target, over_all_pixels=True).item() == fingerprint.approx(loss)
    total = sum(loss for _, loss in FINGERPRINTS[backbone])
    assert total_loss(heads, target).item() == fingerprint.approx(total)
    logits = model(image)
    assert logits.shape == (1, 19, 64, 128)
    if backbone == "resnet50":
        found = fingerprint.numbers(logits)
        assert [found[0], found[1], found[3]] == fingerprint.approx([6.056320e-02, 1.710349e-01, 9.489573e-02])


@pytest.fixture(scope="module")
def untrained() -> BiSeNetV1:
    torch.manual_seed(0)
    return build_model(backbone="resnet18")


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (65, 98), (64, 32)])
@torch.no_grad()
def test_eval_logits_have_the_size_of_the_image(untrained, size):
    images = torch.randn(1, 3, *size)
    logits = untrained.eval()(images)
    main, eighth, sixteenth = untrained.heads(images)
    assert main.shape == eighth.shape == (1, 19, *(-(-side // 8) for side in size))
    assert sixteenth.shape == (1, 19, *(-(-side // 16) for side in size))
    assert torch.equal(logits, F.interpolate(main, size=size, mode="bilinear", align_corners=False))


def test_auxiliary_heads_rest_in_evaluation(untrained):
    calls = []
    hooks = [head.register_forward_hook(lambda *_: calls.append(1)) for head in untrained.auxiliary_heads]
    with torch.no_grad():
        untrained.eval()(torch.zeros(1, 3, 32, 32))
        assert calls == []
        assert len(untrained.train()(torch.zeros(2, 3, 32, 32))) == 3
    assert len(calls) == 2
    for hook in hooks:
        hook.remove()


def test_images_that_do_not_fit(untrained):
    untrained.eval()
    with pytest.raises(ValueError, match=r"\[3, 64, 64\].*\[B, 3, H, W\]"):
        untrained(torch.zeros(3, 64, 64))
    with pytest.raises(ValueError, match=r"\[1, 1, 64, 64\].*\[B, 3, H, W\]"):
        untrained(torch.zeros(1, 1, 64, 64))
    with pytest.raises(ValueError, match=r"\[1, 3, 0, 64\].*one pixel"):
        untrained(torch.zeros(1, 3, 0, 64))
    untrained.train()
    with pytest.raises(ValueError, match=r"\[1, 3, 64, 64\].*--device_batch_size to 2"):
        untrained(torch.zeros(1, 3, 64, 64))
    with torch.no_grad():  # the smallest that can be trained on
        assert [output.shape for output in untrained(torch.zeros(2, 3, 1, 1))] == [(2, 19, 1, 1)] * 3


def test_backbones_that_do_not_exist():
    with pytest.raises(ValueError, match="'resnet34'.*resnet18, resnet50, resnet101"):
        build_model(backbone="resnet34")


def test_initial_values(untrained):
    fresh = build_model(num_classes=7, backbone="resnet18")
    assert fresh.options == {"num_classes": 7, "backbone": "resnet18", "base_channels": 64}
    assert [head.classifier.out_channels for head in (fresh.head, *fresh.auxiliary_heads)] == [7, 7, 7]
    path = untrained.context_path
    for weight in (
        path.backbone.conv1.weight,
        path.backbone.layer1[0].conv1.weight,
        path.backbone.layer3[0].downsample[0].weight,
        path.arm32.conv.conv.weight,
        path.arm16.attention.conv.weight,
        path.conv_head32.conv.weight,
        path.global_conv.conv.weight,
        untrained.spatial_path.conv1.conv.weight,
        untrained.feature_fusion.attention.conv.weight,
        untrained.head.conv.conv.weight,
    ):  # Kaiming, normal, over the fan-out
        fan_out = weight.shape[0] * weight[0, 0].numel()
        assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
        assert weight.abs().max() > 2.5 * weight.std()  # no uniform distribution reaches beyond 1.74
    for head in (untrained.head, *untrained.auxiliary_heads):
        assert head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert head.classifier.bias.abs().max() == 0
    last = {f"{block}.bn2" for block, _ in path.backbone.named_modules() if block.count(".") == 1 and "layer" in block}
    assert len(last) == 8
    for name, module in path.backbone.named_modules():
        if isinstance(module, nn.BatchNorm2d):  # residual blocks start as the identity
            assert (module.weight == (name not in last)).all() and (module.bias == 0).all(), name


def test_zero_initial_weights_of_bottlenecks():
    layers = build_model(backbone="resnet50").context_path.backbone.layer2
    assert all((block.bn3.weight == 0).all() and (block.bn2.weight == 1).all() for block in layers)


def test_dropout_of_whole_channels_in_training_alone(untrained):
    torch.manual_seed(0)
    features = torch.rand(4, 256, 6, 6) + 1
    dropped = untrained.head.train().dropout(features)
    zero = (dropped == 0).flatten(2)
    assert (zero.all(2) == zero.any(2)).all()
    assert zero.all(2).float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert torch.equal(untrained.head.eval().dropout(features), features)


def test_loss_by_hand():
    """Logits of ln 19 for class 5 and 0 for the other 18 have the loss ln(37 / 19) for class 5, else ln 37."""
    outputs = [torch.zeros(1, 19, size, size) for size in (4, 4, 2)]
    for output in outputs:
        output[:, 5] = np.log(19)
    target = torch.full((1, 16, 16), IGNORE_INDEX)
    target[0, :4] = 5
    target[0, 4, 0] = 6
    labelled = 64 * np.log(37 / 19) + np.log(37)
    assert total_loss(outputs, target).item() == pytest.approx(3 * labelled / 256)
    assert total_loss(outputs, target, avg_non_ignore=True).item() == pytest.approx(3 * labelled / 65)


def test_logits_are_resized_to_the_labels():
    """By hand: bilinear without aligned corners makes 0, 1, 3, 4 of 0 and 4."""
    row = torch.tensor([0.0, 4.0])
    outputs = [torch.stack([torch.zeros(2), row])[None, :, None].expand(1, 2, 1, 2)] * 3
    target = torch.tensor([[[1, 1, 1, 1]]])
    loss = np.mean([np.log1p(np.exp(-value)) for value in (0.0, 1.0, 3.0, 4.0)])
    assert total_loss(outputs, target).item() == pytest.approx(3 * loss, rel=1e-6)


@pytest.mark.parametrize("avg_non_ignore", [False, True])
def test_loss_without_a_valid_pixel(avg_non_ignore):
    outputs = [torch.randn(2, 19, size, size, requires_grad=True) for size in (4, 4, 2)]
    loss = total_loss(outputs, torch.full((2, 32, 32), IGNORE_INDEX), avg_non_ignore)
    loss.backward()
    assert loss.item() == 0
    assert all(torch.equal(output.grad, torch.zeros_like(output)) for output in outputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("golden", [("resnet18", torch.float32)], indirect=True, ids=["resnet18"])
def test_mixed_precision_loss(golden, dtype):
    with torch.autocast("cpu", dtype=dtype), torch.no_grad():
        outputs = golden.model.train()(golden.case.image("train", torch.float32))
        loss = total_loss(outputs, golden.case.labels())
    assert outputs[1].dtype == dtype
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(golden.case.manifest["train"]["loss64"]["total"], rel=0.02)
    with torch.autocast("cpu", dtype=dtype), torch.no_grad():
        assert golden.model.eval()(golden.case.image("eval", torch.float32)).dtype == torch.float32


def test_features_and_their_weighted_selves_are_one_product():
    """A sum of the two is another pass over features at an eighth of the image, and one more on the way back."""
    fusion, features = FeatureFusion(8, 4), [torch.randn(2, 4, 5, 6, requires_grad=True) for _ in range(2)]
    with Operators() as operators:
        fused = fusion(*features)
        fused.sum().backward()
    # the gradients of the features themselves and of their means; and one of each weight
    assert operators.written["add.Tensor"] + operators.written["add_.Tensor"] < 2 * fused.numel()


@pytest.mark.parametrize("avg_non_ignore", [False, True])
def test_training_step_suits_accelerators(untrained, avg_non_ignore):
    images, target = torch.randn(2, 3, 40, 72), torch.randint(0, 19, (2, 40, 72))
    with Operators() as operators:
        total_loss(untrained.train()(images), target, avg_non_ignore).backward()
    assert operators.unwanted == []
    assert {"convolution", "upsample_bilinear2d", "upsample_nearest2d"} <= operators.names
    untrained.zero_grad(set_to_none=True)


def schedule(**flags):
    """That of the recipe for one device, but for the flags that are given."""
    args = parsed("BiSeNetv1", preset="full_1p", **flags)
    return learning_rate_schedule(args, Length(743, args.total_steps, args.total_steps))


@pytest.mark.parametrize("name", ["mmseg_poly_warmup_lr0.05_160k", "mmseg_poly_warmup_lr0.2_160k"])
def test_learning_rates_are_the_reference_s(name):
    recorded = json.loads((FOLDER / "lr_schedules.json").read_text())[name]
    lr = recorded["config"]["base_lr"]
    factor = schedule(lr=lr)
    assert len(recorded["rows"]) > 10
    for step, rate in recorded["rows"]:
        assert lr * factor(step) == pytest.approx(rate, rel=1e-9), step


def test_learning_rates_of_the_full_recipe():
    """By hand, from the formula in the reference's documentation."""
    factor = schedule()
    for step, rate in ((0, 0.005), (500, 0.02742), (999, 0.04967), (1000, 0.04972), (80_000, 0.02684)):
        assert 0.05 * factor(step) == pytest.approx(rate, abs=5e-6)
    assert 0.05 * factor(159_999) == pytest.approx(0.000101, abs=5e-7)
    assert schedule(lr=0, min_lr=0, total_steps=10, warmup_steps=0)(5) >= 0  # a rate of nothing is no division by it


def test_recipes():
    """The numbers of the original's scripts."""
    shared = {"backbone": "resnet50", "momentum": 0.9, "weight_decay": 5e-4, "min_lr": 1e-4, "cat_max_ratio": 0.75}
    for name, numbers in {
        "full_1p": {"devices": 1, "device_batch_size": 4, "lr": 0.05, "total_steps": 160_000, "eval_every_steps": 8000},
        "full_8p": {"devices": 8, "device_batch_size": 4, "lr": 0.05, "total_steps": 160_000, "eval_every_steps": 8000},
        "performance_1p": {"devices": 1, "device_batch_size": 4, "lr": 0.05, "total_steps": 800, "validate": False},
        "performance_8p": {"devices": 8, "device_batch_size": 4, "lr": 0.05, "total_steps": 800, "validate": False},
        "builtin_8p": {"devices": 8, "device_batch_size": 8, "lr": 0.2, "total_steps": 40_000},
    }.items():
        preset = presets.PRESETS[name]
        expected = shared | numbers | {"crop_size": (1024, 1024), "pretrained": "none", "opt_level": "O1"}
        assert {key: preset[key] for key in expected} == expected, name


def test_imagenet_file(tmp_path):
    assert imagenet_file("resnet101", "none") is None
    for older, newer in (
        ("resnet18-5c106cde.pth", "resnet18-f37072fd.pth"),
        ("resnet50-19c8e357.pth", "resnet50-0676ba61.pth"),
        ("resnet101-5d3b4d8f.pth", "resnet101-63fe2227.pth"),
    ):
        for name in (older, newer):
            (tmp_path / name).touch()
            assert imagenet_file(name.split("-")[0], str(tmp_path)) == tmp_path / name


def test_a_torchvision_file_fills_the_whole_backbone(untrained, tmp_path):
    torch.manual_seed(1)
    donor = build_model(backbone="resnet18").context_path.backbone.state_dict()
    classifier = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(donor | classifier, tmp_path / "resnet18.pth")
    backbone = build_model(backbone="resnet18").context_path.backbone
    assert load_imagenet(backbone, tmp_path / "resnet18.pth").startswith("backbone: all 100 tensors loaded")
    assert all(torch.equal(value, donor[name]) for name, value in backbone.state_dict().items())


# ---- the run


def run(data, output_dir, *flags: str):
    """The rows that a tiny run printed, and its result."""
    common = {"preset": "tiny", "device": "cpu", "workers": 0, "log_every_steps": 1, "seed": 3}
    result = carry_out("BiSeNetv1", *flags, **common, data_path=data, output_dir=output_dir)
    rows = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"], result


def test_length_and_warm_up_in_epochs(tiny_cityscapes, tmp_path):
    """Six images in steps of two: three steps an epoch."""
    data = tiny_cityscapes(train=6)
    rows, result = run(data, tmp_path / "run", "--epochs=2", "--warm_up_epochs=1", "--no_validate")
    assert result["steps"] == 6
    decay = [(0.05 - 1e-4) * (1 - step / 6) ** 0.9 + 1e-4 for step in range(6)]
    rise = [0.1, 0.4, 0.7, 1, 1, 1]
    assert [row["lr"] for row in rows] == pytest.approx([a * b for a, b in zip(decay, rise, strict=True)])
    flags = ("--total_steps=8", "--max_steps=2", "--warm_up_epochs=0", "--no_validate")
    rows, result = run(data, tmp_path / "steps", *flags)
    assert result["steps"] == 2  # of eight, without any warm-up
    assert [row["lr"] for row in rows] == pytest.approx([0.05, (0.05 - 1e-4) * (1 - 1 / 8) ** 0.9 + 1e-4])


def test_scores_are_reported_under_both_names(tiny_cityscapes, tmp_path, capsys):
    _, result = run(tiny_cityscapes(), tmp_path / "run", "--total_steps=1", "--warmup_steps=0")
    text = capsys.readouterr().out
    report = (tmp_path / "run" / "Bisenetv1_bs2_1p_acc.log").read_text()
    for name in ("Train Accuracy", "mIoU"):
        assert f"Final {name} : {result['miou']:.4f}\n" in text
        assert f"{name.replace(' ', '')} = {result['miou']:.4f}\n" in report


def test_the_flag_of_the_mean_reaches_the_loss(tiny_cityscapes, tmp_path):
    """Crops are larger than the pictures here: most of their pixels are padding, and ignored."""
    flags = ("--total_steps=1", "--warmup_steps=0", "--no_validate", "--base_size=16", "--max_scale=1")
    data = tiny_cityscapes()
    (over_all,), _ = run(data, tmp_path / "all", *flags)
    (over_labelled,), _ = run(data, tmp_path / "labelled", "--avg_non_ignore", *flags)
    assert over_labelled["loss"] > 4 * over_all["loss"] > 0


def test_initial_weights(tiny_cityscapes, tmp_path):
    donor = build_model(backbone="resnet18")
    torch.save(
        {"state_dict": {reference_name(name): value for name, value in donor.state_dict().items()}}, tmp_path / "r"
    )
    torch.save(donor.context_path.backbone.state_dict(), tmp_path / "resnet18-f37072fd.pth")
    given = {"preset": "tiny", "data_path": tiny_cityscapes(), "output_dir": tmp_path / "run"}
    for flag, same in (({"load_from": tmp_path / "r"}, True), ({"pretrained": tmp_path}, False)):
        run, _, model = built("BiSeNetv1", **given, **flag)
        (note,) = run.notes
        assert str(tmp_path) in note
        assert torch.equal(model.context_path.backbone.conv1.weight, donor.context_path.backbone.conv1.weight)
        assert torch.equal(model.head.classifier.weight, donor.head.classifier.weight) == same
    assert built("BiSeNetv1", **given)[0].notes == ["initial weights: random"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device_batch_size=1"], r"\[1, 3, 64, 64\].*--device_batch_size to 2 or more"),
        (["--lr=1e-5"], "--min_lr 0.0001 is above --lr 1e-05.*lower --min_lr"),
        (["--cat_max_ratio=0"], "--cat_max_ratio 0.0 refuses every crop; give a share above 0"),
        (["--min_scale=2", "--max_scale=0.5"], "give two factors, 0 < min <= max"),
        (["--base_size=1"], "less than a pixel; raise one of them"),
        (["--device_batch_size=3"], "2 training images are fewer than the 3 of one step.*lower --device_batch_size"),
        (["--load_from=missing.pth"], "no checkpoint missing.pth; give"),
        (["--pretrained=missing.pth"], "no file missing.pth .*--pretrained none"),
        (["--evaluate"], "without --checkpoint; name the file"),
    ],
)
def test_what_cannot_work_is_said_before_it_starts(tiny_cityscapes, tmp_path, flags, message):
    given = {"preset": "tiny", "data_path": tiny_cityscapes(), "output_dir": tmp_path / "run"}
    with pytest.raises(InputError, match=message) as raised:
        built("BiSeNetv1", *flags, **given)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_batch_norm_over_two_processes(tiny_cityscapes, tmp_path):
    """The whole run: the network with such layers passes through everything that spreads it over processes.

    Its statistics after a step are those of one process with the images of both.
    """
    flags = {"preset": "tiny", "device": "cpu", "workers": 0, "total_steps": 1, "data_path": tiny_cityscapes(train=4)}
    with narrow_networks():
        words = ("BiSeNetv1", "--no_validate", "--sync_bn")
        in_two_processes(tmp_path, carry_out, *words, processes=2, **flags, devices=2, output_dir=tmp_path / "two")
        carry_out("BiSeNetv1", "--no_validate", **flags, device_batch_size=4, output_dir=tmp_path / "one")
    state = assert_same_statistics(tmp_path / "two", tmp_path / "one")
    assert (
        state["images_per_step"] == 4 and state["model"].keys() == build_model(backbone="resnet18").state_dict().keys()
    )
