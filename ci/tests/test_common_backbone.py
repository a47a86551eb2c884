"""The shared ResNet backbones, and finding and loading their ImageNet weights."""

import hashlib
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from ci.tests.folders import FOLDERS, module, parsed
from common.errors import InputError
from common.nets.backbone import ResNet, torchvision_models
from common.nets.imagenet import find_imagenet, load_imagenet, plain_state_dict
from common.record.initial import initial_weights

ROOT = Path(__file__).resolve().parents[2]
V1S = (64, 64, 128)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "stem_widths", "parameters"),
    [  # as published: torchvision's without fc, mmsegmentation's ResNetV1c, PyTorch-Encoding's v1s
        ("resnet50", None, 23_508_032),
        ("resnet18", (32, 32, 64), 11_195_744),
        ("resnet50", (32, 32, 64), 23_527_264),
        ("resnet101", (32, 32, 64), 42_519_392),
        ("resnet50", V1S, 23_631_808),
        ("resnet152", V1S, 58_267_584),
    ],
)
def test_parameter_count(name, stem_widths, parameters):
    torchvision_models()  # torch 2.6 cannot import it under another default device
    with torch.device("meta"):
        assert count(ResNet(name, stem_widths=stem_widths)) == parameters


@pytest.mark.parametrize(("name", "stem_widths"), [("resnet18", None), ("resnet50", None), ("resnet50", (16, 16, 32))])
def test_fewer_channels_are_in_proportion(name, stem_widths):
    torch.manual_seed(0)
    narrow = ResNet(name, stem_widths=stem_widths, base_channels=16).eval()
    with torch.device("meta"):
        published = ResNet(name, stem_widths=stem_widths and (64, 64, 128)).state_dict()
    expected = {  # colours, sides of kernels and counters are less than 32
        key: tuple(side // 4 if side >= 32 else side for side in value.shape) for key, value in published.items()
    }
    assert {key: tuple(value.shape) for key, value in narrow.state_dict().items()} == expected
    outputs = narrow(torch.randn(1, 3, 64, 64))
    expansion = 1 if name == "resnet18" else 4
    assert [tuple(output.shape[1:3]) for output in outputs] == [(16 * expansion * 2**i, 16 >> i) for i in range(4)]
    for convolution in (layer for layer in narrow.modules() if isinstance(layer, torch.nn.Conv2d)):
        fan_out = convolution.out_channels * convolution.kernel_size[0] ** 2
        assert convolution.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_channels_of_a_whole_network_are_in_proportion(folder):
    """With --base_channels a quarter of the published ones, and the same layers; so a checkpoint is read again."""
    build_model = module(folder, "model").build_model
    with torch.device("meta"):
        published, narrow = build_model(), build_model(base_channels=16)
        again = build_model(**narrow.options)
    classes, colours = published.options["num_classes"], 3
    shapes = {name: value.shape for name, value in published.state_dict().items()}
    assert {name: len(shape) for name, shape in shapes.items()} == {k: v.dim() for k, v in narrow.state_dict().items()}
    for name, value in narrow.state_dict().items():
        assert again.state_dict()[name].shape == value.shape
        for less, whole in zip(value.shape[:2], shapes[name], strict=False):
            # an image beside features is three channels more
            in_proportion = 4 * less == whole or 4 * (less - colours) == whole - colours
            assert in_proportion or less == whole in (1, colours, classes), name
    assert sum(map(torch.numel, narrow.parameters())) < sum(map(torch.numel, published.parameters())) / 12


def test_channels_that_cannot_be_in_proportion_or_in_memory_are_refused(capsys):
    with pytest.raises(SystemExit):
        parsed("ICNet", base_channels=6400)
    assert "--base_channels: '6400' is not a whole number from 1 to 512" in capsys.readouterr().err
    for channels in (12, 4, 0, -16):
        with pytest.raises(InputError, match=f"^{channels} channels at the first stage: give a multiple of 8"):
            ResNet("resnet18", base_channels=channels)


def test_no_published_file_is_looked_for_or_downloaded_for_a_narrow_network(tmp_path):
    args = parsed("ICNet", base_channels=16, pretrained=tmp_path)
    with pytest.raises(InputError, match="published for 64 channels; train from scratch with --pretrained none"):
        initial_weights(args, None, None, None, lambda *_: pytest.fail("looked for"))
    args.pretrained = "none"
    assert initial_weights(args, None, None, None, lambda *_: None) == "initial weights: random"


def test_names_of_a_deep_stem():
    with torch.device("meta"):
        names = list(ResNet("resnet50", stem_widths=V1S).state_dict())
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert names[:19] == [
        "conv1.0.weight",
        *(f"conv1.1.{statistic}" for statistic in statistics),
        "conv1.3.weight",
        *(f"conv1.4.{statistic}" for statistic in statistics),
        "conv1.6.weight",
        *(f"bn1.{statistic}" for statistic in statistics),
        "layer1.0.conv1.weight",
    ]
    assert {name.split(".")[0] for name in names} == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}


