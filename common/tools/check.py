"""Read a whole data set and list what is wrong with it, each with file, reason and remedy.

    python3 -m common.tools.check --model NAME --data_path DIR [--json FILE] [--fix NEW_DIR] [--write_classes]

Takes the flags of that model's train.py, of which those that choose the data count. Every picture and every label is
decoded, by the rules of training (docs/pictures.md), and nothing in DIR is changed. Exit code 0, and 2 where something
is wrong that a training would refuse or learn wrongly. With --fix, what can be mended is written to NEW_DIR, what
cannot be used is left out of it, and the exit code is that of NEW_DIR: 4 where something was left out.
--write_classes, for data of one's own, writes DIR/classes.json where there is none.
"""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.version import answer_version

if __name__ == "__main__":  # before torch is imported
    answer_version()

import argparse
import importlib
import shlex
from argparse import Namespace
from collections.abc import Sequence

from common.args import Parser, format_value, parse_args
from common.data.classes import CLASSES_FILE, write_classes
from common.data.crops import note_on_scale
from common.data.mending import check_target, mend
from common.data.own import ReaderOf
from common.data.pictures import Datasets
from common.data.survey import Problem, Survey, problems_of, split_message, survey
from common.device.exits import exit_codes
from common.errors import ExitCode, InputError
from common.record.files import writable_file, write_json
from common.values import path

ROOT = Path(__file__).resolve().parents[2]
SHOWN_PROBLEMS, SHOWN_FILES = 20, 3  # in the text; --json has all


def parse(argv: list[str] | None = None) -> tuple[Namespace, Namespace]:
    """The check's own values, and those of the model's train.py. argv: without it, those of the process."""
    models = sorted(path.parent.name for path in ROOT.glob("*/train.py"))
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, choices=models, help="the folder whose train.py takes the flags")
    parser.add_argument("--json", type=path, metavar="FILE", help="write all that was found there, for programs")
    parser.add_argument(
        "--fix",
        metavar="NEW_DIR",
        type=path,
        help="write the data there without what is wrong with it, as a folder for --data_path",
    )
    parser.add_argument(
        "--write_classes",
        action="store_true",
        help=f"write the classes of one's own data to {CLASSES_FILE} in its folder, to be named there",
    )
    own, rest = parser.parse_known_args(argv)
    return own, parse_args(importlib.import_module(f"{own.model}.presets"), rest)


def opened(model: str, args: Namespace) -> tuple[Datasets, list[Problem]]:
    """The splits that can be opened, and what is wrong with the others. Raises InputError where none can be."""
    build_datasets = importlib.import_module(f"{model}.data").build_datasets
    given = vars(args) | {"cache": "", "evaluate": False, "validate": True}
    try:
        return build_datasets(Namespace(**given)), []
    except InputError as error:
        whole = error
    parts = []
    for changes in ({"validate": False}, {"evaluate": True}):  # train alone, and what is scored alone
        try:
            parts.append(build_datasets(Namespace(**given | changes)))
        except InputError:
            parts.append(Datasets(None, None))
    if not parts[0].train and not parts[1].val:
        raise whole
    return Datasets(parts[0].train, parts[1].val), [Problem((), *split_message(str(whole)), serious=True)]


def text_of(surveys: dict[str, Survey]) -> list[str]:
    """The lines about what is there."""
    lines = []
    for split, each in surveys.items():
        found = each.summary()
        official = " or ".join(f"{count:,}" for count in found["official_pictures"])
        same = found["pictures"] in found["official_pictures"]
        beside = ", as published" if same else f"; published: {official}" if official else ""
        sizes = list(found["sizes"].items())
        more = f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
        lines += [
            f"{split}: {found['pictures']:,} pictures{beside}",
            f"  sizes: {', '.join(f'{size} ({count:,})' for size, count in sizes[:3])}{more}",
            f"  ignored pixels: {found['ignored_share']:.1%}; of the others:",
            *(
                f"  {kind['id']:>3} {kind['name']:<20} {kind['share']:>7.2%}  in {kind['pictures']:,} labels"
                for kind in found["classes"]
            ),
            *(f"  note: {note}" for note in found["notes"]),
        ]
    return lines


