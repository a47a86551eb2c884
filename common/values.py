"""What the text of a flag means: each kind of value, with what is wrong in words.

A function takes the text and raises argparse.ArgumentTypeError for one that is no such value. Nothing here imports
torch.
"""

import argparse
import os
from collections.abc import Callable


def path(text: str) -> str:
    """A shell expands ~ in `--flag ~/x` and not in `--flag=~/x`. Only text that names a file or folder has it."""
    return os.path.expanduser(text)


def switch(text: str) -> bool:
    """'1', 'true', 'yes', 'on' and their opposites, as the original configuration files write them."""
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false; use 1 or 0")
    return known[text.lower()]


def as_number(text: str) -> int:
    """As `switch`: 1 or 0."""
    return int(switch(text))


def _at_least(kind: Callable, low: float, words: str, below: float = float("inf")) -> Callable:
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value < below:
            raise argparse.ArgumentTypeError(f"'{text}' is not {words}")
        return value

    return parse


positive = _at_least(int, 1, "a whole number of at least 1")
channels = _at_least(int, 1, "a whole number from 1 to 512", below=513)  # beyond, no machine has the memory
count = _at_least(int, 0, "a whole number of at least 0")
amount = _at_least(float, 0, "a finite number of at least 0")
seed = _at_least(int, 0, "a whole number from 0 to 4294967295", below=2**32)  # what NumPy takes
wait = _at_least(float, 1, "a number of seconds of at least 1")
port = _at_least(int, 1, "a port from 1 to 65535", below=2**16)


def steps(text: str) -> int:
    """As `count`; -1 is 0: with both the originals run to the end."""
    return 0 if text == "-1" else count(text)


def probability(text: str) -> float:
    value = amount(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 1")
    return value


def share(text: str) -> float:
    value = amount(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of at least 0 and below 1")
    return value


def device_list(text: str) -> list[int]:
    try:
        devices = [count(part) for part in text.replace(" ", "").split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of device numbers such as 0,1,2") from None
    return devices


def workers(text: str) -> int | str:
    return text if text == "auto" else count(text)


def size(text: str) -> tuple[int, int]:
    """'512x1024' (height x width), or one number for a square."""
    parts = text.lower().split("x")
    try:
        height, width = (positive(part) for part in (parts * 2 if len(parts) == 1 else parts))
    except (argparse.ArgumentTypeError, ValueError):
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number nor HEIGHTxWIDTH, such as 512x1024") from None
    return height, width


def factors(text: str) -> list[float]:
    """'0.75,1,1.25'"""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value <= 8 for value in values):
        raise argparse.ArgumentTypeError(f"'{text}' is no list of numbers above 0 and up to 8, such as 0.75,1,1.25")
    return values


FROZEN = ("backbone", "bn")  # of common.step.freezing


def frozen(text: str) -> str:
    """'none', or some of FROZEN, such as 'backbone,bn'."""
    names = text.replace(" ", "").split(",")
    if names != ["none"] and not set(names) <= set(FROZEN):
        raise argparse.ArgumentTypeError(f"'{text}' is neither none nor some of {', '.join(FROZEN)}")
    return ",".join(sorted(set(names)))


LOSS_NAMES = ("ce", "ohem", "focal", "dice", "lovasz")  # of common.step.criteria


def loss(text: str) -> str:
    """'dice', or a sum such as 'ce:1,dice:0.5'."""
    loss_terms(text)
    return text


def loss_terms(text: str) -> dict[str, float]:
    """The weight of each loss that `text` names; one without a number has the weight 1."""
    terms: dict[str, float] = {}
    for part in text.replace(" ", "").split(","):
        name, _, weight = part.partition(":")
        if name not in LOSS_NAMES or name in terms:
            raise argparse.ArgumentTypeError(
                f"'{text}' is no loss: give some of {', '.join(LOSS_NAMES)}, each once, such as dice or ce:1,dice:0.5"
            )
        terms[name] = _at_least(float, 1e-6, f"a sum of losses: the weight of {name} is a number above 0")(
            weight or "1"
        )
    return terms


def loss_scale(text: str) -> str:
    if text not in ("dynamic", "-1"):
        _at_least(float, 1e-6, "'dynamic', -1 (dynamic) or a number above 0")(text)
    return text