def test_dilation():
    """The first block of a stage that is dilated has half the dilation of the others, and no stride."""
    with torch.device("meta"):
        backbone = ResNet("resnet50", (False, True, True), V1S)
    for stage, strides, dilations in (
        (backbone.layer1, (1, 1), (1, 1)),
        (backbone.layer2, (2, 1), (1, 1)),
        (backbone.layer3, (1, 1), (1, 2)),
        (backbone.layer4, (1, 1), (2, 4)),
    ):
        assert tuple(block.conv2.stride[0] for block in stage[:2]) == strides
        assert [block.conv2.dilation[0] for block in stage] == [dilations[0]] + [dilations[1]] * (len(stage) - 1)
        assert stage[0].downsample[0].stride[0] == strides[0]


def test_dilation_of_basic_blocks():
    """As in mmsegmentation the first convolution of a block is dilated and the second is not; the size stays."""
    backbone = ResNet("resnet18", (False, True, True)).eval()
    for stage, dilations in ((backbone.layer1, (1, 1)), (backbone.layer3, (1, 2)), (backbone.layer4, (2, 4))):
        assert tuple(block.conv1.dilation[0] for block in stage) == dilations
        assert tuple(block.conv1.padding[0] for block in stage) == dilations
        assert {block.conv2.dilation[0] for block in stage} == {1}
    with torch.no_grad():
        sizes = [tuple(features.shape[-2:]) for features in backbone(torch.randn(1, 3, 65, 96))]
    assert sizes == [(17, 24), (9, 12), (9, 12), (9, 12)]


@pytest.mark.parametrize("name, last", [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_residual_blocks_start_as_the_identity_when_asked(name, last):
    for zero_init, expected in ((True, 0), (False, 1)):
        backbone = ResNet(name, zero_init_residual=zero_init)
        assert (getattr(backbone.layer3[1], last).weight == expected).all()
        assert (backbone.layer3[1].bn1.weight == 1).all()


def test_stages():
    backbone = ResNet("resnet18").eval()
    images = torch.randn(1, 3, 65, 96)
    with torch.no_grad():
        assert backbone.stem(images).shape == (1, 64, 33, 48)
        assert [tuple(features.shape) for features in backbone(images)] == [
            (1, 64, 17, 24),
            (1, 128, 9, 12),
            (1, 256, 5, 6),
            (1, 512, 3, 3),
        ]
        assert [tuple(features.shape) for features in backbone(images, stages=2)] == [(1, 64, 17, 24), (1, 128, 9, 12)]


def test_equals_torchvision():
    """The same output as torchvision's own network with the same weights."""
    theirs = torchvision_models().resnet18().eval()
    ours = ResNet("resnet18").eval()
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if not name.startswith("fc.")})
    theirs.avgpool = theirs.fc = torch.nn.Identity()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images)[-1].flatten(1), theirs(images))


