"""The format of our checkpoints, and files of weights: checked as they are read, before anything is made of them.

A checkpoint is a dictionary of tensors, numbers and text that torch.load reads with weights_only=True. Its fields are
those of `FIELDS`; a last.pt has those of `TRAINING_FIELDS` too. `format` says which version of them. With --ema the
weights of best.pt are the averaged ones, and a last.pt holds both: `model` is what the training goes on with, `ema` the
average, which is what whoever only wants weights takes.
"""

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from common.errors import InputError
from common.record.foreign import NAMES_OF_OURS, OtherNetwork, Translated, account
from common.record.safetensors_file import SUFFIX, read_safetensors
from common.record.tensors import Unusable, check_finite, load_tensors
from common.step.amp import Amp

FORMAT_NAME = "segmentation-zoo-"
VERSION = 2  # 1: without made_by
FORMAT = f"{FORMAT_NAME}{VERSION}"


class Progress(NamedTuple):
    """How far a run has come."""

    steps_done: int
    best: float | None  # score so far
    images_per_step: int  # of all devices
    unscored: bool = False  # the evaluation after these steps was due, and ended before it was done
    evaluations_since_best: int = 0


def state_of(amp: Amp, progress: Progress, made_by: dict) -> tuple[dict, dict]:
    """(What best.pt holds, weights; what last.pt holds, everything a run needs to continue), on the CPU.

    Weights are float32 at every opt level. torch_npu writes tensors of an NPU in a form of its own, which
    weights_only=True may refuse. `model.options` and the class name of the model let a file be recognised.
    made_by: of `common.record.origin`.
    """
    state = {
        "format": FORMAT,
        "model_class": type(amp.model).__name__,
        "options": amp.model.options,
        "data": getattr(amp.model, "data_info", None),
        "model": _on_cpu(amp.model_state()),
        "made_by": made_by,
        **progress._asdict(),
    }
    average = {"ema": _on_cpu(amp.average.state_dict())} if amp.average else {}
    training = {"optimizer": _on_cpu(amp.optimizer.state_dict()), "amp": _on_cpu(amp.state_dict())}
    return without_training(state | average), state | training | average


def without_training(content: dict) -> dict:
    """A checkpoint with nothing but its weights, those of the average where it has one."""
    kept = {name: value for name, value in content.items() if name not in TRAINING_FIELDS}
    return kept | {"model": kept.pop("ema")["model"]} if "ema" in kept else kept


