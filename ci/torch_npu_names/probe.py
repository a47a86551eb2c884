"""Runs in the process that imports the plugin: python -m ci.torch_npu_names.probe QUESTION ANSWERS, files of JSON."""

import ast
import ctypes
import importlib
import inspect
import json
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from ci.torch_npu_names.answers import judge
from ci.torch_npu_names.reading import ATTRIBUTE_HOOKS, texts
from ci.torch_npu_names.uses import Call, Use

VALUE_OF_HOOK = object()  # it is not asked for: that can need a device


def main(question: Path, answers: Path) -> None:
    asked = json.loads(question.read_text(encoding="utf-8"))
    for library in asked["libraries"]:
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    import torch_npu  # noqa: F401  registers torch.npu

    uses = {name: [_use(**use) for use in those] for name, those in asked["uses"].items()}
    told = {name: asdict(_answer(name, those)) for name, those in uses.items()}
    answers.write_text(json.dumps(told), encoding="utf-8")


def _use(call: dict | None, **fields) -> Use:
    return Use(**fields, call=call and Call(call["positional"], tuple(call["keywords"]), call["complete"]))


def _answer(name: str, uses: list[Use]):
    import torch
    import torch_npu

    if any(use.imported for use in uses):
        _import_on_the_way(name)
    value = torch.npu if name.startswith("torch.npu.") else torch_npu
    try:
        for part in name.removeprefix("torch.npu.").removeprefix("torch_npu.").split("."):
            value = member(value, part)
    except AttributeError:
        return judge(None, lambda: None, uses)
    return judge("found", lambda: _signature(value), uses)


def _import_on_the_way(name: str) -> None:
    """Import a, a.b, a.b.c of a name a.b.c as far as they are modules, as its import does."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        try:
            importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            return


def member(owner: object, name: str) -> object:
    """An attribute. Raises AttributeError without one.

    Hooks of the plugin's settings take every name, and drop those they do not know: only a name counts that they
    compare with.
    """
    hooks = [] if isinstance(owner, ModuleType | type) else _hooks(type(owner))
    if not hooks or name in dir(owner):
        return getattr(owner, name)
    if not any(name in texts(ast.parse(textwrap.dedent(inspect.getsource(hook)))) for hook in hooks):
        raise AttributeError(name)
    return VALUE_OF_HOOK


def _hooks(kind: type) -> list[object]:
    """The hooks for attributes that are written in Python, of a class and those it inherits from."""
    named = (vars(each).get(hook) for each in kind.__mro__ for hook in ATTRIBUTE_HOOKS)
    functions = (getattr(each, "__func__", each) for each in named)  # out of a classmethod
    return [each for each in functions if inspect.isfunction(each)]


def _signature(value: object) -> inspect.Signature | None:
    try:
        return inspect.signature(value)
    except (TypeError, ValueError):  # not callable, or compiled
        return None


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
