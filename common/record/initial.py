"""The weights that a new run begins with: those of a file, of ImageNet, or random ones."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from common.errors import InputError
from common.nets.backbone import PUBLISHED_CHANNELS
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
    if imagenet_file:
        _check_channels(args)
    if imagenet_file and (file := imagenet_file(args.backbone, args.pretrained)):
        return load_imagenet(encoder, file)
    return f"initial weights: random{_kept_random(args, imagenet_file is not None)}"


def _check_channels(args: Namespace) -> None:
    """Raise InputError where --pretrained would look for a published file that cannot fit, or download it."""
    channels = getattr(args, "base_channels", PUBLISHED_CHANNELS)
    if channels != PUBLISHED_CHANNELS and args.pretrained != "none" and not Path(args.pretrained).is_file():
        raise InputError(
            f"--base_channels {channels} with --pretrained {args.pretrained}: ImageNet weights are published for "
            f"{PUBLISHED_CHANNELS} channels; train from scratch with --pretrained none, or name a file of a network as "
            "narrow"
        )


def _kept_random(args: Namespace, has_imagenet: bool) -> str:
    """What will never learn although nothing has trained it yet, for the end of the line; nearly always ''."""
    give = "--load_from or --pretrained" if has_imagenet else "--load_from"
    if args.freeze != "none":
        kept = {"backbone": "the encoder", "bn": "the statistics of batch norms"}
        what = " and ".join(text for part, text in kept.items() if part in args.freeze.split(","))
        return (
            f"; warning: --freeze {args.freeze} keeps {what} so for the whole run; give {give}, or leave --freeze out"
        )
    if getattr(args, "encoder_lr_factor", 1) == 0:
        return (
            f"; warning: --encoder_lr_factor 0 keeps the encoder so for the whole run; give {give}, or a factor above 0"
        )
    return ""
