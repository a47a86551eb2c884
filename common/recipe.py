"""The values of a run, and where each of them came from: the command line, a file, the preset, or what holds anyway."""

import contextlib
from argparse import Namespace
from collections.abc import Iterator, Mapping

from common.flags import ABOUT_VALUES, CROPS, FLAGS, RUN

COMMAND_LINE, CONFIG, WORKED_OUT, DEFAULT = "command line", "config file", "data and other flags", "default"


def origin(name: str, values: Mapping[str, object]) -> str:
    """Where the value of a flag came from: one of the constants above, or 'preset NAME'.

    values: of a run, as `common.args.parse_args` gives them or its config.json has them; those of earlier versions do
    not say. 'default' is what every folder begins with, and no paper decides.
    """
    if "given" not in values:
        return "not recorded"
    if name in values["given"]:
        return COMMAND_LINE
    if name in (noted := values.get("origins", {})):
        return noted[name]
    defaults = {**CROPS, **RUN}
    is_default = name in defaults and values[name] == defaults[name]
    return DEFAULT if is_default else f"preset {values.get('preset')}"


def recipe(values: Mapping[str, object]) -> dict[str, list[tuple[str, object, str]]]:
    """topic -> (flag, value, where it came from); what no topic of the flags names is under 'others'."""
    topics = {name: topic for topic, flags in FLAGS.items() for name in flags}
    rows: dict[str, list[tuple[str, object, str]]] = {topic: [] for topic in FLAGS}
    for name, value in values.items():
        if name not in ABOUT_VALUES:
            rows.setdefault(topics.get(name, "others"), []).append((name, value, origin(name, values)))
    return {topic: found for topic, found in rows.items() if found}


@contextlib.contextmanager
def noting_changes(args: Namespace) -> Iterator[None]:
    """Note of each value that is another one afterwards that it was worked out."""
    before = dict(vars(args))
    yield
    changed = [name for name, value in vars(args).items() if name not in ABOUT_VALUES and value != before.get(name)]
    args.origins |= dict.fromkeys(changed, WORKED_OUT)
