"""Train or evaluate BiSeNetV1 on Cityscapes (Yu et al., BiSeNet: Bilateral Segmentation Network, arXiv:1808.00897)."""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from BiSeNetv1 import presets
from common.args import parse_args

if __name__ == "__main__":  # before torch is imported, so that --help and a wrong flag are answered at once
    ARGS = parse_args(presets, description=__doc__)

from BiSeNetv1.data import build_datasets
from BiSeNetv1.model import BiSeNetV1, build_model, training_loss
from BiSeNetv1.weights import from_reference, imagenet_file
from common.data.order import Length
from common.errors import InputError
from common.run import Run
from common.start import launch
from common.step.schedule import Schedule, poly, set_lr


def build(args, run: Run):
    """The data sets and the network, with whatever can be wrong with them found before anything is trained."""
    data = build_datasets(args)
    options = {"backbone": args.backbone, "base_channels": args.base_channels}
    if args.evaluate:
        model = run.trained(build_model, from_reference, num_classes=data.val.info.num_classes, **options)
        return data.with_network(model)
    run.plan(data.train, args.crop_size)
    learning_rate_schedule(args, run.length)  # InputError for a rate that cannot be
    model = build_model(data.train.info.num_classes, **options)
    run.load(model, from_reference, model.context_path.backbone, imagenet_file)
    return data.with_network(model)


def main(args, run: Run, data, model: BiSeNetV1) -> dict:
    """The whole run; returns what is written to result.json."""
    if args.evaluate:
        return run.evaluate_checkpoint(model, data.val)
    run.prepare(model)
    # SGD with --lr, --momentum and --weight_decay, unless --optimizer is another one
    optimizer = run.optimizer(model.parameters())
    lr_factor = learning_rate_schedule(args, run.length)

    for step, images, target in run.steps(data.train):
        set_lr(optimizer, lr_factor(step))
        with run.autocast():
            outputs = run.network(images)  # [B, 3, H, W] -> logits [B, 19, H/8, W/8], [.., H/8, ..], [.., H/16, ..]
            losses = training_loss(outputs, target, args.avg_non_ignore, criterion=run.criterion)
        run.step(losses)
        if run.due(step, args.eval_every_steps):
            run.evaluate(data.val)
    return run.finish()


def learning_rate_schedule(args, length: Length) -> Schedule:
    """step -> factor of --lr: poly down to --min_lr, times a line from --warmup_factor to 1 at first.

    InputError for a rate that would rise.
    """
    lr, min_lr = args.lr, args.min_lr
    if min_lr > lr:
        raise InputError(f"--min_lr {min_lr} is above --lr {lr}: the rate would rise; lower --min_lr")
    in_steps = args.warmup_epochs is None
    warmup_steps = args.warmup_steps if in_steps else args.warmup_epochs * length.steps_per_epoch
    return poly(length.schedule_steps, 0.9, min_lr / lr if lr else 0.0, warmup_steps, args.warmup_factor)


if __name__ == "__main__":
    launch(main, build, ARGS, presets)