def test_torchvision_without_its_operators():
    """Where the compiled operators do not load, `import torchvision` fails; our backbones work all the same."""
    script = """
import torch

def refuse(path):
    raise OSError(f"{path}: undefined symbol")

torch.ops.load_library = refuse
try:
    import torchvision
except RuntimeError as error:
    print(error)
from common.nets.backbone import ResNet
print(tuple(ResNet("resnet18").eval()(torch.zeros(1, 3, 32, 32))[-1].shape))
import torchvision
print(torchvision.extension._has_ops())
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.stdout.splitlines() == ["operator torchvision::nms does not exist", "(1, 512, 1, 1)", "False"], result


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """The content of a file such as PyTorch-Encoding publishes, for a small network: with fc, without counters."""
    torch.manual_seed(1)
    state = ResNet("resnet18", stem_widths=(8, 8, 64)).state_dict()
    for name, value in state.items():
        if name.endswith("running_mean"):
            value.normal_()
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    return state | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


def blank() -> ResNet:
    torch.manual_seed(2)
    return ResNet("resnet18", stem_widths=(8, 8, 64))


def assert_loaded(backbone: ResNet, published: dict[str, torch.Tensor]) -> None:
    for name, value in backbone.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, published[name]), name


# the stem's tensors in a file of open-mmlab (resnet50_v1c) and in one of PyTorch-Encoding, in the order of its layers
OPEN_MMLAB_STEM = {"stem.0": "conv1.0", "stem.1": "conv1.1", "stem.3": "conv1.3", "stem.4": "conv1.4"}
OPEN_MMLAB_STEM |= {"stem.6": "conv1.6", "stem.7": "bn1"}


def test_load_imagenet_with_the_stem_of_open_mmlab(tmp_path, published):
    theirs = {}
    for name, value in published.items():
        module, _, leaf = name.rpartition(".")
        back = {ours: their for their, ours in OPEN_MMLAB_STEM.items()}
        theirs[f"{back.get(module, module)}.{leaf}"] = value
    assert "stem.7.running_mean" in theirs and "bn1.running_mean" not in theirs
    torch.save({"state_dict": theirs}, tmp_path / "weights.pth")
    backbone = blank()
    assert load_imagenet(backbone, tmp_path / "weights.pth").startswith("backbone: all ")
    assert_loaded(backbone, published)


@pytest.mark.parametrize("form", ["plain", "legacy", "wrapped", "prefixed", "zipped", "whole"])
def test_load_imagenet(tmp_path, published, form):
    path, backbone = tmp_path / "weights.pth", blank()
    content = published
    if form == "wrapped":
        content = {"state_dict": published, "epoch": 90}
    if form == "prefixed":
        content = {f"module.{name}": value for name, value in published.items()}
    kind, left_out = "resnet18 as in files of PyTorch-Encoding, with a deep stem", "2 (fc.weight, fc.bias) left out"
    if form == "whole":  # a network that has the encoder in it
        content = {f"path.backbone.{name}": value for name, value in published.items() if not name.startswith("fc.")}
        content["head.weight"] = torch.zeros(2)
        kind, left_out = f"{kind}, in path.backbone of a network", "1 (head.weight) left out"
    torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    if form == "zipped":
        with zipfile.ZipFile(tmp_path / "weights.zip", "w") as archive:
            archive.write(path, "weights.pth")
        path = tmp_path / "weights.zip"
    assert load_imagenet(backbone, path) == f"backbone: all 110 tensors loaded from {path}: {kind}; {left_out}"
    assert_loaded(backbone, published)


def test_a_file_for_another_stem_is_taken_block_by_block(tmp_path):
    """torchvision's file for the v1s network: everything but the stem and the block that follows it."""
    torch.manual_seed(3)
    theirs = ResNet("resnet50").state_dict()
    torch.manual_seed(4)
    backbone = ResNet("resnet50", (False, True, True), V1S)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    torch.save(theirs, tmp_path / "resnet50-19c8e357.pth")
    report = load_imagenet(backbone, tmp_path / "resnet50-19c8e357.pth")
    # 3 + 3 + 4 + 6 blocks of 3 convolutions, 4 shortcuts: less the first block's 4, 5 tensors each
    assert report.startswith("warning: backbone: 240 of 275 tensors loaded")
    assert report.endswith("from random values start: layer1.0, stem")
    for name, value in backbone.state_dict().items():
        expected = before if name.startswith(("conv1", "bn1", "layer1.0.")) else theirs
        assert torch.equal(value, expected[name]), name


