"""Trained weights on a data set: of a checkpoint that is evaluated alone, and the best of a run after its end."""

import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from common.data.pictures import LabelledPictures
from common.device.placement import place, share_state
from common.device.world import check_same, synchronize
from common.errors import InputError
from common.record.checkpoint import check_exists, load_model, load_weights
from common.record.course import Course
from common.record.log import RunLog

if TYPE_CHECKING:
    from common.run import Run


def check_evaluation(checkpoint: str, output_dir: str | Path) -> None:
    """Raise InputError unless there is a file to --evaluate, outside of the run that is moved aside for the result."""
    if not checkpoint:
        raise InputError("--evaluate is given without --checkpoint; name the file of weights to evaluate")
    check_exists(checkpoint)
    if Path(output_dir).resolve() in Path(checkpoint).resolve().parents:
        raise InputError(
            f"--checkpoint {checkpoint} is in --output_dir {output_dir}, whose run would be moved aside; "
            "give another --output_dir for the evaluation"
        )


def load_trained(
    args: Namespace, build_model: Callable, from_reference: Callable, options: dict, say: Callable[[str], object]
) -> nn.Module:
    """See `Run.trained`. say: takes what the file is, and which options of the command line are not the file's."""
    model = load_model(args.checkpoint, build_model, from_reference, options, say)
    for name in args.given:
        if name in options and model.options.get(name, options[name]) != options[name]:
            say(f"--{name} {options[name]} is not used: {args.checkpoint} has {model.options[name]}")
    return model


def evaluate_checkpoint(run: "Run", model: nn.Module, dataset: LabelledPictures) -> dict:
    """See `Run.evaluate_checkpoint`."""
    args, world = run.args, run.world
    check_same(world, args, 0, dataset)
    course = Course(images_per_step=args.eval_batch_size * world.size, started=run.stop.since)
    title = run.title._replace(purpose="eval")
    run.log = log = RunLog(args.output_dir, world, course, vars(args) | model.options, title)
    log.say(*run.notes)
    place(model, world)
    started = time.perf_counter()
    scored = run.scored(model, dataset, run.submission)
    synchronize(world)
    log.rate(len(dataset), time.perf_counter() - started)
    if dataset.has_labels:
        log.eval(scored, scored.details())
        run.evaluator.show(log, model, dataset, scored)
    if run.submission:
        log.say(run.submission.note)
    return log.finish(details=scored.details())


def evaluate_best(run: "Run", model: nn.Module, dataset: LabelledPictures | None, name: str) -> dict[str, float]:
    """See `Run.evaluate_best`."""
    if dataset is None or run.log.choice.best is None or run.saver.is_unsaved("best.pt"):
        reason = f"there is no {name}/" if dataset is None else "no weights are best"
        run.log.say(f"the split {name} is not evaluated: {reason}")
        return {}
    place(model, run.world)
    if run.world.is_main:
        load_weights(Path(run.args.output_dir, "checkpoints", "best.pt"), model)
    share_state(model, run.world)
    scores = run.scored(model, dataset).scores()
    shown = "  ".join(f"{key} {value:.4f}" for key, value in scores.items())
    run.log.say(f"best weights on the split {name}:  {shown}")
    return {f"{name}_{key}": value for key, value in scores.items()}
