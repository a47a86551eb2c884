"""The weights that a new run begins with: those of a file, of ImageNet, or random ones."""

from argparse import Namespace
from collections.abc import Callable

from torch import Tensor, nn

from common.nets.imagenet import load_imagenet
from common.record.checkpoint import load_weights


def initial_weights(
    args: Namespace,
    model: nn.Module,
    from_reference: Callable[[dict], dict[str, Tensor]],
    encoder: nn.Module | None,
    imagenet_file: Callable | None,
) -> str:
    """Load them into the network; returns a line that says which they are.

    Those of --load_from, without the classifiers' for --new_head; else the ImageNet weights for `encoder` in the file
    that `imagenet_file` finds. Raises InputError for a file that does not fit.
    """
    if args.load_from:
        skip = model.classifiers if args.new_head else ()
        return f"initial weights: {load_weights(args.load_from, model, from_reference, skip)}"
    if imagenet_file and (file := imagenet_file(args.backbone, args.pretrained)):
        return load_imagenet(encoder, file)
    return "initial weights: random"
