"""Files of other programs: what they are is seen from their tensors, and said; other networks are refused."""

import math
import sys
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from ci.foreign_weights import CASES, compare
from ci.tests.folders import module
from common.errors import InputError
from common.record.checkpoint import load_model, load_weights, read
from common.record.foreign import OtherNetwork

TRUNK = ("backbone.conv1.weight", "backbone.layer4.0.conv1.weight")


@pytest.mark.parametrize("title", CASES)
def test_networks_of_other_libraries_give_the_same(title, tmp_path):
    """Logits, or features of an encoder, on two sizes."""
    pytest.importorskip(CASES[title][0])
    line, differences = compare(title, tmp_path)
    assert max(differences) < 1e-4
    assert "warning" not in line and (" none newly initialised" in line or "all " in line)


# folder, what the file's tensors are called, and what is said of it
DIFFERENT = {
    "torchvision's DeepLabV3": (
        "DeeplabV3",
        [*TRUNK, "classifier.0.convs.0.0.weight"],
        "DeepLabV3 of torchvision, ",
    ),
    "smp's DeepLabV3": ("DeeplabV3", ["decoder.aspp.convs.0.0.weight"], "of segmentation_models.pytorch.*dilated"),
    "DeepLabV3+": (
        "DeeplabV3",
        [f"decode_head.{name}.conv.weight" for name in ("image_pool.1", "bottleneck", "c1_bottleneck")],
        r"DeepLabV3\+, whose decoder",
    ),
    "r50b": ("DeeplabV3", [TRUNK[0], "decode_head.image_pool.1.a", "decode_head.bottleneck.a"], "stem of one 7x7"),
    "torchvision's FCN": ("DeeplabV3", [*TRUNK, "classifier.4.weight"], "network of torchvision, .* of this folder"),
    "CoinCheung's": ("BiSeNetv1", ["cp.resnet.a", "sp.conv1.a", "ffm.conv.weight"], "no ReLU before the sigmoid"),
    "CoinCheung's older": ("BiSeNetv1", ["cp.resnet.a", "sp.conv1.a", "ffm.conv2.weight"], "two convolutions in its"),
    "BiSeNetV2": ("BiSeNetv1", ["backbone.detail.a", "decode_head.a"], "BiSeNetV2 of mmsegmentation"),
    "mmsegmentation's ICNet": ("ICNet", ["backbone.psp_modules.0.1.conv.weight"], "ICNet of mmsegmentation"),
    "mmsegmentation's PSPNet": ("ICNet", [*TRUNK, "decode_head.conv_seg.weight"], "a network of mmsegmentation"),
    "an encoder": ("ICNet", ["conv1.0.weight", "layer4.0.conv1.weight"], "ImageNet, .*give it with --pretrained"),
    "mmsegmentation's UNet": (
        "AttentionUNet",
        ["backbone.encoder.0.0.convs.0.conv.weight", "backbone.decoder.0.upsample.a"],
        "the Unet of mmsegmentation, .*bilinearly",
    ),
    "smp's Unet": (
        "AttentionUNet",
        ["encoder.conv1.weight", "decoder.blocks.0.conv1.0.weight", "segmentation_head.0.weight"],
        "the Unet of segmentation_models.pytorch, .*without weights",
    ),
    "Pytorch-UNet": ("AttentionUNet", ["inc.double_conv.0.weight", "outc.conv.weight"], "the UNet of Pytorch-UNet"),
    "another encoder": ("DynamicUNet", ["layers.4.shuf.0.0.weight", "layers.0.0.0.weight"], "other than the ResNets"),
    "spectral": ("DynamicUNet", ["layers.4.shuf.0.0.weight_orig", "layers.4.shuf.0.0.weight_v"], "spectral normal"),
    "attention": ("DynamicUNet", ["layers.4.shuf.0.0.weight", "layers.6.conv2.2.gamma"], "self_attention=True"),
    "batch norms": ("DynamicUNet", ["layers.4.shuf.0.0.weight", "layers.3.0.2.weight"], "a batch norm behind each"),
    "no cross": (
        "DynamicUNet",
        ["layers.4.shuf.0.0.weight", "layers.0.0.weight", "layers.0.7.0.conv1.weight"],
        "last_cross=False",
    ),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_what_differs_is_said_and_nothing_is_loaded(kind, tmp_path):
    folder, names, said = DIFFERENT[kind]
    torch.save({"state_dict": {f"module.{name}": torch.ones(1) for name in names}}, tmp_path / "foreign.pth")
    model = nn.Linear(1, 1)
    before = [value.clone() for value in model.parameters()]
    with pytest.raises(OtherNetwork, match=rf"foreign\.pth is .*{said}.*; nothing of it is loaded$"):
        load_weights(tmp_path / "foreign.pth", model, module(folder, "weights").from_reference)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize(
    ("configuration", "said"), [("dict(align_corners=True)", "aligned corners"), ("multi_grid=(1, 2, 4)", "multi-grid")]
)
def test_what_the_tensors_do_not_tell_is_read_in_the_configuration(configuration, said):
    state = {"decode_head.image_pool.1.a": torch.ones(1), "decode_head.bottleneck.a": torch.ones(1)}
    from_reference = module("DeeplabV3", "weights").from_reference
    for name in ("config", "cfg"):  # of version 0.x and of 1.x
        with pytest.raises(OtherNetwork, match=said):
            from_reference({"meta": {name: f"decode_head = {configuration}"}, "state_dict": state})
    assert list(from_reference({"meta": {"cfg": "align_corners=False"}, "state_dict": state})) == [
        "aspp.image_pooling.a",
        "aspp.fuse.a",
    ]


def their_name(ours: str) -> str:
    """What a tensor of a U_Net is called in Image_Segmentation, by hand."""
    part, _, rest = ours.partition(".")
    if part == "classifier":
        return f"Conv_1x1.{rest}"
    level, _, rest = rest.partition(".")
    if part == "encoder":
        return f"Conv{int(level) + 1}.conv.{rest}"
    kind, _, rest = rest.partition(".")
    if kind == "conv":
        return f"Up_conv{5 - int(level)}.conv.{rest}"
    layer, _, rest = rest.partition(".")
    return f"Up{5 - int(level)}.up.{int(layer) + 1}.{rest}"


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_the_network_is_built_as_the_tensors_say_and_a_line_counts_them(prefix, tmp_path, capsys):
    build_model = module("AttentionUNet", "model").build_model
    torch.manual_seed(0)
    network = build_model(num_classes=3, arch="U_Net", base_channels=2).eval()
    state = {f"{prefix}{their_name(name)}": value for name, value in network.state_dict().items()}
    path = tmp_path / "U_Net.pkl"
    torch.save(state, path)
    from_reference = module("AttentionUNet", "weights").from_reference
    loaded = load_model(path, build_model, from_reference, {"arch": "AttU_Net", "base_channels": 64, "image_size": 96})
    assert loaded.options == {"num_classes": 3, "arch": "U_Net", "t": 3, "base_channels": 2, "image_size": 96}
    kind = "a network of Image_Segmentation"
    assert capsys.readouterr().err == f"{path}: {kind}: 156 tensors taken, none left out, none newly initialised\n"
    images = torch.randn(1, 3, 32, 48)
    assert torch.equal(loaded.eval()(images), network(images))
    # a number of classes that is given is that of the data: the file has to have it
    with pytest.raises(InputError, match=r"classifier\.weight \(\[3, 2, 1, 1\] in the file, \[1, 2, 1, 1\] needed\)"):
        load_model(path, build_model, from_reference, {"num_classes": 1})


HISTORY = """
import numpy as np
class HistoryBuffer:  # as mmengine's: an array, and its own methods by name
    def __init__(self):
        self.values, self.methods = np.arange(3.0), {"mean": HistoryBuffer.mean}
    def mean(self):
        return self.values.mean()
"""


def test_numbers_over_time_are_passed_over_without_mmengine(tmp_path, monkeypatch):
    path, name = tmp_path / "iter_10.pth", "mmengine.logging.history_buffer"
    with monkeypatch.context() as patched:
        mmengine = ModuleType(name)
        exec(HISTORY, mmengine.__dict__)
        for package in ("mmengine", "mmengine.logging", name):
            patched.setitem(sys.modules, package, mmengine)
        history = mmengine.HistoryBuffer()
        hub = {"log_scalars": OrderedDict(loss=history), "runtime_info": {"best": np.float64(math.pi)}}
        rest = {"message_hub": hub, "args": Namespace(lr=0.1)}  # the latter as torchvision's training script writes it
        torch.save({"state_dict": {"a": torch.ones(2)}, **rest}, path)
    for mapped in (False, True):
        content = read(path, mapped)
        assert torch.equal(content["state_dict"]["a"], torch.ones(2))
        stand_in = content["message_hub"]["log_scalars"]["loss"]
        assert type(stand_in) is not type(history) and vars(stand_in) == {}


class _Trap:
    """Makes a file when it is unpickled, by a method that is looked up with getattr."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return self.path.touch, ()


@pytest.mark.parametrize(
    "wrapper",
    [
        lambda state, trap: {**state, "trap": trap},
        lambda state, trap: {"state_dict": {**state, "trap": trap}, "epoch": 1},
        lambda state, trap: {"state_dict": state, "meta": {"hook_msgs": trap}},
        lambda state, trap: {"state_dict": state, "message_hub": {"log_scalars": {"loss": trap}}},
        lambda state, trap: {"model": state, "opt": {"state": [], "hypers": trap}},
        lambda state, trap: {"model": state, "args": trap},
    ],
    ids=["plain", "reference", "mmsegmentation 0.x", "mmsegmentation 1.x", "fastai", "torchvision"],
)
def test_code_in_the_files_of_other_programs_is_not_run(wrapper, tmp_path):
    trap, path = tmp_path / "sprung", tmp_path / "foreign.pth"
    for legacy in (False, True):
        torch.save(wrapper({"a": torch.ones(1)}, _Trap(trap)), path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(InputError, match="holds objects other than tensors"):
            load_weights(path, nn.Linear(1, 1))
    assert not trap.exists()
    torch.load(path, weights_only=False)  # it would
    assert trap.exists()
