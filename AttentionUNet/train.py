"""Train or evaluate Attention U-Net on ISIC 2018 (Oktay et al., Attention U-Net, arXiv:1804.03999)."""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from AttentionUNet import presets
from common.args import parse_args

if __name__ == "__main__":  # before torch is imported, so that --help and a wrong flag are answered at once
    ARGS = parse_args(presets, description=__doc__)

from AttentionUNet.backup import copy_run
from AttentionUNet.data import build_datasets
from AttentionUNet.model import AttentionUNet, build_model, training_loss
from AttentionUNet.weights import from_reference
from common.errors import InputError
from common.run import Run
from common.start import launch
from common.step.schedule import Schedule, linear_tail, set_lr


def build(args, run: Run):
    """The data sets and the network, with whatever can be wrong with them found before anything is trained."""
    data = build_datasets(args)
    if args.evaluate:
        model = run.trained(build_model, from_reference, **network_options(args, data))
        check_size(args, model)
        return data.with_network(model)
    run.plan(data.train, (args.image_size, args.image_size))
    learning_rate_schedule(args, run.length.steps_per_epoch)  # InputError for a rate that cannot be
    model = build_model(**network_options(args, data))
    run.load(model, from_reference)
    return data.with_network(model)


def main(args, run: Run, data, model: AttentionUNet) -> dict:
    """The whole run; returns what is written to result.json."""
    if args.evaluate:
        return run.evaluate_checkpoint(model, data.val)
    run.prepare(model)
    # Adam with --lr, --beta1, --beta2 and --weight_decay, unless --optimizer is another one
    optimizer = run.optimizer(model.parameters())
    lr_factor = learning_rate_schedule(args, run.length.steps_per_epoch)

    for step, images, target in run.steps(data.train):
        set_lr(optimizer, lr_factor(step))
        with run.autocast():
            outputs = run.network(images)  # [B, 3, S, S] -> a tuple of logits [B, 1, S, S]
            losses = training_loss(outputs, target, criterion=run.criterion)
        run.step(losses)
        if run.due(step, args.eval_every_epochs * run.length.steps_per_epoch):
            run.evaluate(data.val)

    if not run.is_complete:  # the split test is evaluated once, at the end of the schedule
        return run.finish()
    tested = run.evaluate_best(build_model(**network_options(args, data)), data.test, "test") if args.validate else {}
    result = run.finish(tested)
    if run.world.is_main and "output_dir" not in args.given:
        copy_run(args.output_dir, args.preset)
    return result


def network_options(args, data) -> dict:
    """What `build_model` takes; checkpoints of the reference do not say which of the networks they are of."""
    num_classes = data.used[0].info.num_classes
    return {
        "num_classes": num_classes,
        **{name: getattr(args, name) for name in ("arch", "t", "base_channels", "image_size")},
    }


def check_size(args, model: AttentionUNet) -> None:
    """Raise InputError for pictures of another size than the network was trained on, unless the size is given."""
    trained_size = model.options["image_size"]
    if "image_size" not in args.given and trained_size != args.image_size:
        raise InputError(
            f"{args.checkpoint} was trained on {trained_size} pixels, and pictures of {args.image_size} would be "
            "evaluated; say with --image_size which you want"
        )
    model.eval().check_shape((args.eval_batch_size, 3, args.image_size, args.image_size))


def learning_rate_schedule(args, steps_per_epoch: int) -> Schedule:
    """step -> factor: 1, and a line down to 0 over the last epochs.

    Without --decay_epochs: over the last 70, or the later half of a training that is not longer than that.
    """
    epochs, decay_epochs = args.epochs, args.decay_epochs
    if decay_epochs is None:
        decay_epochs = presets.DECAY_EPOCHS if epochs > presets.DECAY_EPOCHS else epochs // 2
    if decay_epochs > epochs:
        raise InputError(
            f"--decay_epochs {decay_epochs} are more than --epochs {epochs}; the rate falls in the last epochs of the "
            "training: give fewer, or leave the flag out"
        )
    return linear_tail(epochs, steps_per_epoch, decay_epochs)


if __name__ == "__main__":
    launch(main, build, ARGS, presets)
