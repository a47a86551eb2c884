"""Checkpoints: what one holds, one in another form, and the files that are published.

    python3 -m common.tools.checkpoint inspect FILE
    python3 -m common.tools.checkpoint convert FILE OUT [--model NAME]
    python3 -m common.tools.checkpoint list

inspect: what the file holds, whether it is whole, and what made it.
convert: the weights of FILE, ours or of another program (docs/weights.md), as a file of ours: OUT is a new .pt, or
.safetensors with the package of that name.
list: the published ImageNet weights that the folders take, where they are, and the folders that are looked in.

Files are read whole, as a training does, and no code of theirs is run. One that is damaged, or that holds values that
are not finite, is named in one line with the tensor, and the exit code is 2. Nothing is downloaded.
"""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.version import answer_version

if __name__ == "__main__":  # before torch is imported
    answer_version()

import argparse
from collections.abc import Iterator

from common.args import Parser, format_setting
from common.device.exits import exit_codes
from common.record.checkpoint import is_ours, is_training_state, read
from common.record.origin import code_in_words
from common.record.tensors import check_finite, has_checksums, named_tensors
from common.tools.weight_files import MODELS, convert, listed

COLUMN = 10  # letters of the longest name of a line


def inspect(path: Path) -> Iterator[tuple[str, str]]:
    """(Name, what is said of it) of each thing that the file says; raises as `common.record.checkpoint.read` does."""
    content = read(path)
    check_finite(path, content)  # of other programs' files, `read` does not look at the values
    yield "file", f"{path}, {path.stat().st_size / 2**20:.1f} MiB"
    if is_ours(content):
        kind = "training state" if is_training_state(content) else "weights"
        yield "kind", f"{kind} ({content['format']})"
        yield "model", f"{content['model_class']} {format_setting(content['options'])}".rstrip()
    else:
        yield "kind", "file of another program, or weights alone"
    tensors = [tensor for _, tensor in named_tensors(content["model"] if is_ours(content) else content)]
    yield "weights", f"{len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors):,} values"
    if "ema" in content and is_ours(content):
        yield "average", f"of these weights (--ema) over {content['ema']['updates']} steps, and taken in their place"
    if is_ours(content):
        yield from _course(content)
    yield "finite", "all values"
    yield "checksum", "right" if has_checksums(path) else "none in the file"
    if is_ours(content):
        yield from _origin(content.get("made_by"))


def _course(content: dict) -> Iterator[tuple[str, str]]:
    """How far the run of one of our checkpoints had come."""
    of_all = f" of {content['made_by']['schedule_steps']}" if "made_by" in content else ""
    yield "step", f"{content['steps_done']}{of_all}, of {content['images_per_step']} images each"
    score = "none so far" if content["best"] is None else f"{content['best']:.4f}, the best so far"
    yield "score", f"{score}{'; the evaluation after this step is still due' if content.get('unscored') else ''}"


def _origin(made_by: dict | None) -> Iterator[tuple[str, str]]:
    """What made one of our checkpoints; files of the first version do not say."""
    if made_by is None:
        yield "made by", "not said: written by an earlier version"
        return
    yield "made by", code_in_words(made_by["code"])
    yield "preset", made_by["preset"]
    yield "flags", format_setting(made_by["flags"])
    for split, data in made_by["data"].items():
        yield split, f"{data['pairs']} pictures, names {data['names']}, labels {data['labels']}"
    for change in made_by["changes"]:
        for difference in change["differences"]:
            yield "changed", f"after step {change['after_step']}: {difference}"


def main(argv: list[str] | None = None) -> None:
    """Do what the command line says, and print lines about it."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="inspect|convert|list")
    commands.add_parser("inspect", help="print what a file holds").add_argument("file", type=Path, metavar="FILE")
    converting = commands.add_parser("convert", help="write the weights of a file in our form")
    converting.add_argument("file", type=Path, metavar="FILE")
    converting.add_argument("out", type=Path, metavar="OUT")
    converting.add_argument("--model", choices=MODELS, help="the folder, for files that none knows by itself")
    commands.add_parser("list", help="print the published files, and where they are")
    args = parser.parse_args(argv)
    with exit_codes():
        if args.command == "inspect":
            for name, text in inspect(args.file):
                print(f"{name:<{COLUMN}}  {text}")
        elif args.command == "convert":
            print(convert(args.file, args.out, args.model))
        else:
            print(*listed(), sep="\n")


if __name__ == "__main__":
    main()
