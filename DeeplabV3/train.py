"""Train or evaluate DeepLabV3 on Cityscapes (Chen et al., Rethinking Atrous Convolution, arXiv:1706.05587)."""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.args import parse_args
from DeeplabV3 import presets

if __name__ == "__main__":  # before torch is imported, so that --help and a wrong flag are answered at once
    ARGS = parse_args(presets, description=__doc__)

from common.errors import InputError
from common.run import Run
from common.start import launch
from common.step.schedule import Schedule, poly, set_lr
from DeeplabV3.data import build_datasets
from DeeplabV3.model import DeepLabV3, build_model, training_loss
from DeeplabV3.weights import from_reference, imagenet_file


def build(args, run: Run):
    """The data sets and the network, with whatever can be wrong with them found before anything is trained."""
    args.backbone = chosen_backbone(args)
    data = build_datasets(args)
    options = {"backbone": args.backbone, "base_channels": args.base_channels}
    if args.evaluate:
        model = run.trained(build_model, from_reference, num_classes=data.val.info.num_classes, **options)
        return data.with_network(model)
    run.plan(data.train, args.crop_size)
    learning_rate_schedule(args, run.length.schedule_steps)  # InputError for a rate that cannot be
    model = build_model(data.train.info.num_classes, **options)
    run.load(model, from_reference, model.backbone, imagenet_file)
    return data.with_network(model)


def main(args, run: Run, data, model: DeepLabV3) -> dict:
    """The whole run; returns what is written to result.json."""
    if args.evaluate:
        return run.evaluate_checkpoint(model, data.val)
    run.prepare(model)
    # SGD with --lr, --momentum and --weight_decay, unless --optimizer is another one
    optimizer = run.optimizer(model.parameters())
    lr_factor = learning_rate_schedule(args, run.length.schedule_steps)

    for step, images, target in run.steps(data.train):
        set_lr(optimizer, lr_factor(step))
        with run.autocast():
            outputs = run.network(images)  # [B, 3, H, W] -> main and auxiliary logits [B, 19, H/8, W/8]
            losses = training_loss(outputs, target, args.avg_non_ignore, criterion=run.criterion)
        run.step(losses)
        if run.due(step, args.eval_every_steps):
            run.evaluate(data.val)
    return run.finish()


def learning_rate_schedule(args, schedule_steps: int) -> Schedule:
    """step -> factor: from --lr down to --min_lr. InputError for a rate that would rise."""
    lr, min_lr = args.lr, args.min_lr
    if min_lr > lr:
        raise InputError(f"--lr {lr} is below --min_lr {min_lr}, to which it is to fall; lower --min_lr, or raise --lr")
    return poly(schedule_steps, power=0.9, min_factor=min_lr / lr if lr else 0.0)


def chosen_backbone(args) -> str:
    """The encoder: --backbone, or the one that --arch names."""
    depth = args.arch.partition("_r")[2]
    named = f"resnet{depth}" if depth else args.backbone
    if "backbone" in args.given and named != args.backbone:
        raise InputError(f"--arch {args.arch} and --backbone {args.backbone} name two backbones; give one of the flags")
    return named


if __name__ == "__main__":
    launch(main, build, ARGS, presets)
