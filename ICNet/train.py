"""Train or evaluate ICNet on Cityscapes (Zhao et al., ICNet for Real-Time Semantic Segmentation, arXiv:1704.08545)."""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.args import parse_args
from ICNet import presets

if __name__ == "__main__":  # before torch is imported, so that --help and a wrong flag are answered at once
    ARGS = parse_args(presets, description=__doc__)

from common.data.order import Length
from common.run import Run
from common.start import launch
from common.step.schedule import Schedule, cosine_epochs, poly, set_lr
from ICNet.data import build_datasets
from ICNet.model import ICNet, build_model, training_loss
from ICNet.weights import from_reference, imagenet_file


def build(args, run: Run):
    """The data sets and the network, with whatever can be wrong with them found before anything is trained."""
    data = build_datasets(args)
    options = {"backbone": args.backbone, "base_channels": args.base_channels}
    if args.evaluate:
        model = run.trained(build_model, from_reference, num_classes=data.val.info.num_classes, **options)
        return data.with_network(model)
    run.plan(data.train, args.crop_size)
    model = build_model(data.train.info.num_classes, **options)
    run.load(model, from_reference, model.backbone, imagenet_file)
    return data.with_network(model)


def main(args, run: Run, data, model: ICNet) -> dict:
    """The whole run; returns what is written to result.json."""
    if args.evaluate:
        return run.evaluate_checkpoint(model, data.val)
    run.prepare(model)
    groups = parameter_groups(model, args.lr, args.head_lr_factor)
    optimizer = run.optimizer(groups)  # SGD with --momentum and --weight_decay, unless --optimizer is another one
    lr_factor = learning_rate_schedule(args, run.length.steps_per_epoch)

    for step, images, target in run.steps(data.train):
        set_lr(optimizer, lr_factor(step))
        with run.autocast():
            outputs = run.network(images)  # [B, 3, H, W] -> logits [B, 19, H/4, W/4], [.., H/8, ..], [.., H/16, ..]
            losses = training_loss(outputs, target, args.label_resize, criterion=run.criterion)
        run.step(losses)
        if run.due(step, steps_between_evaluations(args, step, run.length)):
            run.evaluate(data.val)
    return run.finish()


def parameter_groups(model: ICNet, lr: float, head_lr_factor: float) -> list[dict]:
    """The backbone, and all other layers with a rate of their own."""
    backbone = list(model.backbone.parameters())
    known = {id(parameter) for parameter in backbone}
    heads = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return [{"params": backbone, "lr": lr}, {"params": heads, "lr": lr * head_lr_factor}]


def learning_rate_schedule(args, steps_per_epoch: int) -> Schedule:
    """step -> factor: the schedule of the ModelZoo runs, or the one of liminn/ICNet-pytorch."""
    if args.schedule == "cosine_epoch":
        return cosine_epochs(args.epochs, steps_per_epoch, args.warmup_epochs)
    decay = poly(args.epochs * steps_per_epoch)
    return lambda step: decay(step + 1)  # the original advances the schedule before each step


def steps_between_evaluations(args, step: int, length: Length) -> int:
    """Every few epochs at first, after each one towards the end."""
    late = step >= args.eval_each_epoch_from * length.schedule_steps
    return length.steps_per_epoch * (1 if late else args.eval_every_epochs)


if __name__ == "__main__":
    launch(main, build, ARGS, presets)
