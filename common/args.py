"""The command line: every folder accepts the flags that its presets name.

A preset is a flat dictionary of values in a folder's `presets.py`; `common.flags` gives each name its type, its topic
and one line of help. A flag on the command line wins over the preset. `-` and `_` are the same in a flag's name,
abbreviations are refused, and a switch has a `--no-` form. `presets.ALIASES` lists the spellings of the original
README of a model beside ours. Between the two stand the values of a file (--config).

Nothing here imports torch: `--help` answers at once, and a wrong flag is refused before anything is loaded.
"""

import argparse
import difflib
import json
import os
import signal
import sys
import threading
from argparse import Namespace
from pathlib import Path
from types import ModuleType

from common.flags import EITHER_OR, FLAGS, OF_ONE_PROCESS, OTHERWISE_NOW, PATHS
from common.recipe import CONFIG
from common.terminal import marked
from common.values import (
    amount,
    device_list,
    factors,
    frozen,
    loss,
    loss_scale,
    path,
    probability,
    share,
    size,
    switch,
    workers,
)
from common.version import end_on_signal, version_line

# What --config does not take: what a run wrote and was told once, and where it was computed. Where its data and its
# first weights are is a part of the recipe, and so is the number of devices.
NOT_OF_A_CONFIG = (OF_ONE_PROCESS - {"data_path", "pretrained", "load_from", "devices"}) | {
    "given", "origins", "started", "evaluate", "resume_anyway", "seeds", "max_minutes", "dry_run", "prof", "prof_test",
}  # fmt: skip


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=120)


