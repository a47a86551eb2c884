"""common/scores/export.py and common/nets/onnx_network.py: a file that gives what the network gives, or none."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ci.tests.folders import FOLDERS, module
from common import terminal as terminal_module
from common.errors import Failed, InputError
from common.record.checkpoint import load_model
from common.scores import export as exporting
from common.scores.export import Check, export, parse_export_args
from common.scores.network import load

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.usefixtures("narrow")

SMALL = {"DynamicUNet": {"backbone": "resnet18"}, "BiSeNetv1": {"backbone": "resnet18"},
         "DeeplabV3": {"backbone": "resnet18"}, "AttentionUNet": {"base_channels": 4}}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """A file of weights for each folder, of a small network whose batch norms have seen something."""
    folder, files = tmp_path_factory.mktemp("weights"), {}
    torch.manual_seed(0)
    for name in FOLDERS:
        model = module(name, "model").build_model(**SMALL.get(name, {}))
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1), layer.running_var.uniform_(0.5, 1.5)
        content = {"format": "segmentation-zoo-1", "model_class": type(model).__name__, "options": model.options}
        content |= {"model": model.state_dict(), "steps_done": 1, "best": None, "images_per_step": 2}
        files[name] = folder / f"{name}.pt"
        torch.save(content, files[name])
    return files


@pytest.fixture
def exported(checkpoints, tmp_path):
    """exported(folder, flag ...) -> the ONNX file."""

    def run(folder: str, *flags: str, output: str = "model.onnx") -> Path:
        argv = [f"--checkpoint={checkpoints[folder]}", f"--output={tmp_path / output}", *flags]
        args = parse_export_args({}, "64x96", "", argv)
        export(args, module(folder, "model").build_model, module(folder, "weights").from_reference, info(folder))
        return tmp_path / output

    return run


def info(folder: str):
    return module(folder, "data").INFO


def network(folder: str, path: Path) -> nn.Module:
    parts = module(folder, "model").build_model, module(folder, "weights").from_reference
    return load_model(path, *parts, {}).eval()


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_file_of_any_size_gives_the_logits_of_the_network(folder, exported, checkpoints, capsys):
    path = exported(folder, "--dynamic=size")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{path}: ") and len(said) == 3 and "2x3x96x160" in said[2]
    ours, theirs = network(folder, checkpoints[folder]), network(folder, path)
    for shape in ((3, 3, 64, 96), (1, 3, 128, 64)):
        images = torch.randn(shape)
        with torch.no_grad():
            expected = ours(images)
        torch.testing.assert_close(theirs(images), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    assert theirs.options == ours.options
    if folder == "DynamicUNet":
        with pytest.raises(InputError, match=r"64 x 80 pixels \(.* be multiples of 32\); .*--size=64x80"):
            theirs(torch.randn(1, 3, 64, 80))


@pytest.mark.parametrize("folder", ["AttentionUNet", "ICNet"])  # a mask, and class ids
def test_bytes_in_and_class_ids_out(folder, exported, checkpoints):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported(folder, "--uint8_input", "--class_ids", "--format=onnx")))
    pixels = np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8)
    (ids,) = session.run(None, {"images": pixels.transpose(2, 0, 1)[None]})
    from common.data.colours import picture_to_input
    from common.scores.metrics import class_ids

    images = picture_to_input(Image.fromarray(pixels), info(folder).mean, info(folder).std)[None]
    with torch.no_grad():
        expected = class_ids(network(folder, checkpoints[folder])(images))
    assert ids.dtype == np.uint8 and ids.shape == (1, 64, 96)
    assert (ids == expected.numpy()).mean() > 0.999


@pytest.mark.parametrize("own", [False, True])
def test_a_picture_is_seen_by_the_file_as_by_the_checkpoint(own, checkpoints, tmp_path):
    """With the classes and the normalisation of the data that it was trained on."""
    published, weights = info("ICNet"), tmp_path / "best.pt"
    content = torch.load(checkpoints["ICNet"], weights_only=True)
    names = tuple(f"kind {number}" for number in range(19))
    trained = published._replace(class_names=names, mean=(0.3, 0.3, 0.3), std=(0.1, 0.2, 0.3)) if own else published
    torch.save(content | ({"data": trained.described()} if own else {}), weights)
    args = parse_export_args({}, "64x96", "", [f"--checkpoint={weights}", f"--output={tmp_path / 'model.onnx'}"])
    export(args, module("ICNet", "model").build_model, module("ICNet", "weights").from_reference, published)
    picture = np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8)
    ours, theirs = (load(path, "cpu", "ICNet") for path in (weights, tmp_path / "model.onnx"))
    assert (ours(picture) == theirs(picture)).mean() > 0.999
    assert theirs.info.described() == ours.info.described() == trained.described()


def test_a_file_of_one_shape_is_filled_up_and_refuses_other_sizes(exported, checkpoints):
    path = exported("AttentionUNet", "--batch=2")
    ours, theirs = network("AttentionUNet", checkpoints["AttentionUNet"]), network("AttentionUNet", path)
    images = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), ours(images), rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match="takes images of 64 x 96, and these have 32 x 96; export"):
        theirs(torch.randn(1, 3, 32, 96))


def test_a_file_of_class_ids_scores_like_one_of_logits(exported, terminal, monkeypatch):
    """And while it is written, a bar shows how far it is."""
    screen, shown = terminal
    monkeypatch.setattr(terminal_module, "DELAY_S", 0)
    monkeypatch.setattr(sys, "stderr", screen)
    from common.scores.metrics import class_ids

    images = torch.randn(1, 3, 64, 96)
    logits = network("ICNet", exported("ICNet"))(images)
    ids = network("ICNet", exported("ICNet", "--class_ids"))(images)
    assert torch.equal(class_ids(ids), class_ids(logits))
    assert "exporting:" in (text := shown()) and "/4 [" in text


def test_the_network_is_left_as_it_was(checkpoints, tmp_path):
    model = network("ICNet", checkpoints["ICNet"])
    args = parse_export_args({}, "64x96", "", ["--checkpoint=x", "--output=x"])
    deployed = exporting._deployed(model, info("ICNet"), args)
    exporting._write(deployed, tmp_path / "x.onnx", args)
    assert not any(layer.training for layer in model.modules())


def test_what_differs_is_not_kept(exported, monkeypatch, tmp_path):
    monkeypatch.setattr(exporting, "_compare", lambda network, path, shape, *_: Check(shape, 0.5, 0.1, 0.9))
    with pytest.raises(Failed, match="the file is not kept: for images .1, 3, 64, 96. logits off by 1.0e-01"):
        exported("ICNet")
    monkeypatch.setattr(exporting, "_compare", lambda network, path, shape, *_: Check(shape, 0.0, 0.0, 0.998))
    with pytest.raises(Failed, match="99.80% of the pixels of equal class"):
        exported("ICNet")
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_sees_a_weight_that_has_changed(exported, checkpoints, tmp_path, monkeypatch):
    write = exporting._describe

    def spoil(path, *rest):
        content = onnx.load(str(path))
        weight = next(tensor for tensor in content.graph.initializer if len(tensor.dims) == 4)
        weight.raw_data = np.zeros(weight.dims, np.float32).tobytes()
        onnx.save(content, str(path))
        write(path, *rest)

    monkeypatch.setattr(exporting, "_describe", spoil)
    with pytest.raises(Failed, match="the file is not kept"):
        exported("AttentionUNet")
    assert list(tmp_path.iterdir()) == []


def test_for_ascend_without_atc_the_command_is_told(exported, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        exported("ICNet", "--format=om", "--soc_version=Ascend910B1", output="model.om")
    assert end.value.code == 4
    assert (
        f"run: atc --framework=5 --model={tmp_path}/model.onnx --output={tmp_path}/model --input_format=NCHW "
        "--input_shape=images:1,3,64,96 --soc_version=Ascend910B1"
    ) in capsys.readouterr().err
    assert onnx.load(str(tmp_path / "model.onnx")).opset_import[0].version == 13


def test_atc_is_run_where_it_is(exported, tmp_path, monkeypatch, capfd):
    atc = tmp_path / "bin" / "atc"
    atc.parent.mkdir()
    atc.write_text('#!/bin/sh\necho "$@"\nexit 0\n')
    atc.chmod(0o755)
    monkeypatch.setenv("PATH", str(atc.parent), prepend=":")
    exported("ICNet", "--format=om", output="model.om")
    assert "--framework=5" in capfd.readouterr().out
    atc.write_text("#!/bin/sh\nexit 7\n")
    with pytest.raises(Failed, match="atc ended with exit code 7"):
        exported("ICNet", "--format=om", output="model.om")


@pytest.mark.parametrize(("flags", "message"), [
    (["--batch=0"], "--batch 0: give at least 1"),
    (["--size=60x96", "--dynamic=size"], "with --dynamic size give multiples of 32"),
    (["--format=om", "--dynamic=batch"], "--format om is for one shape"),
    (["--output=nowhere/model.onnx"], "there is no folder .*nowhere"),
    (["--output=/proc/model.onnx"], "--output: the folder /proc cannot be written to"),
    (["--output=."], "--output .: there is a folder of that name"),
    (["--output=stra\udcdfe.onnx"], "the name is no UTF-8, which ONNX needs"),
    (["--size=60x90"], "Attention U-Net needs sides that are multiples of 16"),
    (["--opset=3"], "cannot export with --opset 3"),
])  # fmt: skip
def test_what_cannot_be_exported_is_refused(flags, message, exported, tmp_path):
    with pytest.raises(InputError, match=message):
        exported("AttentionUNet", *flags)
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_is_no_fault_of_the_opset(exported, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: torch.empty(1 << 50))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        exported("ICNet")


def test_packages_that_are_missing_are_named(exported, monkeypatch):
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="export needs onnx and onnxruntime: pip install onnx onnxruntime"):
        exported("ICNet")


def test_files_of_others_are_refused(exported, tmp_path):
    path = exported("ICNet")
    with pytest.raises(InputError, match="is of ICNet, and this folder's network is DeepLabV3"):
        network("DeeplabV3", path)
    content = onnx.load(str(path))
    del content.metadata_props[:]
    onnx.save(content, str(tmp_path / "foreign.onnx"))
    with pytest.raises(InputError, match="was not written by an export.py"):
        network("ICNet", tmp_path / "foreign.onnx")
    (tmp_path / "torn.onnx").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read as an ONNX file"):
        network("ICNet", tmp_path / "torn.onnx")
    with pytest.raises(InputError, match="takes bytes"):
        network("ICNet", exported("ICNet", "--uint8_input", output="bytes.onnx"))
