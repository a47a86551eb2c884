"""Train or evaluate DynamicUNet, a U-Net grown on a ResNet encoder, on PASCAL VOC 2012."""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.args import parse_args
from DynamicUNet import presets

if __name__ == "__main__":  # before torch is imported, so that --help and a wrong flag are answered at once
    ARGS = parse_args(presets, description=__doc__)

from common.run import Run
from common.start import launch
from common.step.schedule import Schedule, set_lr
from DynamicUNet.data import build_datasets
from DynamicUNet.model import DynamicUNet, build_model, training_loss
from DynamicUNet.weights import from_reference, imagenet_file

POWER = 0.9  # of the falling learning rate


def build(args, run: Run):
    """The data sets and the network, with whatever can be wrong with them found before anything is trained."""
    data = build_datasets(args)
    options = {"backbone": args.backbone, "base_channels": args.base_channels}
    if args.evaluate:
        model = run.trained(build_model, from_reference, num_classes=data.val.info.num_classes, **options)
        return data.with_network(model)
    run.plan(data.train, args.crop_size)
    model = build_model(data.train.info.num_classes, **options)
    run.load(model, from_reference, model.encoder, imagenet_file)
    return data.with_network(model)


def main(args, run: Run, data, model: DynamicUNet) -> dict:
    """The whole run; returns what is written to result.json."""
    if args.evaluate:
        return run.evaluate_checkpoint(model, data.val)
    run.prepare(model)
    groups = parameter_groups(model, args, run.world.size)
    optimizer = run.optimizer(groups)  # SGD with --momentum and --weight_decay, unless --optimizer is another one
    lr_factor = learning_rate_schedule(run.length.schedule_steps, args.warmup_steps, args.warmup_factor)

    for step, images, target in run.steps(data.train):
        set_lr(optimizer, lr_factor(step))
        with run.autocast():
            outputs = run.network(images)  # [B, 3, H, W] -> logits ([B, 21, H, W],)
            losses = training_loss(outputs, target, criterion=run.criterion)
        run.step(losses)
        if run.due(step, args.eval_every_epochs * run.length.steps_per_epoch):
            run.evaluate(data.val)
    return run.finish()


def parameter_groups(model: DynamicUNet, args, world_size: int) -> list[dict]:
    """The encoder, and the decoder grown on it, each with a rate of its own; --scale_lr: times the devices."""
    lr = args.lr * (world_size if args.scale_lr else 1)
    encoder = list(model.encoder.parameters())
    known = {id(parameter) for parameter in encoder}
    heads = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return [{"params": encoder, "lr": lr * args.encoder_lr_factor}, {"params": heads, "lr": lr * args.head_lr_factor}]


def learning_rate_schedule(total_steps: int, warmup_steps: int, warmup_factor: float) -> Schedule:
    """0-based step -> factor: in a line from `warmup_factor` to 1, then poly over the steps after the warm-up.

    As in the original, steps are counted from 1: the last one has the factor 0.
    """

    def factor(step: float) -> float:
        done = min(step + 1, total_steps)
        if done < warmup_steps:
            return warmup_factor + (1 - warmup_factor) * done / warmup_steps
        return (1 - (done - warmup_steps) / max(1, total_steps - warmup_steps)) ** POWER

    return factor


if __name__ == "__main__":
    launch(main, build, ARGS, presets)