def test_files_that_do_not_fit(tmp_path, published):
    path = tmp_path / "weights.pth"
    half = {name: value for name, value in published.items() if name.startswith(("conv1", "bn1", "layer1"))}
    torch.save(half, path)
    backbone = blank()
    with pytest.raises(
        InputError, match=r"pth \(an encoder .*\) does not fit .*110 .* 35 .* 35 match.*--pretrained none"
    ):
        load_imagenet(backbone, path)
    assert torch.equal(backbone.conv1[0].weight, blank().conv1[0].weight)  # as it was
    torch.save({"net": [1, 2, 3]}, path)
    with pytest.raises(InputError, match=r"weights\.pth holds no named tensors"):
        load_imagenet(backbone, path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(InputError, match=r"weights\.pth holds no named tensors"):
        load_imagenet(backbone, path)


def test_a_deeper_network_is_reported(tmp_path, published):
    path = tmp_path / "weights.pth"
    torch.save(published | {"layer1.2.conv1.weight": torch.zeros(64, 64, 3, 3)}, path)
    report = load_imagenet(blank(), path)
    assert report.startswith(f"warning: backbone: 110 of 110 tensors loaded from {path}: ")
    assert report.endswith("; 1 in the file have no place")


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files(tmp_path, published, zipped):
    path = tmp_path / "weights.pth"
    torch.save(published, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for content in (b"", b"<html>not found</html>", whole[:1000], whole[: len(whole) // 2], whole[:-10]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"cannot read .*weights\.pth as ImageNet weights \(.*--pretrained none"):
            load_imagenet(blank(), path)


def test_code_in_a_file_is_not_run(tmp_path):
    class Malicious:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    torch.save({"conv1.0.weight": Malicious()}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="cannot read"):
        load_imagenet(blank(), tmp_path / "weights.pth")
    assert not (tmp_path / "touched").exists()


def test_plain_state_dict():
    tensor = torch.zeros(1)
    for checkpoint in (
        {"a.b": tensor},
        {"module.a.b": tensor},
        {"state_dict": {"module.a.b": tensor}, "epoch": 1},
        {"model": {"a.b": tensor}, "optimizer": {}},
        {"a.b": tensor, "note": "text"},
    ):
        assert plain_state_dict(checkpoint) == {"a.b": tensor}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty home directory, so that no cache of the machine is found."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for variable in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    return home


NAMES = ("resnet50-25c4b509.pth", "resnet50-11111111.pth")


def test_find_imagenet(tmp_path, home):
    folder = tmp_path / "pretrained"
    folder.mkdir()
    file = tmp_path / "any-name"
    file.touch()
    assert find_imagenet("none", NAMES) is None
    assert find_imagenet(str(file), NAMES) == file
    in_order_of_rising_preference = (
        home / ".cache/torch/hub/checkpoints/resnet50-25c4b509.pth",
        home / ".torch/models/resnet50-25c4b509.pth",
        folder / "resnet50-11111111.pth",
        folder / "resnet50-25c4b509.zip",
        folder / "resnet50-25c4b509.pth",
    )
    for path in in_order_of_rising_preference:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        assert find_imagenet(str(folder), NAMES) == path


def test_nothing_to_find(tmp_path, home):
    with pytest.raises(InputError, match=r"no file .*weights\.pth.*resnet50-25c4b509\.pth.*--pretrained none"):
        find_imagenet(str(tmp_path / "weights.pth"), NAMES)
    with pytest.raises(InputError) as raised:
        find_imagenet(str(tmp_path), NAMES)
    message = str(raised.value)
    for part in (*NAMES, str(tmp_path), ".torch/models", ".cache/torch/hub/checkpoints", "--pretrained FILE"):
        assert part in message
    assert "\n" not in message


def digest_name(content: bytes, algorithm: str) -> str:
    return f"resnet18-{hashlib.new(algorithm, content).hexdigest()[:8]}.pth"


@pytest.mark.parametrize(("algorithm", "zipped"), [("sha1", True), ("sha256", False)])
def test_download(tmp_path, home, algorithm, zipped):
    content = b"the weights" * 1000
    name = digest_name(content, algorithm)
    source = tmp_path / "server" / "file"
    source.parent.mkdir()
    source.write_bytes(content)
    if zipped:
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)
    folder = tmp_path / "made" / "pretrained"
    found = find_imagenet(str(folder), [name], source.as_uri())
    assert found == folder / name
    assert found.read_bytes() == content
    assert list(folder.iterdir()) == [found]
    source.unlink()
    assert find_imagenet(str(folder), [name], source.as_uri()) == found  # not downloaded again


def test_downloads_that_fail(tmp_path, home):
    folder = tmp_path / "pretrained"
    cut = tmp_path / "cut"
    cut.write_bytes(b"half of the w")
    with pytest.raises(InputError, match="does not match .* in its name"):
        find_imagenet(str(folder), [digest_name(b"half of the weights", "sha1")], cut.as_uri())
    assert list(folder.iterdir()) == []
    with socket.socket() as unused:  # bound, not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/weights.zip"
        with pytest.raises(InputError) as raised:
            find_imagenet(str(folder), NAMES, url)
    for part in (NAMES[0], str(folder), url, "put the file into", "--pretrained FILE", "--pretrained none"):
        assert part in str(raised.value)