class _Version(argparse.Action):
    """--version, which looks at the checkout only when it is asked."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(version_line())
        parser.exit()


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations, and - for _, and reports an error in one line.

    reads: what it reads in place of the command line, to begin an error with; ''.
    """

    reads = ""

    def __init__(self, **options):
        super().__init__(**{"formatter_class": _Formatter, "allow_abbrev": False, **options})
        if self.add_help:
            nowhere = {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS}  # it is no value of a run
            self.add_argument(
                "--version", action=_Version, nargs=0, help="show version and commit, and exit", **nowhere
            )

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's (parse_args goes through it too). Without `args`, those that the script was started with."""
        return super().parse_known_args(_with_underscores(_script_arguments() if args is None else args), namespace)

    def error(self, message: str):
        """One line, without the usage of sixty flags; for a flag that there is not, the one that may be meant."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message and (meant := self._meant(unknown)):
            message += f"; {meant}"
        print(marked(f"{self.prog}: error: {self.reads}{message}; see --help", sys.stderr), file=sys.stderr)
        sys.exit(2)

    def _meant(self, unknown: str) -> str:
        """A hint at the flag that the first unknown word may mean, or ''."""
        word = unknown.split()[0].partition("=")[0]
        name = word.lstrip("-").replace("-", "_")
        if name in OTHERWISE_NOW:
            return f"{word}: {OTHERWISE_NOW[name]}"
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        # told apart by letters alone, as --batchsize and --batch_size
        plain = {flag.replace("_", ""): flag for flag in reversed(flags)}
        close = difflib.get_close_matches("--" + name.replace("_", ""), plain, n=1, cutoff=0.75)
        return f"{word}: did you mean {plain[close[0]]}?" if close else ""


def parse_args(presets: ModuleType, argv: list[str] | None = None, description: str = "") -> Namespace:
    """The values of the chosen preset, those of the file of --config over them, and the command line's over both.

    presets: a folder's module with PRESETS {name: {flag: value}}, the first of which is the default, and ALIASES
    {original spelling: flag}, or {original spelling: {flag: value}} for one that stands for flags with their values.
    Ends with exit code 2 and one line for a flag or a value that is not accepted.
    The result has also `preset`, `given`, the names of the flags that stood on the command line, and `origins`, where
    others came from when not from the preset (`common.recipe`).
    """
    default = next(iter(presets.PRESETS))
    first = Parser(add_help=False)
    first.add_argument("--preset", choices=list(presets.PRESETS))
    first.add_argument("--config", type=path, default="")
    chosen = first.parse_known_args(argv)[0]
    content = _config(first, chosen.config) if chosen.config else {}
    named = content.pop("preset", default)
    if not chosen.preset and named not in presets.PRESETS:
        first.error(f"--config {chosen.config}: there is no preset {named}; give one with --preset")
    default = chosen.preset or named
    values = presets.PRESETS[default]

    parser = Parser(description=description)
    parser.add_argument(
        "--preset",
        choices=list(presets.PRESETS),
        default=default,
        metavar="NAME",
        help=f"the recipe whose values are the defaults below: {', '.join(presets.PRESETS)}; default: "
        f"{next(iter(presets.PRESETS))}",
    )
    aliases: dict[str, list[str]] = {}
    settings: dict[
        str, list[tuple[str, dict[str, object]]]
    ] = {}  # first flag that it sets -> spelling, all that it sets
    for spelling, meaning in presets.ALIASES.items():
        if isinstance(meaning, dict):
            settings.setdefault(next(iter(meaning)), []).append((f"--{spelling}", meaning))
        else:
            aliases.setdefault(meaning, []).append(f"--{spelling}")
    for topic, flags in FLAGS.items():
        group = parser.add_argument_group(topic)
        for name, (kind, text) in flags.items():
            if name in values:
                _add_flag(group, name, kind, text, aliases.get(name, []), values[name], presets)
                for spelling, meaning in settings.get(name, []):
                    group.add_argument(
                        spelling, dest=name, action=_SetFlags, nargs=0, const=meaning, default=_DEFAULT,
                        help=format_setting(meaning),
                    )  # fmt: skip
    args = parser.parse_args(argv)
    args.given = sorted(name for name in values if getattr(args, name) is not _DEFAULT)
    for one, other in EITHER_OR:
        if one in args.given and other in args.given:
            parser.error(f"--{one} and --{other} say the same thing in two ways; give one of them")
    args.origins = {}
    either = {**dict(EITHER_OR), **{other: one for one, other in EITHER_OR}}
    for name, value in _of_config(parser, chosen.config, content, presets).items():
        if getattr(args, name) is _DEFAULT and either.get(name) not in args.given:
            setattr(args, name, value)
            args.origins[name] = CONFIG
    folder = Path(presets.__file__).resolve().parent
    for name, value in {**values, "output_dir": values["output_dir"] or f"output/{args.preset}"}.items():
        if getattr(args, name) is _DEFAULT:
            is_path = name in PATHS and value not in ("", "none", "sample")
            setattr(args, name, str(folder / value) if is_path else value)
    return args


def _config(parser: Parser, file: str) -> dict[str, object]:
    """Flags with their values from a JSON file {flag: value}, or from the `values` of a run's config.json.

    Of a run's, those that are of that run alone are left out. Ends with one line for a file that holds no such thing.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
        parser.error(
            f"--config {file} cannot be read ({reason}); give the config.json of a run, or JSON {{flag: value}}"
        )
    values = content.get("values", content) if isinstance(content, dict) else None
    if not isinstance(values, dict):
        parser.error(f"--config {file} names no flags; give the config.json of a run, or JSON {{flag: value}}")
    if values is not content:
        return {name: value for name, value in values.items() if name not in NOT_OF_A_CONFIG}
    return values


def _of_config(parser: Parser, file: str, content: dict[str, object], presets: ModuleType) -> dict[str, object]:
    """What the flags in the file of --config mean. Ends with one line that names file and flag for a refused one."""
    parser.reads = f"--config {file}: "
    nothing = {name for values in presets.PRESETS.values() for name, value in values.items() if value is None}
    words = []
    for name, value in content.items():
        if value is None and name in FLAG_KINDS and not any(name in values for values in presets.PRESETS.values()):
            parser.error(f"--{name} is no flag of this model; give the config.json of a run of the same model")
        if isinstance(value, dict) or (value is None and name not in nothing):
            parser.error(f"--{name} cannot be {json.dumps(value)}")
        if value is not None:
            is_size = FLAG_KINDS.get(name) is size and isinstance(value, list)
            words.append(f"--{name}={'x'.join(map(str, value)) if is_size else format_value(value)}")
    read = vars(parser.parse_args(words))
    found = {name: value for name, value in read.items() if value is not _DEFAULT and name != "preset"}
    if of_one_run := sorted(found.keys() & NOT_OF_A_CONFIG):
        parser.error(f"--{of_one_run[0]} is of one run or machine; give it on the command line")
    parser.reads = ""
    return dict.fromkeys((name for name, value in content.items() if value is None)) | found


def shared_values(args: Namespace) -> dict[str, object]:
    """The flags that all processes of a run must have alike, with their values."""
    known = {name for flags in FLAGS.values() for name in flags}
    return {name: value for name, value in vars(args).items() if name in known - OF_ONE_PROCESS}


