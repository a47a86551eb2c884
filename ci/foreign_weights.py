"""How far the networks here are from those of other libraries, with the weights of those: python -m ci.foreign_weights

For each library that is installed, its network is made with random weights and statistics of batch norms, saved as the
library saves it, read here as --load_from and --pretrained read it, and compared on two sizes. A line for each says how
many tensors are taken, and the largest difference of a logit, relative to the largest one. docs/weights.md has them;
ci/tests/test_foreign_weights.py repeats them. Nothing is downloaded. With names of libraries, those alone.
"""

import importlib
import sys
import tempfile
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.nets.backbone import ResNet, torchvision_models
from common.nets.imagenet import load_imagenet
from common.record.checkpoint import load_model

SIZES = ((64, 96), (97, 129))
CLASSES = 7


class Case(NamedTuple):
    """A network of another library, and the file that it is saved as."""

    network: nn.Module
    content: object  # what torch.save writes
    outputs: Callable[[Tensor], Tensor]  # images -> logits, or features
    sizes: tuple[tuple[int, int], ...] = SIZES


def shaken(network: nn.Module) -> nn.Module:
    """In evaluation, with batch norms that have statistics and scales of their own."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.7, 1.5)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.uniform_(module.bias, -0.1, 0.3)
    return network.eval()


# ---- mmsegmentation


def mmsegmentation_network(config: dict) -> Case:
    """An EncoderDecoder of mmsegmentation 1.x, in a checkpoint as its runner writes it, with numbers over time."""
    if "mmcv._ext" not in sys.modules and find_spec("mmcv._ext") is None:
        sys.modules["mmcv._ext"] = _Operators("mmcv._ext")
    from mmengine.logging import HistoryBuffer
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules()
    network = shaken(MODELS.build({"type": "EncoderDecoder", "test_cfg": {"mode": "whole"}, **config}))
    history = HistoryBuffer()
    history.update(0.5)
    content = {
        "meta": {
            "epoch": 1,
            "iter": 10,
            "cfg": "model = dict(align_corners=False)",
            "dataset_meta": {"classes": ["a"]},
        },
        "state_dict": OrderedDict(network.state_dict()),
        "message_hub": {
            "log_scalars": OrderedDict({"train/loss": history}),
            "runtime_info": OrderedDict({"iter": 10, "best": history.current()}),
            "resumed_keys": OrderedDict({"train/loss": True}),
        },
        "optimizer": torch.optim.SGD(network.parameters(), 0.1).state_dict(),
        "param_schedulers": [{"last_step": 10, "_global_step": 11}],
    }

    def logits(images: Tensor) -> Tensor:
        return network.encode_decode(images, [{"img_shape": images.shape[-2:]}])

    return Case(network, content, logits)


class _Operators(types.ModuleType):
    """Stands for mmcv's compiled operators, which are looked up as its modules are imported."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_: None


def head(in_channels: int, channels: int, index: int, kind: str = "FCNHead", **options) -> dict:
    """The configuration of one of its heads."""
    common = {"dropout_ratio": 0.1, "num_classes": CLASSES, "norm_cfg": {"type": "BN"}, "align_corners": False}
    return {"type": kind, "in_channels": in_channels, "channels": channels, "in_index": index, **common, **options}


