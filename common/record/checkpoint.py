"""Files of weights and of training state: written atomically, read with weights_only=True."""

import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.errors import InputError
from common.record.files import write_atomically
from common.step.amp import Amp

FORMAT = "segmentation-zoo-1"


class Progress(NamedTuple):
    """How far a run has come."""

    steps_done: int
    best: float | None  # score so far
    images_per_step: int  # of all devices


def save(output_dir: str | Path, amp: Amp, progress: Progress, is_best: bool = False) -> None:
    """Write checkpoints/last.pt (everything a run needs to continue) and, when `is_best`, best.pt (weights).

    The main process writes; the others return at once. Weights are float32 at every opt level, and all tensors are on
    the CPU: torch_npu writes those of an NPU in a form of its own, which weights_only=True may refuse. `model.options`
    and the class name of the model let a file be recognised.
    """
    if not amp.world.is_main:
        return
    state = {
        "format": FORMAT,
        "model_class": type(amp.model).__name__,
        "options": amp.model.options,
        "data": getattr(amp.model, "data_info", None),
        "model": _on_cpu(amp.model_state()),
        **progress._asdict(),
    }
    folder = Path(output_dir) / "checkpoints"
    if is_best:
        write_atomically(folder / "best.pt", lambda file: torch.save(state, file))
    state |= {"optimizer": _on_cpu(amp.optimizer.state_dict()), "amp": _on_cpu(amp.state_dict())}
    write_atomically(folder / "last.pt", lambda file: torch.save(state, file))


def _on_cpu(value):
    """The same nested dictionaries and lists with every tensor on the CPU."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value


def load_tensors(path: Path, source):
    """What torch.load makes of `source` (a file or a file object), on the CPU, without running code of the file.

    Raises InputError, naming `path`, for a file that is damaged, cut off, or holds other things than tensors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol, for files that are refused below anyway
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        if "Weights only load failed" in str(error) or "Unsupported" in str(error):
            reason = "holds objects other than tensors, or is no file of weights"
        else:
            reason = f"is damaged, cut off ({path.stat().st_size} bytes) or no file of weights"
        raise InputError(f"{path} {reason}; give another file") from error


def read(path: str | Path) -> dict:
    """The content of a checkpoint file, on the CPU.

    Raises InputError for one that is missing, damaged or not a checkpoint.
    """
    path = check_exists(path)
    content = load_tensors(path, path)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path} holds a {type(content).__name__} and no weights; give a checkpoint file")
    return content


def check_exists(path: str | Path) -> Path:
    """The path of a checkpoint; raises InputError where there is no file."""
    if not Path(path).is_file():
        raise InputError(f"no checkpoint {path}; give a file that training wrote (checkpoints/last.pt or best.pt)")
    return Path(path)


def find_resume(resume: str, output_dir: str | Path) -> Path | None:
    """The file that --resume means: 'auto' is the last checkpoint of the run in `output_dir`, if there is one.

    Raises InputError where a file is named and is not there.
    """
    if resume == "auto":
        last = Path(output_dir) / "checkpoints" / "last.pt"
        return last if last.exists() else None
    return check_exists(resume) if resume else None


def continues_run(checkpoint: Path | None, output_dir: str | Path) -> bool:
    """Whether a run resumed from `checkpoint` goes on in the folder of the run that wrote it."""
    # the folder as it is named: checkpoints/ may be a link to a larger disk
    return checkpoint is not None and checkpoint.absolute().parent.parent.resolve() == Path(output_dir).resolve()


def read_resumable(path: str | Path, model: nn.Module, images_per_step: int) -> dict:
    """A checkpoint that training `model` can continue from.

    Raises InputError for weights alone, for another model's, and for one whose steps were of another size: which images
    have been seen, and where the schedule stands, is counted in steps.
    """
    content = read(path)
    if content.get("format") != FORMAT or "optimizer" not in content:
        raise InputError(
            f"{path} holds weights and no training state; continue from a checkpoints/last.pt, or start a new run "
            "from these weights with --load_from"
        )
    made, wanted = (
        f"{content['model_class']} {content['options']}",
        f"{type(model).__name__} {model.options}",
    )
    if made != wanted:
        raise InputError(f"{path} is of a run of {made}, this is one of {wanted}; continue with the same model")
    if content["images_per_step"] != images_per_step:
        raise InputError(
            f"{path} is of a run in steps of {content['images_per_step']} images, this is one in steps of "
            f"{images_per_step}; continue with the same --device_batch_size and number of devices, or start from its "
            "weights with --load_from"
        )
    return content