FLAG_KINDS = {name: kind for flags in FLAGS.values() for name, (kind, _) in flags.items()}
_DEFAULT = object()  # told from every value that a command line can give


class _SetFlags(argparse.Action):
    """For a spelling that stands for several flags: gives each its value."""

    def __call__(self, parser, namespace, values, option_string=None):
        for flag, value in self.const.items():
            setattr(namespace, flag, value)


def _add_flag(group, name: str, kind, text: str, aliases: list[str], default, presets: ModuleType) -> None:
    choices = getattr(presets, "CHOICES", {}).get(name)
    if name == "output_dir":
        default = default or "output/<preset>"
    if default is not None and default != "":
        shown = format_value(default)
        text = f"{text}; default: {shown}".replace("%", "%%")
    names = [f"--{name}", *aliases]
    if kind is bool:
        text += f"; off: --no_{name}"
        group.add_argument(
            *names, nargs="?", const=True, type=switch, dest=name, default=_DEFAULT, help=text, metavar="0|1"
        )
        group.add_argument(f"--no_{name}", dest=name, action="store_const", const=False, help=argparse.SUPPRESS)
    elif name == "distributed":
        group.add_argument(*names, nargs="?", const=1, type=kind, dest=name, default=_DEFAULT, help=text, metavar="0|1")
    elif choices or isinstance(kind, tuple):
        group.add_argument(*names, choices=choices or kind, dest=name, default=_DEFAULT, help=text)
    else:
        group.add_argument(*names, type=kind, dest=name, default=_DEFAULT, help=text, metavar=_metavar(kind))


def format_value(value) -> str:
    """A flag's value as it is written on the command line."""
    if isinstance(value, tuple):
        return str(value[0]) if value[0] == value[1] else "x".join(map(str, value))
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def format_setting(values: dict[str, object]) -> str:
    """Flags with their values as they are written on the command line."""
    return " ".join(f"--{flag}={format_value(value)}" for flag, value in values.items())


def _metavar(kind) -> str:
    known = {
        str: "TEXT",
        path: "TEXT",
        device_list: "LIST",
        factors: "LIST",
        frozen: "LIST",
        amount: "NUMBER",
        share: "NUMBER",
        probability: "NUMBER",
        size: "N|HxW",
        workers: "N|auto",
        loss: "LOSS",
        loss_scale: "SCALE",
    }
    return known.get(kind, "N")


def _script_arguments() -> list[str]:
    """The command line of a script that goes on to import torch, which takes seconds.

    Until a run takes its signals itself, those that ask for an end end the program with one line. A process of several
    leaves that to their launcher.
    """

    def wait(*_):
        """Nothing, as nothing is there to be saved; the default would be to die."""

    if threading.current_thread() is threading.main_thread():
        in_torchrun = "LOCAL_RANK" in os.environ
        signal.signal(signal.SIGINT, wait if in_torchrun else end_on_signal)
        signal.signal(signal.SIGUSR1, wait)
        if not in_torchrun:
            signal.signal(signal.SIGTERM, end_on_signal)
    return sys.argv[1:]


def _with_underscores(argv: list[str]) -> list[str]:
    """`--crop-size=5` and `--crop_size=5` are the same flag; values keep their dashes."""
    result = []
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            flag, equals, value = word.partition("=")
            word = "--" + flag[2:].replace("-", "_") + equals + value
        result.append(word)
    return result


def parse_with_network(
    parser: Parser, options: dict[str, list[str] | str | int], argv: list[str] | None = None
) -> Namespace:
    """What a command line says to a parser of a program that works with a trained network, which --checkpoint names.

    options: name -> what `build_model` takes: choices, default first, or the default alone; in the result also as the
    dictionary `options`. Files of our own training say themselves how their model is built: they are for files of the
    reference.
    """
    parser.add_argument(
        "--checkpoint", type=path, required=True, help="weights: checkpoints/best.pt, or a file of the reference"
    )
    for name, values in options.items():
        choices, default = (values, values[0]) if isinstance(values, list) else (None, values)
        parser.add_argument(
            f"--{name}", type=type(default), choices=choices, default=default,
            help=f"for files of the reference; default: {default}",
        )  # fmt: skip
    args = parser.parse_args(argv)
    args.options = {name: getattr(args, name) for name in options}
    return args
