"""Going on where a run was: the newest of its checkpoints that is whole, and what is put back from it."""

import inspect
import re
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from common.errors import InputError
from common.record.checkpoint import Progress, check_exists, check_fit, is_training_state, read
from common.record.tensors import Unusable
from common.step.amp import Amp

OLDER = re.compile(r"last-(\d+)\.pt")  # last.pt of an earlier save, with the number of its step


def older_checkpoints(folder: Path) -> dict[int, Path]:
    """What a folder keeps besides last.pt, by the step it is of, the newest first."""
    found = {int(match[1]): path for path in folder.glob("last-*.pt") if (match := OLDER.fullmatch(path.name))}
    return dict(sorted(found.items(), reverse=True))


def find_resume(resume: str, output_dir: str | Path) -> list[Path]:
    """The files that --resume means, the first that is whole counts; none for a run that starts anew.

    'auto': last.pt of the run in `output_dir`, and what it keeps besides. Raises InputError where a file is named and
    is not there.
    """
    if resume == "auto":
        folder = Path(output_dir) / "checkpoints"
        last = folder / "last.pt"
        return [*([last] if last.exists() or last.is_symlink() else []), *older_checkpoints(folder).values()]
    return [check_exists(resume, "last.pt")] if resume else []


def continues_run(checkpoint: Path | None, output_dir: str | Path) -> bool:
    """Whether a run resumed from `checkpoint` goes on in the folder of the run that wrote it."""
    # the folder as it is named: checkpoints/ may be a link to a larger disk
    return checkpoint is not None and checkpoint.absolute().parent.parent.resolve() == Path(output_dir).resolve()


class Resumable(NamedTuple):
    """A checkpoint that a run continues from."""

    path: Path
    content: dict
    passed_over: list[str]  # a line about each newer one that is not whole


def read_newest(paths: list[Path], model: nn.Module, images_per_step: int) -> Resumable:
    """The first of the files that is whole, for training `model`.

    Raises InputError where none is, and for weights alone, for another model's, and for one whose steps were of another
    size: which images have been seen, and where the schedule stands, is counted in steps.
    """
    passed_over: list[str] = []
    for path in paths:
        try:
            content = read(path)
        except Unusable as error:
            if len(paths) == 1:
                raise Unusable(f"{error}{_advice(path)}") from error
            passed_over.append(f"passed over: {error}")
        else:
            _check_resumable(content, path, model, images_per_step)
            return Resumable(path, content, passed_over)
    raise Unusable(
        f"none of the {len(paths)} checkpoints in {paths[0].parent} is whole ({passed_over[0].partition(': ')[2]}); "
        "start anew without --resume: what is there is moved aside"
    )


def _advice(path: Path) -> str:
    """What else there is, for who has named a file that is not whole."""
    if others := [other.name for other in older_checkpoints(path.parent).values() if other != path]:
        return f" ({', '.join(others)} beside it: --resume auto takes the newest that is whole)"
    return ""


def _options(content: dict, model: nn.Module) -> dict:
    """Those of the network in a checkpoint; one that an earlier version did not know had what is its default now."""
    if content["model_class"] != type(model).__name__:
        return content["options"]
    known = inspect.signature(type(model)).parameters
    return {name: known[name].default for name in model.options if name in known} | content["options"]


def _check_resumable(content: dict, path: Path, model: nn.Module, images_per_step: int) -> None:
    if not is_training_state(content):
        raise InputError(
            f"{path} holds weights and no training state; continue from a checkpoints/last.pt, or start a new run "
            "from these weights with --load_from"
        )
    made, wanted = (content["model_class"], _options(content, model)), (type(model).__name__, model.options)
    if made != wanted:
        made, wanted = (f"{name} {options}" for name, options in (made, wanted))
        raise InputError(
            f"{path} is of a run of {made}, this is one of {wanted}; continue with the flags of that run, which its "
            "config.json has"
        )
    for weights in (content, content.get("ema")):
        if weights:
            check_fit(content, weights["model"], path, model)
    if content["images_per_step"] != images_per_step:
        raise InputError(
            f"{path} is of a run in steps of {content['images_per_step']} images, this is one in steps of "
            f"{images_per_step}; continue with a --device_batch_size, number of devices and --accumulate of that "
            "product, or start from its weights with --load_from"
        )


def resume(content: dict, amp: Amp, continues: bool = True) -> Progress:
    """Put back what `read_newest` read; returns how far that run had come.

    continues: whether this run goes on in the folder of that one; what was best is there.

    The optimizer keeps the rates and the implementation (fused or not) that it was made with: what the command line
    says holds, and a run can move to a device of another kind. The state of an optimizer of another kind, which
    --resume_anyway lets through, begins anew. Raises InputError for that of other parameters.
    """
    optimizer = amp.optimizer
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    _check_optimizer(content["optimizer"], optimizer)
    if _is_of_adam(content["optimizer"]["state"]) != ("betas" in optimizer.defaults):
        content["optimizer"]["state"] = {}
    amp.load_model_state(content["model"])
    for saved, values in zip(content["optimizer"]["param_groups"], own, strict=True):
        saved["fused"] = values.get("fused")  # decides on which device Adam's numbers of steps have to be
    optimizer.load_state_dict(content["optimizer"])
    for group, values in zip(optimizer.param_groups, own, strict=True):
        parameters = group["params"]
        group.clear()
        group.update(values, params=parameters)
    amp.load_state_dict(content["amp"])
    if amp.average:
        amp.average.load_state_dict(content.get("ema"))
    # files of earlier versions lack some
    progress = Progress(**{name: content[name] for name in Progress._fields if name in content})
    return progress if continues else progress._replace(best=None, evaluations_since_best=0)


def _is_of_adam(state: dict[int, dict]) -> bool:
    """Whether a state of an optimizer has the means of Adam or AdamW, which are alike; else it is SGD's, or empty."""
    return any("exp_avg" in values for values in state.values())


def _check_optimizer(saved: dict, optimizer: Optimizer) -> None:
    """Raise InputError unless the state is of as many parameter groups, of as many tensors, of the same sizes."""
    advice = "continue with the flags of that run, or start from its weights with --load_from"
    both = saved["param_groups"], optimizer.param_groups
    theirs, ours = ([len(group["params"]) for group in groups] for groups in both)
    if theirs != ours:
        raise InputError(
            f"the checkpoint has the state of an optimizer with parameter groups of {theirs} tensors, and this run one "
            f"of {ours}; {advice}"
        )
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        for name, value in saved["state"].get(number, {}).items():
            if isinstance(value, Tensor) and value.dim() and value.numel() != parameter.numel():
                raise InputError(
                    f"the checkpoint has {name} {list(value.shape)} for a weight of {list(parameter.shape)}, number "
                    f"{number} of its optimizer; {advice}"
                )