def resume(content: dict, amp: Amp) -> Progress:
    """Put back what `read_resumable` read; returns how far that run had come.

    The optimizer keeps the rates and the implementation (fused or not) that it was made with: what the command line
    says holds, and a run can move to a device of another kind.
    """
    optimizer = amp.optimizer
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        amp.load_model_state(content["model"])
        for saved, values in zip(content["optimizer"]["param_groups"], own, strict=False):
            saved["fused"] = values.get("fused")  # decides on which device Adam's numbers of steps have to be
        optimizer.load_state_dict(content["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"the checkpoint was made by a run of other options ({content['options']}): "
            f"{' '.join(str(error).split())[:200]}; resume with the options of that run"
        ) from error
    for group, values in zip(optimizer.param_groups, own, strict=True):
        parameters = group["params"]
        group.clear()
        group.update(values, params=parameters)
    amp.load_state_dict(content["amp"])
    return Progress(content["steps_done"], content["best"], content["images_per_step"])


def load_weights(
    path: str | Path,
    model: nn.Module,
    from_reference: Callable[[dict], dict[str, Tensor]] | None = None,
    skip: tuple[str, ...] = (),
) -> None:
    """Read the file, and load its weights: see `_take_weights`."""
    _take_weights(read(path), path, model, from_reference, skip)


def load_initial(args: Namespace, model: nn.Module, from_reference: Callable[[dict], dict[str, Tensor]]) -> str:
    """The weights of --load_from, without those of the classifiers for --new_head; returns a line that says so.

    Raises InputError for a file that does not fit.
    """
    skip = model.classifiers if args.new_head else ()
    load_weights(args.load_from, model, from_reference, skip)
    new = [name for name in model.state_dict() if name.startswith(skip)] if skip else []
    return f"initial weights: {args.load_from}" + (f"; new and random: {', '.join(new)}" if new else "")


def _take_weights(
    content: dict, path: str | Path, model: nn.Module, from_reference, skip: tuple[str, ...] = ()
) -> None:
    """Load the weights of one of our checkpoints, or of the reference's through the folder's `from_reference`.

    Parameters whose name starts with an entry of `skip` are left as they are (a new classifier, for example).
    Raises InputError that counts and names missing and unexpected keys, and shapes that do not fit.
    """
    if content.get("format") == FORMAT:
        state = content["model"]
    else:
        state = from_reference(content) if from_reference else content
    own = model.state_dict()
    state = {name: value for name, value in state.items() if not name.startswith(skip or ("\0",))}
    wanted = {name for name in own if not name.startswith(skip or ("\0",))}
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # old files lack them
    problems = {
        "missing": sorted(wanted - counters - set(state)),
        "unexpected": sorted(set(state) - wanted),
        "of another shape": sorted(
            name
            for name in wanted & set(state)
            if not isinstance(state[name], Tensor) or state[name].shape != own[name].shape
        ),
    }
    if any(problems.values()):
        found = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            for kind, names in problems.items()
            if names
        )
        made = f"a {content['model_class']} {content['options']}" if content.get("format") == FORMAT else "other keys"
        raise InputError(
            f"{path} ({made}) does not fit {type(model).__name__} {getattr(model, 'options', {})}: {found}; "
            "give a checkpoint of this model, with the same options"
        )
    model.load_state_dict(state, strict=False)


def load_model(path: str | Path, build_model: Callable, from_reference: Callable, otherwise: dict) -> nn.Module:
    """The network of a checkpoint, with its weights, on the CPU.

    Our files say which arguments `build_model` takes; `otherwise` holds them for files of the reference. Raises
    InputError for a file that is not of this folder's network.
    """
    content = read(path)
    ours = content.get("format") == FORMAT
    options = content["options"] if ours else otherwise
    try:
        model = build_model(**options)
    except (TypeError, ValueError) as error:
        made = f"{content['model_class']} {options}" if ours else f"a network with {options}"
        raise InputError(
            f"{path} is a checkpoint of {made}, which this folder does not build; use the folder of that network"
        ) from error
    _take_weights(content, path, model, from_reference)
    model.data_info = content.get("data") if ours else None
    return model


def check_evaluation(checkpoint: str, output_dir: str | Path) -> None:
    """Raise InputError unless there is a file to --evaluate, outside of the run that is moved aside for the result."""
    if not checkpoint:
        raise InputError("--evaluate is given and no --checkpoint; name the file of weights to evaluate")
    check_exists(checkpoint)
    if Path(output_dir).resolve() in Path(checkpoint).resolve().parents:
        raise InputError(
            f"--checkpoint {checkpoint} is in --output_dir {output_dir}, whose run would be moved aside; "
            "give another --output_dir for the evaluation"
        )