def _on_cpu(value):
    """The same nested dictionaries and lists with every tensor on the CPU."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value


# ---- what a file must hold


def _is_count(value, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_score(value) -> bool:
    return value is None or (isinstance(value, float) and math.isfinite(value))


def _is_named(value, kind: type = object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and isinstance(of, kind) for key, of in value.items())


def _has(value, *names: str) -> bool:
    return _is_named(value) and value.keys() >= set(names)


def _is_optimizer(value) -> bool:
    """As torch.optim.Optimizer.state_dict makes it."""
    return (
        _is_named(value)
        and isinstance(value.get("state"), dict)
        and all(map(_is_named, value["state"].values()))
        and isinstance(value.get("param_groups"), list)
        and all(_is_named(group) and isinstance(group.get("params"), list) for group in value["param_groups"])
    )


def _is_amp(value) -> bool:
    """As `Amp.state_dict` makes it."""
    return (
        _is_named(value)
        and _is_named(value.get("scaler"))
        and isinstance(value.get("dynamic"), bool)
        and _is_count(value.get("skipped_steps"))
    )


def _is_average(value) -> bool:
    """As `MovingAverage.state_dict` makes it."""
    return _is_named(value) and _is_count(value.get("updates")) and _is_named(value.get("model"), Tensor)


def _is_made_by(value) -> bool:
    """As `common.record.origin.made_by` makes it."""
    return (
        _is_named(value)
        and isinstance(value.get("preset"), str)
        and _is_named(value.get("flags"))
        and _is_count(value.get("schedule_steps"))
        and _has(value.get("code"), "commit", "changed", "version")
        and _is_named(value.get("data"))
        and all(_has(data, "pairs", "names", "labels") for data in value["data"].values())
        and isinstance(value.get("changes"), list)
        and all(_has(change, "after_step", "differences") for change in value["changes"])
    )


# name -> (what it has to be, the same in words)
FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "model_class": (lambda value: isinstance(value, str), "a name"),
    "options": (_is_named, "a dictionary by name"),
    "model": (lambda value: _is_named(value, Tensor), "a dictionary of tensors by name"),
    "steps_done": (_is_count, "a whole number of at least 0"),
    "best": (_is_score, "a finite number or none"),
    "images_per_step": (lambda value: _is_count(value, least=1), "a whole number of at least 1"),
    "made_by": (_is_made_by, "a description of the run"),
}
TRAINING_FIELDS = {
    "optimizer": (_is_optimizer, "the state of an optimizer"),
    "amp": (_is_amp, "the state of mixed precision"),
}
OPTIONAL_FIELDS = {"ema": (_is_average, "an average of weights with its number of updates")}


def is_ours(content: dict) -> bool:
    """Whether a file says that it is a checkpoint of this repository, of whatever version."""
    return str(content.get("format", "")).startswith(FORMAT_NAME)


def is_training_state(content: dict) -> bool:
    """Whether a run can continue from it; else it holds weights."""
    return is_ours(content) and bool(TRAINING_FIELDS.keys() & content.keys())


def version_of(content: dict) -> int | None:
    """The version of a checkpoint of ours; None for what is no number."""
    number = content["format"].removeprefix(FORMAT_NAME)
    return int(number) if number.isascii() and number.isdigit() else None


def _check_fields(path: Path, content: dict) -> None:
    """Raise Unusable, naming the field, for a file that says it is ours and is not as we write it.

    Raises InputError for one of a version to come.
    """
    version = version_of(content)
    if version is not None and version > VERSION:
        raise InputError(
            f"{path} has the format {content['format']} of a newer version, and this one reads up to {FORMAT}; "
            "update this repository, or give another file"
        )
    wanted = {name: field for name, field in FIELDS.items() if name != "made_by" or version != 1}
    wanted |= TRAINING_FIELDS if is_training_state(content) else {}
    wanted |= {name: field for name, field in OPTIONAL_FIELDS.items() if name in content}
    for name, (is_right, words) in wanted.items():
        if name not in content:
            raise Unusable(f"{path} is spoilt: its field {name} is missing ({words}); give another file")
        if not is_right(content[name]):
            value = content[name]
            shown = repr(value)[:40] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
            raise Unusable(f"{path} is spoilt: its field {name} is {shown} and not {words}; give another file")


def read(path: str | Path, mapped: bool = False) -> dict:
    """The content of a checkpoint file, on the CPU. mapped: see `load_tensors`.

    Raises InputError for one that is missing, may not be read or is of a newer version, and Unusable, naming field or
    tensor, for one that is damaged, not a checkpoint, or holds what no training has written, such as nan.
    """
    path = check_exists(path)
    content = read_safetensors(path) if path.suffix == SUFFIX else load_tensors(path, mapped=mapped)
    if not isinstance(content, dict) or not content:
        raise Unusable(f"{path} holds a {type(content).__name__} and no weights; give a checkpoint file")
    if is_ours(content):
        _check_fields(path, content)
        check_finite(path, content)
    return content


def check_exists(path: str | Path, wanted: str = "best.pt") -> Path:
    """The path of a checkpoint; raises InputError where there is no file. wanted: which of a run's would do."""
    if Path(path).is_symlink() and not Path(path).exists():
        raise InputError(f"{path} is a link to {os.readlink(path)}, which is not there; fix it, or give another file")
    if not Path(path).is_file():
        file = Path(path) / "checkpoints" / wanted  # of the folder of a run
        if file.is_file():
            raise InputError(f"{path} is a folder and no checkpoint; give a file of it: {file}")
        raise InputError(f"no checkpoint {path}; give a file that training wrote (checkpoints/last.pt or best.pt)")
    return Path(path)


# ---- weights


def load_weights(
    path: str | Path,
    model: nn.Module,
    from_reference: Callable[[dict], dict[str, Tensor]] | None = None,
    skip: tuple[str, ...] = (),
) -> str:
    """Read the file, and load its weights: see `_take_weights`."""
    content = read(path, mapped=True)
    return _take_weights(content, _weights_in(content, Path(path), from_reference), Path(path), model, skip)


def _weights_in(content: dict, path: Path, from_reference) -> Translated:
    """The tensors of a file under our names: of our checkpoints as they are, of others' through `from_reference`.

    Raises OtherNetwork, naming the file, for one that the folder knows to be of another network.
    """
    if is_ours(content):
        kind = f"our {content['model_class']}{', the averaged weights (--ema)' if 'ema' in content else ''}"
        return Translated(without_training(content)["model"], kind, options=content["options"])
    if from_reference is None:
        return Translated(content, NAMES_OF_OURS)
    try:
        state = from_reference(content)
    except OtherNetwork as error:
        raise OtherNetwork(f"{path} {error}") from error
    return state if isinstance(state, Translated) else Translated(state, NAMES_OF_OURS)