def mmsegmentation_deeplabv3(depth: int) -> Case:
    """Its configurations deeplabv3_r18-d8 and deeplabv3_r50-d8."""
    width = 512 if depth == 18 else 2048
    backbone = {
        "type": "ResNetV1c", "depth": depth, "num_stages": 4, "out_indices": (0, 1, 2, 3), "dilations": (1, 1, 2, 4),
        "strides": (1, 2, 1, 1), "norm_cfg": {"type": "BN"}, "style": "pytorch", "contract_dilation": True,
    }  # fmt: skip
    main = head(width, width // 4, 3, "ASPPHead", dilations=(1, 12, 24, 36))
    auxiliary = head(width // 2, width // 8, 2, num_convs=1, concat_input=False)
    return mmsegmentation_network({"backbone": backbone, "decode_head": main, "auxiliary_head": auxiliary})


def mmsegmentation_bisenetv1() -> Case:
    """Its configuration bisenetv1_r18-d32."""
    resnet = {
        "type": "ResNet", "depth": 18, "num_stages": 4, "out_indices": (0, 1, 2, 3), "dilations": (1, 1, 1, 1),
        "strides": (1, 2, 2, 2), "norm_cfg": {"type": "BN"}, "style": "pytorch", "contract_dilation": True,
    }  # fmt: skip
    backbone = {
        "type": "BiSeNetV1", "in_channels": 3, "context_channels": (128, 256, 512), "out_indices": (0, 1, 2),
        "spatial_channels": (64, 64, 64, 128), "out_channels": 256, "backbone_cfg": resnet, "norm_cfg": {"type": "BN"},
    }  # fmt: skip
    auxiliary = [head(128, 64, index, num_convs=1, concat_input=False) for index in (1, 2)]
    main = head(256, 256, 0, num_convs=1, concat_input=False)
    return mmsegmentation_network({"backbone": backbone, "decode_head": main, "auxiliary_head": auxiliary})


# ---- fastai


def fastai_unet(backbone: str) -> Case:
    """What its unet_learner builds, in a file of Learner.save, with the state of its optimizer."""
    from fastai.optimizer import Adam
    from fastai.vision.learner import create_unet_model

    network = shaken(create_unet_model(getattr(torchvision_models(), backbone), CLASSES, (64, 64), pretrained=False))
    optimizer = Adam(network.parameters(), lr=1e-3)
    return Case(
        network,
        {"model": network.state_dict(), "opt": optimizer.state_dict()},
        lambda images: network(images).as_subclass(Tensor),
    )


# ---- encoders


def encoder(network: nn.Module, layers: Callable[[Tensor], Tensor]) -> Case:
    """A classifier for ImageNet, of which the features before its pooling are compared."""
    return Case(shaken(network), network.state_dict(), layers)


def torchvision_resnet() -> Case:
    """torchvision's ResNet-18."""
    network = torchvision_models().resnet18(num_classes=CLASSES)
    parts = [module for name, module in network.named_children() if name not in ("avgpool", "fc")]
    return encoder(network, nn.Sequential(*parts))


def deep_stem_resnet() -> Case:
    """timm's resnet50s, the network and the names of PyTorch-Encoding's ResNet-50."""
    import timm

    network = timm.create_model("resnet50s", num_classes=CLASSES)
    return encoder(network, network.forward_features)


def open_mmlab_resnet() -> Case:
    """mmsegmentation's ResNetV1c, as the encoder of open-mmlab's files is called."""
    network = mmsegmentation_deeplabv3(50).network.backbone
    return encoder(network, lambda images: network(images)[-1])


# title -> (library, folder of the network, or the form of the encoder; the case)
CASES: dict[str, tuple[str, str | Callable[[], ResNet], Callable[[], Case]]] = {
    "mmsegmentation 1.2 DeepLabV3 R18": ("mmseg", "DeeplabV3", lambda: mmsegmentation_deeplabv3(18)),
    "mmsegmentation 1.2 DeepLabV3 R50": ("mmseg", "DeeplabV3", lambda: mmsegmentation_deeplabv3(50)),
    "mmsegmentation 1.2 BiSeNetV1 R18": ("mmseg", "BiSeNetv1", mmsegmentation_bisenetv1),
    "fastai 2.8 unet_learner resnet18": ("fastai", "DynamicUNet", lambda: fastai_unet("resnet18")),
    "fastai 2.8 unet_learner resnet34": ("fastai", "DynamicUNet", lambda: fastai_unet("resnet34")),
    "torchvision ResNet-18": ("torchvision", lambda: ResNet("resnet18"), torchvision_resnet),
    "PyTorch-Encoding ResNet-50": (
        "timm",
        lambda: ResNet("resnet50", stem_widths=(64, 64, 128)),
        deep_stem_resnet,
    ),
    "open-mmlab ResNet-50 v1c": (
        "mmseg",
        lambda: ResNet("resnet50", (False, True, True), stem_widths=(32, 32, 64)),
        open_mmlab_resnet,
    ),
}


class Outcome(NamedTuple):
    """What became of a file, and the largest difference of an output, relative to the largest output, by size."""

    line: str
    differences: list[float]


def compare(title: str, folder: Path) -> Outcome:
    """Write the file of a case into `folder`, read it, and compare. Raises InputError where it is refused."""
    torch.manual_seed(0)
    _, where, make = CASES[title]
    case = make()
    path = folder / "foreign.pth"
    torch.save(case.content, path)
    lines: list[str] = []
    if isinstance(where, str):
        ours = load_model(
            path,
            importlib.import_module(f"{where}.model").build_model,
            importlib.import_module(f"{where}.weights").from_reference,
            {},
            lines.append,
        ).eval()
        outputs = ours
    else:
        ours = where().eval()
        lines.append(load_imagenet(ours, path))

        def outputs(images: Tensor) -> Tensor:
            return ours(images)[-1]

    differences = []
    for number, size in enumerate(case.sizes):
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            theirs, mine = case.outputs(images), outputs(images)
        assert theirs.shape == mine.shape and theirs.std() > 1e-3 * theirs.abs().max(), title
        differences.append(((theirs - mine).abs().max() / theirs.abs().max()).item())
    return Outcome(lines[0].replace(f"{path}: ", ""), differences)


def available(libraries: list[str]) -> Iterator[str]:
    """The titles of the cases whose library is installed, of these libraries or of all."""
    for title, (library, *_) in CASES.items():
        if (not libraries or library in libraries) and find_spec(library):
            yield title


def main(libraries: list[str]) -> None:
    """Print a line for each case whose library is installed."""
    for title in available(libraries):
        with tempfile.TemporaryDirectory() as folder:
            line, differences = compare(title, Path(folder))
        print(f"{title}: {', '.join(f'{difference:.1e}' for difference in differences)}; {line}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