def text_of_problems(problems: Sequence[Problem]) -> list[str]:
    """The lines about what is wrong: file, reason, remedy."""
    lines = []
    for number, problem in enumerate(problems[:SHOWN_PROBLEMS], start=1):
        lines.append(f"{number}. {'problem' if problem.serious else 'warning'}: {problem.reason}")
        if problem.files and problem.files[0] not in problem.reason:
            more = f", and {len(problem.files) - SHOWN_FILES} more" if len(problem.files) > SHOWN_FILES else ""
            lines.append(f"   files: {', '.join(problem.files[:SHOWN_FILES])}{more}")
        lines.append(f"   remedy: {problem.remedy}")
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"... and {len(problems) - SHOWN_PROBLEMS} more; --json FILE writes all of them")
    serious = sum(problem.serious for problem in problems)
    lines.append(f"problems: {serious}, warnings: {len(problems) - serious}" if problems else "nothing is wrong")
    return lines


def surveyed(datasets: Datasets) -> dict[str, Survey]:
    """Of each split that there is."""
    return {split: survey(dataset, split) for split, dataset in datasets._asdict().items() if dataset}


def is_serious(problems: Sequence[Problem]) -> bool:
    """Whether a training would refuse the data, or learn something else than was meant."""
    return any(problem.serious for problem in problems)


def command(own: Namespace, args: Namespace, folder: Path) -> str:
    """The training on another folder with the flags that this check was given."""
    preset = [f"--preset={args.preset}"] if args.preset != "default" else []
    flags = {name: getattr(args, name) for name in args.given if name != "data_path"}
    words = [*preset, *(f"--{name}={format_value(value)}" for name, value in flags.items())]
    return shlex.join(["python3", f"{own.model}/train.py", *words, f"--data_path={folder.absolute()}"])


def fixed(own: Namespace, args: Namespace, datasets: Datasets, surveys: dict[str, Survey]) -> tuple[int, dict]:
    """Write the folder of --fix, check it in its turn, and say both; (exit code, what was done)."""
    target = Path(own.fix)
    mended = mend(datasets, surveys, Path(args.data_path), target)
    print(*mended.described(target), sep="\n")
    datasets, problems = opened(own.model, Namespace(**vars(args) | {"data_path": str(target)}))
    problems += problems_of(surveyed(datasets))
    print(f"{target}, checked:", *text_of_problems(problems), sep="\n")
    print("train with:", command(own, args, target), sep="\n", flush=True)
    code = ExitCode.INPUT if is_serious(problems) else ExitCode.OMISSIONS if mended.left_out else ExitCode.DONE
    return code, {
        "folder": str(target),
        "pictures": mended.pictures,
        "labels_anew": dict(mended.rewritten),
        "left_out": [one._asdict() for one in mended.left_out],
        "problems": [problem._asdict() for problem in problems],
    }


def write_own_classes(root: Path, datasets: Datasets) -> None:
    """Write the classes.json of --write_classes. Raises InputError where there is one, and for published data."""
    file, kind_of = root / CLASSES_FILE, datasets.used[0].read.kind_of
    if not isinstance(kind_of, ReaderOf):
        raise InputError("--write_classes is for data of your own: the classes of this data set are published ones")
    if file.exists():
        raise InputError(f"--write_classes: {file} already exists; change it there, or remove it")
    try:
        write_classes(file, kind_of.classes)
    except OSError as error:
        raise InputError(f"--write_classes: {file} cannot be written ({error.strerror}); give permission") from error
    print(f"written: {file}, {len(kind_of.classes.names)} classes; names and colours can be changed there", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Print what there is and what is wrong; the exit code."""
    own, args = parse(argv)
    with exit_codes():
        if own.json:
            writable_file(own.json, "--json")
        if own.fix:
            check_target(Path(own.fix), Path(args.data_path))
        datasets, unopened = opened(own.model, args)
        surveys = surveyed(datasets)
        problems = unopened + problems_of(surveys)
        print(*text_of(surveys), sep="\n")
        if datasets.train and (note := note_on_scale(datasets.train, datasets.val)):
            print(note)
        print(*text_of_problems(problems), sep="\n", flush=True)
        if problems and not own.fix:
            print("--fix NEW_DIR writes the data beside these, repaired where possible, without the rest", flush=True)
        if own.write_classes:
            write_own_classes(Path(args.data_path), datasets)
        code, done = ExitCode.INPUT if is_serious(problems) else ExitCode.DONE, {}
        if own.fix and unopened:
            raise InputError(f"--fix {own.fix}: nothing is written: {unopened[0].reason}; {unopened[0].remedy}")
        if own.fix:
            code, done["fixed"] = fixed(own, args, datasets, surveys)
        if own.json:
            splits = {split: each.summary() for split, each in surveys.items()}
            write_json(
                Path(own.json), {"splits": splits, "problems": [problem._asdict() for problem in problems], **done}
            )
        return code


if __name__ == "__main__":
    sys.exit(main())