def _take_weights(content: dict, state: Translated, path: Path, model: nn.Module, skip: tuple[str, ...] = ()) -> str:
    """Load the weights `state` of a file; returns a line that says what it is, and how many tensors of it are taken.

    Parameters whose name starts with an entry of `skip` are left as they are (a new classifier, for example).
    Raises InputError that counts and names what does not fit, and Unusable for weights that are not finite.
    """
    own = model.state_dict()
    taken = {name: value for name, value in state.items() if not name.startswith(skip or ("\0",))}
    check_fit(content, taken, path, model, skip)
    check_finite(path, taken)
    model.load_state_dict(taken, strict=False)
    left_out = [*state.left_out, *(name for name in state if name not in taken)]
    # the counters of batch norms, which old files lack, say nothing
    new = [name for name in own if name not in taken and not name.endswith("num_batches_tracked")]
    return f"{path}: {account(state.kind, len(taken), left_out, new)}"


def check_fit(content: dict, state: dict, path: Path, model: nn.Module, skip: tuple[str, ...] = ()) -> None:
    """Raise InputError for weights `state` that are not those of the model: missing, unexpected, of another shape or
    type, each counted and some of them named, with both shapes."""
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(skip or ("\0",))}
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # old files lack them
    both = [(name, state[name], own[name]) for name in sorted(own.keys() & state.keys())]
    tensors = [(name, value, mine) for name, value, mine in both if isinstance(value, Tensor)]
    problems = {
        "missing": sorted(own.keys() - counters - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "not a tensor": [name for name, value, _ in both if not isinstance(value, Tensor)],
        "of another shape": [
            f"{name} ({list(value.shape)} in the file, {list(mine.shape)} needed)"
            for name, value, mine in tensors
            if value.shape != mine.shape
        ],
        "of another type": [
            f"{name} ({_type(value)} in the file, {_type(mine)} needed)"
            for name, value, mine in tensors
            if value.is_floating_point() != mine.is_floating_point() or value.is_complex()
        ],
    }
    if any(problems.values()):
        found = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            for kind, names in problems.items()
            if names
        )
        made = f"a {content['model_class']} {content['options']}" if is_ours(content) else "other keys"
        raise InputError(
            f"{path} ({made}) does not fit {type(model).__name__} {getattr(model, 'options', {})}: {found}; "
            "give a checkpoint of this model, with the same options"
        )


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def load_model(
    path: str | Path,
    build_model: Callable,
    from_reference: Callable,
    otherwise: dict,
    say: Callable[[str], object] | None = None,
) -> nn.Module:
    """The network of a checkpoint, with its weights, on the CPU.

    Our files say which arguments `build_model` takes. Of others' files the tensors tell some; `otherwise` holds the
    others, and the number of classes where it is not the file that decides. An ONNX file of an export.py takes the
    place of the network. say: takes a line that says what the file is; None: it goes to the error output. Raises
    InputError for a file that is not of this folder's network.
    """
    if Path(path).suffix == ".onnx":
        return _onnx_network(check_exists(path), build_model.__annotations__["return"].__name__)
    content = read(path, mapped=True)
    ours = is_ours(content)
    state = _weights_in(content, Path(path), from_reference)
    known = {name: value for name, value in state.options.items() if name != "num_classes" or name not in otherwise}
    options = content["options"] if ours else otherwise | known
    try:
        model = build_model(**options)
    except (TypeError, ValueError) as error:
        made = f"{content['model_class']} {options}" if ours else f"a network with {options}"
        raise InputError(
            f"{path} is a checkpoint of {made}, which this folder does not build; use the folder of that network"
        ) from error
    line = _take_weights(content, state, Path(path), model)
    print(line, file=sys.stderr, flush=True) if say is None else say(line)
    model.data_info = content.get("data") if ours else None
    return model


def _onnx_network(path: Path, model_class: str) -> nn.Module:
    from common.nets.onnx_network import OnnxNetwork  # for these files alone

    network = OnnxNetwork(path)
    if network.model_class != model_class:
        raise InputError(
            f"{path} is of {network.model_class}, and this folder's network is {model_class}; use that one's folder"
        )
    return network
