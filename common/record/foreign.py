"""Weights that other programs wrote: recognised by the names and shapes of their tensors, and given our names.

A folder's weights.py has a `Format` for each program whose files it knows. Where their network is another one, in a
way that no renaming mends, the format says in what, and nothing of the file is taken.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from common.errors import InputError

WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net")
PREFIXES = ("module.", "_orig_mod.")  # of torch's DistributedDataParallel and DataParallel, and of torch.compile
NAMES_OF_OURS = "tensors under our names"  # the kind of a file that bears no marks
SHOWN_NAMES = 6  # of the tensors that are left out or new

# blocks of the four stages, and whether they are bottlenecks -> the ResNet
RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}


class Format(NamedTuple):
    """The files of one program for one network."""

    kind: str  # program and network, for people
    marks: tuple[str, ...]  # regular expressions: a file is of this kind if each is found in one of its names or more
    names: tuple[tuple[str, str], ...] = ()  # (regular expression, what takes its place), one after the other
    unused: str = r"\Z."  # regular expression of the names that have no place in the network, and need none
    # (tensors, whole content of the file) -> in what the network differs from the one here, or nothing
    differs: Callable[[Mapping[str, Tensor], Mapping], str] = lambda state, content: ""


def always(difference: str) -> Callable[[Mapping[str, Tensor], Mapping], str]:
    """For `Format.differs` where no network of the kind is the one here."""
    return lambda state, content: difference


class Translated(dict[str, Tensor]):
    """Tensors by our names, with what is said of the file that they come from."""

    def __init__(
        self, tensors: Mapping[str, Tensor], kind: str, left_out: Sequence[str] = (), options: dict | None = None
    ):
        super().__init__(tensors)
        self.kind = kind
        self.left_out = list(left_out)  # names in the file
        self.options = options or {}  # of `build_model`, as far as the tensors tell


class OtherNetwork(InputError):
    """A file whose kind is known, and of another network; the message begins with what the file is."""


# Kinds that no network here has, whichever folder is asked.
OTHERS = (
    Format(
        "a ResNet for ImageNet",
        (r"^layer4\.", r"^(conv1|stem\.0|conv1\.0)\."),
        differs=always("which is the encoder alone: give it with --pretrained"),
    ),
    Format(
        "the Unet of mmsegmentation",
        (r"^backbone\.encoder\.0\.0\.convs\.", r"^backbone\.decoder\."),
        differs=always(
            "whose decoder enlarges bilinearly or by a transposed convolution; the U-Nets here do by nearest neighbour "
            "and a 3x3 convolution, or by a pixel shuffle"
        ),
    ),
    Format(
        "a network of mmsegmentation",
        (r"^decode_head\.", r"^backbone\."),
        differs=always("which is not the one of this folder"),
    ),
    Format(
        "the Unet of segmentation_models.pytorch",
        (r"^encoder\.", r"^decoder\.blocks\.0\.conv1\.", r"^segmentation_head\."),
        differs=always("whose decoder enlarges without weights; the U-Nets here learn how to"),
    ),
    Format(
        "a network of segmentation_models.pytorch",
        (r"^encoder\.", r"^segmentation_head\."),
        differs=always("which is not the one of this folder"),
    ),
    Format(
        "a segmentation network of torchvision",
        (r"^backbone\.", r"^classifier\.4\."),
        differs=always("which is not the one of this folder"),
    ),
)


def plain_state_dict(checkpoint: Mapping) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name: out of what they are wrapped in (`WRAPPERS`), without `PREFIXES`."""
    for wrapper in WRAPPERS:
        if isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
    tensors = {str(name): value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def translated(
    checkpoint: Mapping,
    formats: Sequence[Format],
    options_of: Callable[[Mapping[str, Tensor]], dict] = lambda state: {},
) -> Translated:
    """The tensors of a checkpoint under our names, by the first of the formats whose marks it bears.

    checkpoint: the state dict, or what it is wrapped in (`plain_state_dict`). One that bears no marks keeps its names,
    which may be ours. options_of: what the tensors, under our names, tell about the options of `build_model`. Raises
    OtherNetwork for a kind whose network is another one.
    """
    state = plain_state_dict(checkpoint)
    names = "\n".join(state)
    for known in (*formats, *OTHERS):
        if not all(re.search(mark, names, re.MULTILINE) for mark in known.marks):
            continue
        if difference := known.differs(state, checkpoint):
            raise OtherNetwork(f"is {known.kind}, {difference}; nothing of it is loaded")
        left_out = [name for name in state if re.match(known.unused, name)]
        tensors = {_renamed(name, known.names): value for name, value in state.items() if name not in set(left_out)}
        return Translated(tensors, known.kind, left_out, options_of(tensors))
    return Translated(state, NAMES_OF_OURS, options=options_of(state))


def _renamed(name: str, names: Sequence[tuple[str, str]]) -> str:
    for theirs, ours in names:
        name = re.sub(theirs, ours, name)
    return name


def resnet_of(state: Mapping[str, Tensor], prefix: str) -> str | None:
    """The ResNet whose tensors begin with `prefix`, such as "resnet50"; None where it is none of torchvision's."""
    found = re.findall(rf"^{re.escape(prefix)}layer([1-4])\.(\d+)\.conv1\.weight$", "\n".join(state), re.MULTILINE)
    blocks = tuple(len([stage for stage, _ in found if stage == wanted]) for wanted in "1234")
    return RESNETS.get((blocks, f"{prefix}layer1.0.conv3.weight" in state))


def network_options(state: Mapping[str, Tensor], classifier: str, encoder: str) -> dict[str, object]:
    """`num_classes` and `backbone` of a network, as far as its tensors tell.

    classifier: the name of the layer that gives the logits. encoder: what the names of the ResNet begin with.
    """
    weight, backbone = state.get(f"{classifier}.weight"), resnet_of(state, encoder)
    classes = {} if weight is None else {"num_classes": weight.shape[0]}
    return classes | ({"backbone": backbone} if backbone else {})


def account(kind: str, taken: int, left_out: Sequence[str], new: Sequence[str]) -> str:
    """What became of the tensors of a file, in words. new: names of the network's own that start anew."""
    return f"{kind}: {taken} tensors taken, {counted(left_out)} left out, {counted(new)} newly initialised"


def counted(names: Sequence[str]) -> str:
    """How many they are, and the first of them."""
    if not names:
        return "none"
    return f"{len(names)} ({', '.join(names[:SHOWN_NAMES])}{', ...' if len(names) > SHOWN_NAMES else ''})"
